"""`qinco encode` and `qinco decode`: between files of vectors and files of codes."""

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import click
import numpy as np
from tqdm import tqdm

from qinco_jax.cli import estimates
from qinco_jax.cli.models import compute_dtype_option, search_options
from qinco_jax.models import codes as code_files
from qinco_jax.models import disk
from qinco_jax.quantizers import coding, packing, precision
from qinco_jax.vectors import checks, formats
from qinco_jax.vectors.shards import read_rows


@click.command()
@click.argument("model")
@click.argument("vectors")
@click.argument("codes")
@search_options
@compute_dtype_option
@click.option("--dry-run", is_flag=True, help="show what it will take, and write nothing")
def encode(model: str, vectors: str, codes: str, dry_run: bool, **search: Any) -> None:
    """Encodes the file VECTORS with MODEL into the new file CODES (.npy, packed bytes).

    Run the same command again to resume after an interruption. CODES.json says what made the codes:
    keep both together.
    """
    codec, x = disk.load(model), read_rows(vectors)
    checks.vectors(x, codec.dim, vectors)
    if dry_run:
        click.echo(estimates.encoding(codec, x, **search))
        return
    with bar("encoding") as advance:
        code_files.write(codes, codec, x, what=vectors, advance=advance, **search)


@click.command()
@click.argument("model")
@click.argument("codes")
@click.argument("vectors")
@compute_dtype_option
def decode(model: str, codes: str, vectors: str, compute_dtype: str | None) -> None:
    """Decodes the file CODES with MODEL into the new file VECTORS (.npy, .fvecs or .fbin)."""
    compute_dtype = precision.resolve(compute_dtype)
    codec = disk.load(model)
    rows = code_files.read(codes, codec)
    shape = len(rows), codec.dim
    with formats.create(vectors, shape, np.float32) as out, bar("decoding") as advance:
        for span in code_files.read_blocks(len(rows), advance):
            found = packing.from_rows(np.asarray(rows[span]), codec.config)
            found = packing.check_range(codec.column_sizes, found, span.start)
            out[span] = np.asarray(coding.decode(codec, found, compute_dtype=compute_dtype))


@contextlib.contextmanager
def bar(what: str) -> Iterator[Callable[[int, int], None]]:
    """A bar over vectors: a function of how many are done, of how many."""
    with tqdm(unit=" vectors", unit_scale=True, desc=what) as bar:

        def advance(done: int, total: int) -> None:
            if bar.total is None:
                bar.initial, bar.n = done, done
            bar.total = total
            bar.update(done - bar.n)

        yield advance
