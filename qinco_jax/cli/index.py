"""`qinco index`: indexes of codes, built, extended, searched, tuned and merged."""

import time
from pathlib import Path

import click
import numpy as np

from qinco_jax import datasets
from qinco_jax.cli import indexing, keeping
from qinco_jax.cli.models import reranking_dtype_option
from qinco_jax.cli.numbers import Integer, Number
from qinco_jax.cluster import connect
from qinco_jax.cluster import shards as sharding
from qinco_jax.errors import InputError
from qinco_jax.evaluate import points as operating_points
from qinco_jax.evaluate import results
from qinco_jax.evaluate.neighbours import nearest_neighbours, queries_of
from qinco_jax.files import path_of, replacing
from qinco_jax.models import disk as models
from qinco_jax.search import disk, export, manifest, tune, work
from qinco_jax.search.build import FITTED_ROWS, METRICS
from qinco_jax.search.index import Index
from qinco_jax.search.sharded import opened
from qinco_jax.training.logs import stage_bar
from qinco_jax.vectors import checks, formats
from qinco_jax.vectors.shards import read_rows
from qinco_jax.vectors.stored import Rows
from qinco_jax.words import counted, format_size

POINTS, PLOT = "points.jsonl", "points.png"
COUNT = Integer(1)


@click.group()
def index() -> None:
    """Indexes of codes: build, add, search, tune, info, merge, export.

    An INDEX is a folder. build and add go on after a kill when the same command runs again.
    """


@index.command()
@click.argument("model")
@click.argument("dataset")
@click.argument("index")
@click.option("--num-lists", type=COUNT, help="L, inverted lists [default: by the number of "
              "training vectors; a model with centroids has its own]")  # fmt: skip
@click.option("--metric", type=click.Choice(METRICS),
              help="[default: cosine for a model with unit_norm, else the set's own, or "
              "l2]")  # fmt: skip
@click.option("--codes", metavar="FILE", help="codes of the database, by `qinco encode`")
@click.option("--rows-to-fit", default=FITTED_ROWS, show_default=True, metavar="N",
              type=COUNT, help="training vectors that the decoders are fitted on")  # fmt: skip
@click.option("--shards", type=COUNT, metavar="N", help="write N indexes of a share of the rows "
              "each, which answer as one")  # fmt: skip
@click.option("--workers", default="1", show_default=True, metavar="N|auto|ADDRESS",
              help="who fills the shards: this process, or by Ray N processes of this machine or a "
              "cluster")  # fmt: skip
def build(
    model: str, dataset: str, index: str, num_lists: int | None, metric: str | None,
    codes: str | None, rows_to_fit: int, shards: int | None, workers: str,
) -> None:  # fmt: skip
    """Builds the new INDEX of a DATASET's database, as codes of MODEL.

    Without a database, of its training vectors.

    For example:

        qinco index build runs/mine /path/to/folder my-index
    """
    who = connect.parsed(workers)
    keeping.keeps(
        lambda: _kept(index, "lists and decoders are not fitted yet, so nothing was kept")
    )
    codec, data = models.load(model), datasets.load(dataset)
    x = sharding.rows_of(data)
    if data.database is None:
        click.echo(f"no database: the index is of the {len(x):,} training vectors")
    own = "cosine" if codec.config.unit_norm else data.metric or "l2"
    made = {"model": model, "dataset": data.name}
    settings = {"num_lists": num_lists, "metric": metric or own, "max_rows": rows_to_fit}
    if shards is None and who != 1:
        raise InputError("--workers fill shards; say into how many with --shards")
    if shards is None:
        indexing.build(path_of(index), codec, data.train, x, codes, made, **settings)
        click.echo(_summary(index))
        return
    with stage_bar("filling shards") as advance:
        sharding.build(
            path_of(index), codec, dataset, shards, workers=who, codes=codes, made=made,
            advance=advance, **settings,
        )  # fmt: skip
    click.echo(_summary(index))


@index.command()
@click.argument("index")
@click.argument("vectors")
@click.option("--ids", metavar="FILE", help="of the vectors, .npy [default: counted on]")
@click.option("--codes", metavar="FILE", help="of the vectors, by `qinco encode`")
def add(index: str, vectors: str, ids: str | None, codes: str | None) -> None:
    """Adds the file VECTORS to INDEX.

    For example:

        qinco index add my-index more.npy
    """
    own_ids = None if ids is None else _ids(ids)
    keeping.keeps(lambda: _kept(index, f"{index} is as it was, and nothing else was kept"))
    indexing.extend(path_of(index), read_rows(vectors), own_ids, codes)
    click.echo(_summary(index))


@index.command()
@click.argument("index")
@click.argument("queries")
@click.argument("out")
@click.option("-k", default=10, show_default=True, type=COUNT, help="neighbours of each query")
@click.option("--num-probes", type=COUNT, help="inverted lists that are scanned")
@click.option("--num-reranked", type=Integer(),
              help="codes that the network decodes; 0: none")  # fmt: skip
@click.option("--recall", type=Number(0, 1, above=True),
              help="k-recall@k to reach, 0 to 1, by the points of `tune`")  # fmt: skip
@click.option("--filter", "kept", metavar="FILE", help="ids that may be found, .npy")
@reranking_dtype_option
def search(
    index: str, queries: str, out: str, k: int, recall: float | None, kept: str | None,
    compute_dtype: str | None, **settings: int | None,
) -> None:  # fmt: skip
    """Searches INDEX for the neighbours of the file QUERIES, into the new file OUT.

    OUT.npz holds `ids` and `distances`, OUT.npy the ids alone.

    For example:

        qinco index search my-index queries.npy found.npz -k 10
    """
    target, filter = path_of(out), None if kept is None else _ids(kept)
    formats.check_new(target, (".npz", ".npy"))
    x, found = read_rows(queries), opened(index, compute_dtype=compute_dtype)
    given = {name: value for name, value in settings.items() if value is not None}
    begin = time.perf_counter()
    distances, ids = found.search(x, k, recall=recall, filter=filter, **given)
    seconds = time.perf_counter() - begin
    with replacing(target) as partial:
        if target.suffix == ".npz":
            np.savez(partial, ids=ids, distances=distances)
        else:
            np.save(partial, ids)
    chosen = "" if recall is None else f" with {tune.text(found.point_for(recall, k))}"
    what = f"{counted(k, 'neighbour')} of {counted(len(ids), 'query', 'queries')}"
    click.echo(f"{target}: {what} in {seconds:.2f} s{chosen}")


@index.command("tune")
@click.argument("index")
@click.option("--queries", help="file of queries, which are not in the index")
@click.option("--database", help="the vectors of the index, in the order of their ids 0, 1, ...")
@click.option("--groundtruth",
              help="file of the ids truly nearest to each query [default: searched for in "
                   "--database]")  # fmt: skip
@click.option("-k", default=10, show_default=True, type=COUNT, help="neighbours of each query")
@reranking_dtype_option
def tune_index(
    index: str, queries: str | None, database: str | None, groundtruth: str | None, k: int,
    compute_dtype: str | None,
) -> None:  # fmt: skip
    """Measures recall and speed of INDEX at many settings, and keeps the best.

    Needs the database, or a ground truth, which is checked if the database is there too. `search
    --recall` chooses among the points. INDEX gets points.jsonl and points.png.

    For example:

        qinco index tune my-index --queries queries.npy --database database.npy
    """
    if queries is None:
        raise InputError(
            "give --queries FILE: an index holds all its vectors, so none can be held back as "
            "queries, and each would find itself"
        )
    if database is None and groundtruth is None:
        raise InputError("give --database, --groundtruth or both, to know the true neighbours")
    found, x = disk.load(index, compute_dtype=compute_dtype), read_rows(queries)
    checks.vectors(x, found.model.dim, "the queries")
    folder = path_of(index)
    truth = None if groundtruth is None else np.asarray(read_rows(groundtruth))
    if database is not None:
        truth = _neighbours(found, x, database, truth, k)
    with stage_bar("measuring operating points"):
        assert truth is not None
        points = found.tune(x, truth, k)
    disk.save_points(found, index)
    results.write(found.points, folder / POINTS)
    operating_points.plot(points, folder / PLOT, f"{folder.name}, {len(found):,} vectors")
    click.echo(operating_points.markdown(points))
    click.echo(f"points: {folder / POINTS}   plot: {folder / PLOT}")


def _neighbours(index: Index, x: Rows, name: str, truth: np.ndarray | None, k: int) -> np.ndarray:
    """The ids [Q, k] truly nearest to queries [Q, D]; a given ground truth is checked."""
    database, metric = read_rows(name), index.metric
    checks.vectors(database, index.model.dim, "the database")
    count = len(database)
    if len(index) != count or not np.array_equal(np.sort(index.ids()), np.arange(count)):
        raise InputError(
            f"the {len(index):,} ids of the index are not 0 to {count - 1:,}, the rows of {name}; "
            "give the vectors of the index in the order of their ids, or, where ids are others, "
            "--groundtruth with the ids nearest to each query and no --database"
        )
    if truth is not None:
        queries_of(x, database, metric, truth)
        return truth
    if k > count:
        raise InputError(f"k = {k} exceeds the {count} vectors of the index; lower it")
    with stage_bar(f"exact neighbours of {len(x):,} queries"):
        ready = checks.finite(np.asarray(x), what="the queries")
        return nearest_neighbours(database, ready, k, metric)


@index.command()
@click.argument("index")
def info(index: str) -> None:
    """Shows how INDEX was built, its size, and its operating points; of shards, how the first.

    For example:

        qinco index info my-index
    """
    click.echo(_summary(index))
    if manifest.is_there(index):
        known = manifest.read(index)
        index = str(known.folder / known.shards[0].name)
    content = disk.description(index)
    made = ", ".join(f"{name} {value}" for name, value in content["made"].items())
    lists = "the model's centroids" if content["residual"] else "k-means"
    for title, text in (
        ("made", made),
        ("lists", f"{content['num_lists']:,}, {lists}"),
        ("metric", f"{content['metric']}, read off by {content['reading']['kind']}"),
        ("model", ", ".join(f"{name}={value}" for name, value in content["model"].items())),
        ("version", content["version"]),
    ):
        click.echo(f"  {title:8} {text}")
    for k in sorted({point["k"] for point in content["points"]}):
        own = [point for point in content["points"] if point["k"] == k]
        click.echo(f"\nk = {k}, measured on {own[0]['vectors']:,} vectors:\n")
        click.echo(operating_points.markdown(own))


@index.command()
@click.argument("index")
@click.argument("others", nargs=-1, required=True)
@click.argument("out")
def merge(index: str, others: tuple[str, ...], out: str) -> None:
    """Writes the vectors of INDEX and OTHERS as the new index OUT.

    They must have the same model, lists and decoders, and no id in common.

    For example:

        qinco index merge one-index other-index both-indexes
    """
    if path_of(out).exists():
        raise InputError(f"{out} exists; choose another place or remove it first")
    found = disk.load(index)
    for other in others:
        found.merge(disk.load(other))
    disk.save(found, out)
    click.echo(_summary(out))


@index.command("export")
@click.argument("index")
@click.argument("out")
@click.option("--content", type=click.Choice(export.CONTENTS), default="vectors",
              show_default=True, help="of a table: vectors as the network decodes them, codes as "
              "bytes, or both")  # fmt: skip
def export_index(index: str, out: str, content: str) -> None:
    """Writes INDEX, in shards or not, for other programs as the new file OUT.

    OUT.parquet is a table of ids, vectors and codes, for LanceDB, DuckDB and others. OUT.faiss is
    an index that Faiss searches by itself, by codes and look-ups, without the network.

    For example:

        qinco index export my-index vectors.parquet
    """
    target = path_of(out)
    if target.suffix == ".parquet":
        with stage_bar("exporting") as advance:
            export.to_parquet(opened(index, mmap=True), target, content, advance)
    elif target.suffix == ".faiss":
        export.to_faiss(opened(index), target)
    else:
        raise InputError(f"{target} ends in neither .parquet nor .faiss; choose one of these")
    click.echo(f"{target}: {format_size(target.stat().st_size)}")


def _kept(index: str, nothing: str) -> str:
    """What unfinished work on an index is kept."""
    begun = {path.name for path in work.folder_of(path_of(index)).glob("*")} - {work.TASK}
    return f"what was finished is kept; {keeping.AGAIN}" if begun else nothing


def _summary(index: str) -> str:
    """An index in a line, or one in shards in two."""
    if manifest.is_there(index):
        known = manifest.read(index)
        what = f"{counted(len(known), 'vector')} in {counted(len(known.shards), 'shard')}"
        return f"{known.folder}: {what}\n" + _summary(str(known.folder / known.shards[0].name))
    content = disk.description(index)
    folder, size = path_of(index), format_size(content["bytes_in_memory"])
    files = sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
    return (
        f"{folder}: {counted(content['vectors'], 'vector')} of {content['dim']} dimensions at "
        f"{counted(content['code_bytes'], 'byte')} and an id of 8, {size} in memory, "
        f"{format_size(files)} in files"
    )


def _ids(path: str) -> np.ndarray:
    """The ids [n] in a file."""
    try:
        found = np.load(Path(path_of(path)), allow_pickle=False)
    except (ValueError, EOFError):
        found = None
    if not isinstance(found, np.ndarray) or found.dtype.kind not in "iu":
        raise InputError(f"{path} holds no ids; write integers with numpy.save")
    return found.ravel()
