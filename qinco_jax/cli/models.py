"""`qinco convert` and `qinco export`: models between formats, and programs that serve them."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from qinco_jax.cli.numbers import Integer
from qinco_jax.config import MAX_BEAM, MAX_CODEBOOK
from qinco_jax.errors import InputError
from qinco_jax.files import path_of
from qinco_jax.models import disk
from qinco_jax.models import export as programs
from qinco_jax.models.pytorch.load import load_pytorch
from qinco_jax.quantizers.coding import Model
from qinco_jax.words import counted


def search_options(command: Callable[..., None]) -> Callable[..., None]:
    """Adds the options A, B and joint of an encoding."""
    for option in (
        click.option(
            "--joint/--each",
            default=None,
            help="choose the A B best candidates over the whole beam, or the A best of each "
            "partial code [default: the model's]",
        ),
        click.option(
            "--beam-size",
            type=Integer(1, MAX_BEAM),
            help="B, partial codes kept [default: the model's]",
        ),
        click.option(
            "--num-candidates",
            type=Integer(1, MAX_CODEBOOK),
            help="A, candidates per partial code [default: the model's]",
        ),
    ):
        command = option(command)
    return command


reranking_dtype_option = click.option(
    "--compute-dtype",
    metavar="DTYPE",
    help="of the network that re-ranks: float32 or bfloat16 [default: what this machine multiplies "
    "faster]",
)
compute_dtype_option = click.option(
    "--compute-dtype",
    metavar="DTYPE",
    help="of the network's products: float32, or bfloat16, the default on accelerators that "
    "multiply it faster",
)


@click.command()
@click.argument("source")
@click.argument("target")
@click.option(
    "--centroids", metavar="FILE", help="of an IVF-QINCo2 of PyTorch that was saved without"
)
@click.option(
    "--db-scale", type=float, help="divides vectors, for a state of PyTorch saved without"
)
def convert(source: str, target: str, centroids: str | None, db_scale: float | None) -> None:
    """Writes the model SOURCE as the new TARGET.

    SOURCE is a folder of ours, that of a run too, or a .safetensors file, or a .pt or .pth file of
    the published programs. TARGET is a folder, or a file if it ends in .safetensors.

    For example:

        qinco convert bigann_8x8_L2.pt model
    """
    if Path(target).suffix in (*disk.PYTORCH, ".faiss", ".index"):
        raise InputError(
            f"{target} would be no file of ours; name a folder or a .safetensors file. Faiss "
            "writes no QINCo to a file: make one in Python by qinco_jax.to_faiss"
        )
    given = {"centroids": centroids, "db_scale": db_scale}
    options = {name: value for name, value in given.items() if value is not None}
    if Path(source).suffix in disk.PYTORCH:
        model = _imported(source, options)
    elif options:
        raise InputError(f"{source} has all that it needs; leave out --centroids and --db-scale")
    else:
        model = disk.load(source)
    disk.save(model, target)
    click.echo(
        f"{target}: {type(model).__name__} of {counted(model.num_steps, 'step')}, {model.dim} dims"
    )


def _imported(path: str, options: dict[str, Any]) -> Model:
    found = load_pytorch(path, **options)
    if not isinstance(found, Model):
        raise InputError(f"{path} holds a {type(found).__name__}, which is not a model")
    return found


@click.command()
@click.argument("model")
@click.argument("folder")
@search_options
def export(model: str, folder: str, **search: Any) -> None:
    """Writes encode and decode of MODEL into the new FOLDER, as programs that JAX alone runs.

    For example:

        qinco export runs/mine programs
    """
    programs.export(disk.load(model), folder, **search)
    click.echo(f"{folder}: {', '.join(sorted(path.name for path in path_of(folder).iterdir()))}")
