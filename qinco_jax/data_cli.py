"""The commands `qinco data ...`."""

from typing import Any

import click
from tqdm import tqdm

from qinco_jax.data.convert import convert as convert_rows

DTYPES = ("float16", "bfloat16", "float32", "float64", "int8", "uint8", "int32", "int64")


@click.group()
def data() -> None:
    """Sets and files of vectors."""


@data.command()
@click.argument("source")
@click.argument("target")
@click.option(
    "--dtype",
    type=click.Choice(DTYPES),
    help="of the numbers [default: the source's, or what the format demands]",
)
def convert(source: str, target: str, dtype: str | None) -> None:
    """Writes the vectors of SOURCE into the new file TARGET, in the format of its ending.

    SOURCE is a file, a pattern such as "parts/*.parquet", or FILE::NAME. Numbers that TARGET cannot
    hold are refused; floats are rounded to narrower floats where --dtype asks for it.
    """
    with tqdm(unit=" vectors", unit_scale=True, desc="converting") as bar:

        def advance(done: int, total: int) -> Any:
            bar.total = total
            bar.update(done - bar.n)

        convert_rows(source, target, dtype, advance)
