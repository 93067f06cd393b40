"""`qinco data`: the named sets on this machine, and files of vectors in other formats."""

import textwrap
from pathlib import Path
from types import ModuleType
from typing import Any

import click
from tqdm import tqdm

from qinco_jax.datasets import catalog, official, sets
from qinco_jax.datasets.official import Wanted, amount, is_there
from qinco_jax.errors import InputError
from qinco_jax.vectors.convert import convert as convert_rows

DTYPES = ("float16", "bfloat16", "float32", "float64", "int8", "uint8", "int32", "int64")

NAME = click.argument("name", metavar="NAME[/SIZE]")


@click.group()
def data() -> None:
    """Named sets, and files of vectors in other formats.

    Sets are kept in TFDS_DATA_DIR, or else ~/tensorflow_datasets. QINCO_DATA_URL names a mirror,
    below which all files lie in the folders that `info` shows.
    """


@data.command("list")
def list_sets() -> None:
    """Shows the named sets and which of them are prepared here."""
    click.echo("sift-photos         128 x uint8    comes with the package")
    for name, known in sets.SETS.items():
        try:
            here = [size for size in known.sizes if _prepared_in(name, size)]
            state = f"prepared: {', '.join(here)}" if here else ""
        except InputError as error:
            state = str(error)
        sizes = ", ".join(known.sizes)
        click.echo(f"{name:16} {known.dim:>6} x {known.dtype:8} {sizes:48} {state}")


@data.command()
@NAME
def info(name: str) -> None:
    """Tells everything of a set: rows, files, bytes, addresses, places, licence, citation."""
    if name == catalog.EMBEDDED:
        click.echo("sift-photos: SIFT descriptors of photographs; comes with the package, which")
        click.echo("names the photographers and licences in data/sift-photos-ATTRIBUTION.tsv")
        return
    key, known, size = sets.named(name)
    place = official.downloads()
    files = official.wanted(known, size, place)
    prepared = _prepared_in(key, size)
    click.echo(f"{key}/{size}: {known.title}")
    _tell("vectors", f"{known.dim} x {known.dtype}; {known.described(size)}")
    _tell("sizes", ", ".join(f"{key}/{one}" for one in known.sizes))
    _tell("licence", f"{known.licence}; the publisher's word holds: {known.homepage}")
    _tell("note", known.note)
    _tell("prepared", str(prepared or "no"))
    _tell("to fetch", _to_fetch(files, place))
    _tell("files in", str(place))
    for entry in files:
        state = "there" if is_there(entry, place) else "missing"
        click.echo(f"    {entry.remote.name}  ({entry.part}, {amount(_bytes(entry))}, {state})")
        click.echo(f"      {entry.file.source}")
    click.echo(
        "  Without a network, place these files there by hand; a .gz may stay packed, and where "
        "not all\n  rows are taken, the whole file may lie there under its own name."
    )
    click.echo(textwrap.indent(known.citation, "  "))


@data.command()
@NAME
def download(name: str) -> None:
    """Fetches a set and prepares it; what is there already stays."""
    found = catalog.load(name)
    for part, rows in found._asdict().items():
        if part != "name" and rows is not None:
            click.echo(f"{part:12} {rows.shape[0]:>12,} x {rows.shape[1]} {rows.dtype}")


@data.command()
@NAME
def verify(name: str) -> None:
    """Reads a set's files and what was prepared of them, and compares sums and rows."""
    key, known, size = sets.named(name)
    place = official.downloads()
    files = [(entry, place / entry.remote.name) for entry in official.wanted(known, size, place)]
    prepared = _prepared_in(key, size)
    if not prepared and not any(path.exists() for _, path in files):
        raise InputError(f"nothing of {key}/{size} is here; fetch it by `qinco data download`")
    for fact in official.verified([file for file in files if file[1].exists()], place):
        click.echo(f"{fact['sha256']}  {fact['path']}")
    for _, path in files:
        if not path.exists():
            click.echo(f"not there: {path}")
    if prepared:
        for split, rows in _builders().read_through(key, size).items():
            click.echo(f"prepared {split}: {rows:,} rows read")


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


def _builders() -> ModuleType:
    from qinco_jax.datasets import builders  # TFDS takes a while to import

    return builders


def _prepared_in(name: str, size: str) -> Path | None:
    """Where a set is prepared; the sets of one file are read as they come."""
    return None if "all" in sets.SETS[name].files else _builders().prepared_in(name, size)


def _tell(title: str, text: str) -> None:
    if text:
        click.echo(
            textwrap.fill(
                text,
                96,
                initial_indent=f"  {title:10}",
                subsequent_indent=" " * 12,
                break_on_hyphens=False,
                break_long_words=False,
            )
        )


def _bytes(entry: Wanted) -> int | None:
    cut = entry.remote.cut
    return entry.remote.size if cut is None else (cut.first + cut.last) * cut.row


def _to_fetch(files: list[Wanted], place: Path) -> str:
    missing = [entry for entry in files if not is_there(entry, place)]
    known = [size for size in map(_bytes, missing) if size is not None]
    unknown = len(missing) - len(known)
    more = f" and {unknown} files whose size the server tells" if unknown else ""
    return f"{amount(sum(known))}{more}" if missing else "nothing, all files are there"
