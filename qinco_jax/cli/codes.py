"""`qinco encode` and `qinco decode`: between vectors and codes, in files and folders of them."""

import contextlib
import io
from typing import Any

import click
import jax
import numpy as np

from qinco_jax.cli import estimates, keeping
from qinco_jax.cli.models import compute_dtype_option, search_options
from qinco_jax.cluster import encode as sharded
from qinco_jax.errors import InputError
from qinco_jax.files import path_of
from qinco_jax.models import codes as code_files
from qinco_jax.models import disk
from qinco_jax.quantizers import coding, packing, precision
from qinco_jax.training.logs import stage_bar
from qinco_jax.vectors import formats
from qinco_jax.vectors.shards import read_rows


@click.command()
@click.argument("model")
@click.argument("vectors")
@click.argument("codes")
@search_options
@compute_dtype_option
@click.option("--dry-run", is_flag=True, help="show what it will take, and write nothing")
@click.option("--workers", metavar="auto|N|ray://HOST:PORT",
              help="encode on Ray: on the cluster that runs here or else this machine, on N "
                   "workers of this machine, or on the cluster at an address")  # fmt: skip
@click.option("--shard", metavar="I/N", help="encode the I-th of N shares, I from 0, without Ray")
@click.option(
    "--collect",
    is_flag=True,
    help="when all shares are done, verify the shards and write manifest.json",
)
def encode(
    model: str, vectors: str, codes: str, dry_run: bool, workers: str | None, shard: str | None,
    collect: bool, **search: Any,
) -> None:  # fmt: skip
    """Encodes the file VECTORS with MODEL into the new file CODES (.npy, packed bytes).

    Run the same command again to resume after an interruption. CODES.json says what made the codes:
    keep both together.

    With --workers, --shard or --collect, CODES is a folder of many files, VECTORS may be the name
    of a set too, and both may be remote, such as s3://bucket/codes.

    For example:

        qinco encode runs/mine vectors.npy codes.npy --beam-size 16
    """
    asked = [name for name, given in (
        ("--workers", workers), ("--shard", shard), ("--collect", collect)
    ) if given]  # fmt: skip
    if len(asked) > 1:
        raise InputError(f"{' and '.join(asked)} exclude each other; give one of them")
    share = None if shard is None else _share(shard)
    if dry_run:
        if asked:
            codec, x = sharded.checked(model, vectors, codes, shard=share, **search)
        else:
            codec, x = disk.load(model), read_rows(vectors)
            code_files.checked(codes, codec, x, vectors)
        click.echo(estimates.encoding(codec, x, **search))
        return

    def kept() -> str:
        if not asked and "://" not in codes and path_of(codes).exists():
            return f"{codes} is complete"
        return f"{'shards' if asked else 'blocks'} that were finished are kept; {keeping.AGAIN}"

    keeping.keeps(kept)
    if collect:
        with stage_bar("verifying") as advance:
            sharded.collect(model, vectors, codes, advance=advance, **search)
    elif share:
        with stage_bar("encoding") as advance:
            sharded.encode_files(model, vectors, codes, shard=share, advance=advance, **search)
    elif workers:
        _leave_accelerators()
        # What Ray has to say comes on stdout, into the bar.
        with stage_bar("encoding") as advance, contextlib.redirect_stdout(io.StringIO()):
            sharded.encode_files(model, vectors, codes, workers=workers, advance=advance, **search)
    else:
        codec, x = disk.load(model), read_rows(vectors)
        code_files.checked(codes, codec, x, vectors)  # before there is a bar
        with stage_bar("encoding") as advance:
            code_files.write(codes, codec, x, what=vectors, advance=advance, **search)


def _share(text: str) -> tuple[int, int]:
    """The numbers of `I/N`."""
    index, mark, count = text.partition("/")
    if not (index.isdecimal() and mark and count.isdecimal()):
        raise InputError(f"--shard is I/N, such as 0/8 for the first of 8 shares, not {text!r}")
    return int(index), int(count)


def _leave_accelerators() -> None:
    """Keeps this process on the CPU, so that workers on this machine have all of a GPU's memory."""
    jax.config.update("jax_platforms", "cpu")


@click.command()
@click.argument("model")
@click.argument("codes")
@click.argument("vectors")
@compute_dtype_option
def decode(model: str, codes: str, vectors: str, compute_dtype: str | None) -> None:
    """Decodes CODES, a file or a folder, with MODEL into the new file VECTORS.

    VECTORS is .npy, .fvecs or .fbin.

    For example:

        qinco decode runs/mine codes.npy vectors.npy
    """
    compute_dtype = precision.resolve(compute_dtype)
    codec = disk.load(model)
    rows = code_files.read(codes, codec)
    shape = len(rows), codec.dim
    with formats.create(vectors, shape, np.float32) as out, stage_bar("decoding") as advance:
        for span in code_files.read_blocks(len(rows), advance):
            found = packing.from_rows(np.asarray(rows[span]), codec.config)
            found = packing.check_range(codec.column_sizes, found, span.start)
            out[span] = np.asarray(coding.decode(codec, found, compute_dtype=compute_dtype))
