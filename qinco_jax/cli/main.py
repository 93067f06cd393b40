"""The command line, thin over the Python API: train, encode, decode, evaluate, compare, data."""

import os
import warnings
from pathlib import Path
from typing import Any

import click
import jax

from qinco_jax.cli import codes, compare, data, index, keeping, models, plan, serve, settings
from qinco_jax.cli import train as training
from qinco_jax.cluster.team import Unfinished
from qinco_jax.errors import of_system
from qinco_jax.interrupts import INTERRUPTED, insisting
from qinco_jax.training.endings import CODES
from qinco_jax.vectors.folders import ENDINGS
from qinco_jax.version import __version__

FAILURES: dict[type[Exception], int] = {**CODES, Unfinished: 1}


class Commands(click.Group):
    """Shows a failure that the user can act on as one sentence, without a trace."""

    def invoke(self, ctx: click.Context) -> Any:
        """Runs a command; exits with 2 for what was passed in, 1 for work that failed."""
        try:
            with warnings.catch_warnings(), insisting():
                warnings.showwarning = lambda message, *_, **__: click.echo(
                    f"warning: {message}", err=True
                )
                return super().invoke(ctx)
        except KeyboardInterrupt:
            text, code = f"interrupted; {keeping.kept(ctx)}", INTERRUPTED
        except click.UsageError as error:
            if "extra argument" in error.message and any(end in error.message for end in ENDINGS):
                hint = 'to pass several files, quote a pattern, such as "parts/*.npy"'
                raise click.UsageError(f"{error.message}; {hint}", error.ctx) from None
            raise
        except BrokenPipeError:
            raise  # `qinco settings | head`: click ends quietly
        except OSError as error:
            text, code = of_system(error), 2
        except tuple(FAILURES) as error:
            text = str(error)
            code = next(FAILURES[kind] for kind in FAILURES if isinstance(error, kind))
        except (click.exceptions.Exit, click.Abort):
            raise  # they are RuntimeErrors
        except (AssertionError, MemoryError, RuntimeError) as error:
            found = _no_devices(error) or _no_memory(error)
            if found is None:
                raise
            text, code = found, 2
        click.echo(f"qinco: {text}", err=True)
        ctx.exit(code)


@click.group(cls=Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__)
def main() -> None:
    """Neural residual quantization: trains QINCo models, encodes, decodes, evaluates.

    Vectors are read from .npy, .npz, .fvecs, .bvecs, .ivecs, .fbin, .u8bin, .i8bin, .ibin, .hdf5,
    .parquet and .safetensors files. A pattern in quotes, "parts/*.npy", or a folder of numbered
    files stands for several, FILE::NAME for one column or dataset of a file. Codes are .npy. A
    MODEL is the folder of a model or of its run, or a .safetensors file. All of these may be URLs,
    such as s3://bucket/x.npy.
    Compiled programs are kept in ~/.cache/qinco_jax, or where JAX_COMPILATION_CACHE_DIR says.
    """
    _keep_compilations()
    jax.config.update("jax_enable_x64", False)  # models are of 32-bit numbers


for command in (
    training.train, training.centroids, codes.encode, codes.decode, compare.evaluate,
    compare.compare, index.index, plan.plan, models.convert, models.export, serve.serve, data.data,
    settings.settings,
):  # fmt: skip
    main.add_command(command)


def _no_devices(error: Exception) -> str | None:
    """A sentence if JAX has none of the devices that JAX_PLATFORMS names; JAX's error may be any.

    A reason that it gives is kept, such as who holds a TPU, but for its own words on the remedy.
    """
    platforms = os.environ.get("JAX_PLATFORMS")
    wanted = "" if platforms is None else f" for JAX_PLATFORMS={platforms}"
    try:
        jax.devices()
        return None
    except (AssertionError, RuntimeError):
        _, _, reason = str(error).partition("Unable to initialize backend ")
    reason = reason.partition(" (set JAX_PLATFORMS")[0].partition(": ")[2]
    why = f" ({reason})" if reason and "not in the list of known" not in reason else ""
    return (
        f"JAX finds no device{wanted}{why}; set JAX_PLATFORMS to what this machine has, such as "
        "cpu, or leave it out"
    )


def _no_memory(error: Exception) -> str | None:
    """A sentence if there was too little memory."""
    if not isinstance(error, MemoryError) and "RESOURCE_EXHAUSTED" not in str(error):
        return None
    reason = str(error).partition("\n")[0] or "no more is left"
    return f"out of memory ({reason}); choose smaller sizes, or a machine with more"


def _keep_compilations() -> None:
    """A second process finds what the first compiled (JAX's persistent compilation cache)."""
    home = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    if "JAX_COMPILATION_CACHE_DIR" not in os.environ and not home.startswith("~"):
        jax.config.update("jax_compilation_cache_dir", str(Path(home) / "qinco_jax"))
        if "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS" not in os.environ:
            jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
