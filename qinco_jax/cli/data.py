"""`qinco data`: named data sets, and conversion of files of vectors."""

import textwrap
from pathlib import Path
from types import ModuleType

import click

from qinco_jax.cli import keeping
from qinco_jax.datasets import catalog, official
from qinco_jax.datasets.dataset import load
from qinco_jax.datasets.official import Wanted, is_present
from qinco_jax.errors import InputError
from qinco_jax.training.logs import stage_bar
from qinco_jax.vectors.convert import convert as convert_rows
from qinco_jax.words import format_size

DTYPES = ("float16", "bfloat16", "float32", "float64", "int8", "uint8", "int32", "int64")

NAME = click.argument("name", metavar="NAME[/SIZE]")


@click.group()
def data() -> None:
    """Named data sets, and conversion of files of vectors.

    Data sets are stored in TFDS_DATA_DIR, by default ~/tensorflow_datasets. QINCO_DATA_URL can name
    a mirror, which must have the directory layout that `info` shows.
    """


@data.command("list")
def list_sets() -> None:
    """Lists the named data sets and the sizes that are prepared.

    For example:

        qinco data list
    """
    click.echo("sift-photos         128 x uint8    comes with the package")
    for name, known in catalog.SETS.items():
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
    """Shows the rows, files, sizes, addresses, paths, license and citation of a data set.

    For example:

        qinco data info deep1m
    """
    if name == catalog.EMBEDDED:
        click.echo("sift-photos: SIFT descriptors of photographs, included in the package; see")
        click.echo("qinco_jax/datasets/sift-photos-ATTRIBUTION.tsv for photographers and licenses")
        return
    key, known, size = catalog.named(name)
    folder = official.downloads()
    files = official.wanted(known, size, folder)
    prepared = _prepared_in(key, size)
    click.echo(f"{key}/{size}: {known.title}")
    _show("vectors", f"{known.dim} x {known.dtype}; {known.described(size)}")
    _show("sizes", ", ".join(f"{key}/{one}" for one in known.sizes))
    _show("license", f"{known.license}; publisher: {known.homepage}")
    _show("note", known.note)
    _show("prepared", str(prepared or "no"))
    _show("download", _to_download(files, folder))
    _show("directory", str(folder))
    for entry in files:
        state = "present" if is_present(entry, folder) else "missing"
        click.echo(
            f"    {entry.remote.name}  ({entry.part}, {format_size(_bytes(entry))}, {state})"
        )
        click.echo(f"      {entry.file.source}")
    click.echo(
        "  Without a network, put these files there yourself. A .gz file may stay compressed,\n"
        "  and the whole file under its own name may replace one of selected rows."
    )
    click.echo(textwrap.indent(known.citation, "  "))


@data.command()
@NAME
def download(name: str) -> None:
    """Downloads and prepares a data set, unless this was done before.

    For example:

        qinco data download deep1m/500k
    """
    keeping.keeps(lambda: f"files that were downloaded are kept; {keeping.AGAIN}")
    found = load(name)
    for part, rows in found._asdict().items():
        if part != "name" and rows is not None:
            click.echo(f"{part:12} {rows.shape[0]:>12,} x {rows.shape[1]} {rows.dtype}")


@data.command()
@NAME
def verify(name: str) -> None:
    """Reads the downloaded and prepared files of a data set and verifies checksums and rows.

    For example:

        qinco data verify deep1m/500k
    """
    key, known, size = catalog.named(name)
    folder = official.downloads()
    files = [(entry, folder / entry.remote.name) for entry in official.wanted(known, size, folder)]
    prepared = _prepared_in(key, size)
    if not prepared and not any(path.exists() for _, path in files):
        raise InputError(f"{key}/{size} is not downloaded; run `qinco data download {key}/{size}`")
    for fact in official.verified([file for file in files if file[1].exists()], folder):
        click.echo(f"{fact['sha256']}  {fact['path']}")
    for _, path in files:
        if not path.exists():
            click.echo(f"missing: {path}")
    if prepared:
        for split, rows in _builders().read_through(key, size).items():
            click.echo(f"prepared {split}: {rows:,} rows read")


@data.command()
@click.argument("source")
@click.argument("target")
@click.option(
    "--dtype",
    type=click.Choice(DTYPES),
    help="of the target [default: what its format requires, or else the source's]",
)
def convert(source: str, target: str, dtype: str | None) -> None:
    """Converts the vectors of SOURCE into a new file TARGET, whose ending gives the format.

    SOURCE is a file, a pattern such as "parts/*.parquet" or a folder of numbered files, each also
    with ::NAME. Numbers that TARGET cannot represent are an error; floats are rounded if --dtype
    asks for narrower floats.

    For example:

        qinco data convert "parts/*.parquet::embedding" vectors.npy
    """
    with stage_bar("converting") as advance:
        convert_rows(source, target, dtype, advance)


def _builders() -> ModuleType:
    from qinco_jax.datasets import builders  # TFDS is slow to import

    return builders


def _prepared_in(name: str, size: str) -> Path | None:
    """The directory of a prepared set, or `None`; a set of one file needs no preparation."""
    return None if "all" in catalog.SETS[name].files else _builders().prepared_in(name, size)


def _show(title: str, text: str) -> None:
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


def _to_download(files: list[Wanted], folder: Path) -> str:
    missing = [entry for entry in files if not is_present(entry, folder)]
    known = [size for size in map(_bytes, missing) if size is not None]
    unknown = len(missing) - len(known)
    more = f" and {unknown} files of unknown size" if unknown else ""
    return f"{format_size(sum(known))}{more}" if missing else "nothing, all files are present"
