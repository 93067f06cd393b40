r"""Cut the embedded data set `sift-photos` out of a larger folder of SIFT descriptors.

The attribution table names the photographs whose license allows shipping what is derived from
them; only rows of those photographs are taken. The table's row counts are filled in afterwards.

    python experiments/embed_sift_photos.py SOURCE \
        --table qinco_jax/data/sift-photos-ATTRIBUTION.tsv --out qinco_jax/data/sift-photos.npz

SOURCE holds, for each of train, database and queries, `<name>.npy` ([n, 128] uint8) and
`<name>_photo.npy` ([n], the number of each row's photograph).
"""

import io
import zipfile
from pathlib import Path

import click
import numpy as np

COUNTS = {"train": "train_rows", "database": "database_rows", "queries": "query_rows"}


def read_table(path):
    """The table's comment lines, its column names and its rows (one dict a photograph)."""
    lines = path.read_text(encoding="utf-8").splitlines()
    comments = [line for line in lines if line.startswith("#")]
    names, *rows = [line.split("\t") for line in lines if line and not line.startswith("#")]
    return comments, names, [dict(zip(names, row, strict=True)) for row in rows]


def write_table(path, comments, names, rows):
    lines = [*comments, "\t".join(names), *("\t".join(row[name] for name in names) for row in rows)]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")


def sample(source, name, size, photos, rng):
    """`size` random rows of the allowed photographs in source order, and their photographs."""
    photo = np.load(source / f"{name}_photo.npy")
    allowed = np.flatnonzero(np.isin(photo, photos))
    if len(allowed) < size:
        raise click.ClickException(f"{name}: {len(allowed)} rows are allowed, {size} are asked for")
    rows = np.sort(rng.choice(allowed, size, replace=False))
    return np.load(source / f"{name}.npy", mmap_mode="r")[rows], photo[rows]


def nearest(queries, database, count, block=256):
    """Exact L2 neighbours of uint8 rows; of equally near rows the one with the lowest id first."""
    # A sum of 128 products of 8-bit numbers stays below 2**24, so that float32 sums it exactly.
    points = database.astype(np.float32)
    norms = (points**2).sum(1).astype(np.int64)
    ids = np.arange(len(database))
    found = []
    for start in range(0, len(queries), block):
        part = queries[start : start + block].astype(np.float32)
        dots = (part @ points.T).astype(np.int64)
        squares = (part**2).sum(1, keepdims=True).astype(np.int64) + norms - 2 * dots
        keys = squares * len(database) + ids
        order = np.sort(np.partition(keys, count, axis=1)[:, :count], axis=1)
        found.append((order % len(database)).astype(np.int32))
    return np.concatenate(found)


def write_npz(path, arrays):
    """Like np.savez_compressed, but the same bytes on every run."""
    with zipfile.ZipFile(path, "w") as archive:
        for name, array in arrays.items():
            member = io.BytesIO()
            np.save(member, array, allow_pickle=False)
            info = zipfile.ZipInfo(f"{name}.npy", date_time=(1980, 1, 1, 0, 0, 0))
            info.compress_type = zipfile.ZIP_DEFLATED
            archive.writestr(info, member.getvalue(), compresslevel=9)


@click.command(help=__doc__.split("\n\n")[0])
@click.argument("source", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.option("--table", required=True, type=click.Path(exists=True, path_type=Path))
@click.option("--out", required=True, type=click.Path(path_type=Path))
@click.option("--train", default=100_000, show_default=True)
@click.option("--database", default=20_000, show_default=True)
@click.option("--queries", default=2_000, show_default=True)
@click.option("--neighbours", default=100, show_default=True)
@click.option("--seed", default=0, show_default=True)
def main(source, table, out, train, database, queries, neighbours, seed):
    comments, names, rows = read_table(table)
    photos = [int(row["photo"]) for row in rows]
    rng = np.random.default_rng(seed)
    arrays = {}
    for name, size in {"train": train, "database": database, "queries": queries}.items():
        arrays[name], photo = sample(source, name, size, photos, rng)
        for row in rows:
            row[COUNTS[name]] = str(np.count_nonzero(photo == int(row["photo"])))
        click.echo(f"{name}: {size} rows of {len(np.unique(photo))} photographs")
    arrays["groundtruth"] = nearest(arrays["queries"], arrays["database"], neighbours)
    write_npz(out, arrays)
    write_table(table, comments, names, rows)
    click.echo(f"{out}: {out.stat().st_size} bytes")


if __name__ == "__main__":
    main()
