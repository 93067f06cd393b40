"""Indexes for other programs: a table of vectors or codes (Parquet), or an index of Faiss alone."""

import contextlib
import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np

from qinco_jax import optional
from qinco_jax.errors import InputError
from qinco_jax.files import path_of, replacing
from qinco_jax.models.codes import model_fingerprint
from qinco_jax.quantizers import coding, packing
from qinco_jax.search import distance, scan
from qinco_jax.search.index import Index
from qinco_jax.search.searcher import NUM_PROBES, Searcher
from qinco_jax.search.sharded import Sharded
from qinco_jax.version import __version__

GROUP_ROWS = 16_384  # decoded and written at once
CONTENTS = "vectors", "codes", "both"


def to_parquet(
    index: Searcher,
    path: str | os.PathLike[str],
    content: str = "vectors",
    advance: Callable[[int, int], Any] = lambda done, total: None,
) -> None:
    """Writes the rows of an index as a table, group by group, in the order of its lists.

    Columns are `id` (int64), `vector` (a list of D float32) and `code` (bytes, as `pack` lays them
    out). The vectors are those that re-ranking compares with: the network's reconstructions, with
    the length that the byte beside the code gives them. By the metric that the table's metadata
    names (`rank_by`: l2 or ip) an exact search over them ranks as the index does when it re-ranks
    everything; for "cosine" queries must have unit length.

    Args:
      index: one index or shards; mapped ones are read piece by piece.
      path: a new file.
      content: "vectors", "codes" or "both".
      advance: called with the rows done and their number.

    Raises:
      InputError: the file exists or cannot be written.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    target = _new(path)
    dim, config = index.model.dim, index.model.config
    width, dtype = packing.row_shape(config)
    fields = {
        "vector": pa.list_(pa.field("element", pa.float32()), dim),
        "code": pa.binary(width * dtype.itemsize),
    }
    wanted = {"vectors": ["vector"], "codes": ["code"], "both": ["vector", "code"]}[content]
    facts = {
        "qinco_jax": __version__, "metric": index.metric,
        "rank_by": distance.ranked_by(index.reading), "model": model_fingerprint(index.model),
    }  # fmt: skip
    columns = [pa.field("id", pa.int64()), *(pa.field(name, fields[name]) for name in wanted)]
    schema = pa.schema(columns, metadata=facts)
    done = 0
    with _explained(target), replacing(target) as partial, pq.ParquetWriter(partial, schema) as out:
        for own, ids, codes, levels in _groups(index):
            made: dict[str, Any] = {"id": pa.array(ids)}
            if "vector" in wanted:
                flat = pa.array(_vectors(own, codes, levels).ravel())
                made["vector"] = pa.FixedSizeListArray.from_arrays(flat, type=fields["vector"])
            if "code" in wanted:
                rows = np.ascontiguousarray(packing.to_rows(codes, config))
                size = fields["code"].byte_width
                made["code"] = pa.FixedSizeBinaryArray.from_buffers(
                    fields["code"], len(ids), [None, pa.py_buffer(rows.view(np.uint8))]
                )
                assert rows.nbytes == size * len(ids)
            out.write_table(pa.table(made, schema=schema), row_group_size=len(ids))
            advance(done := done + len(ids), len(index))


def to_faiss(index: Searcher, path: str | os.PathLike[str]) -> None:
    """Writes the lists and the additive decoder as a file that Faiss searches by itself.

    `faiss.read_index(path).search(queries, k)` takes vectors [Q, D] and returns the ids that
    `Index.search` gives with `num_reranked=0` where there is no pairwise decoder, from as many
    lists (16, or `nprobe`). Its scores are inner products with what the additive decoder makes of
    the codes; under "l2" they are (|q|^2 - distance) / 2 of the centered queries. The network is
    not in the file, so nothing is re-ranked.

    Args:
      index: one index or shards, all held in memory; their lists become those of one index.
      path: a new file.

    Raises:
      InputError: the file exists or cannot be written, or the lists are mapped from their file.
    """
    faiss = optional.faiss(scan.WANTED)
    target = _new(path)
    first, *others = _shards(index)
    whole = first if not others else _merged(first, others)
    if scan.is_mapped(whole.lists):  # Faiss would write where its file lies
        raise InputError("the index is mapped from its file; load it without mmap")
    dim, (columns, _, _), metric = index.model.dim, whole.tables.shape, index.metric
    parts = whole.lists.pq.M
    ends = faiss.LinearTransform(dim, dim + 1, True)  # [q - origin, 1]
    faiss.copy_array_to_vector(np.eye(dim + 1, dim, dtype=np.float32).ravel(), ends.A)
    shift = np.append(-np.asarray(index.reading.origin, np.float32), np.float32(1))
    faiss.copy_array_to_vector(shift, ends.b)
    ends.is_trained = True
    places = np.full((parts, dim), -1, np.int32)
    places[:columns] = np.arange(dim)
    places[columns:, 0] = dim
    wide = faiss.RemapDimensionsTransform(dim + 1, parts * dim, False)
    faiss.copy_array_to_vector(places.ravel(), wide.map)
    whole.lists.nprobe = min(NUM_PROBES, whole.lists.nlist)
    chain = faiss.IndexPreTransform(whole.lists)
    for transform in (wide, ends):
        chain.prepend_transform(transform)
    if metric == "cosine":
        chain.prepend_transform(faiss.NormalizationTransform(dim, 2.0))
    with _explained(target), replacing(target) as partial:
        faiss.write_index(chain, str(partial))


def _merged(first: Index, others: Sequence[Index]) -> Index:
    """A new index of the vectors of several."""
    lists = scan.new(first.list_vectors, first.tables, first.reading, first.lists.by_residual)
    whole = Index(
        first.model, first.list_vectors, first.tables, first.reading, lists, pairs=first.pairs
    )
    for one in (first, *others):
        whole.merge(one)
    return whole


def _shards(index: Searcher) -> list[Index]:
    if isinstance(index, Sharded):
        return index.shards
    assert isinstance(index, Index)
    return [index]


def _groups(index: Searcher) -> Iterator[tuple[Index, np.ndarray, np.ndarray, np.ndarray]]:
    """The rows of an index: where they are from, ids [R], codes [R, columns] and bytes [R, V]."""
    for own in _shards(index):
        kept, size = list[tuple[np.ndarray, np.ndarray, int]](), 0
        for number in range(own.lists.nlist):
            ids, packed = scan.entries(own.lists, number)
            for begin in range(0, len(ids), GROUP_ROWS):
                span = slice(begin, begin + GROUP_ROWS)
                kept.append((ids[span], packed[span], number))
                size += len(ids[span])
                if size >= GROUP_ROWS:
                    yield (own, *_joined(own, kept))
                    kept, size = [], 0
        if kept:
            yield (own, *_joined(own, kept))


def _joined(
    index: Index, kept: Sequence[tuple[np.ndarray, np.ndarray, int]]
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    ids, packed = (np.concatenate([part[place] for part in kept]) for place in (0, 1))
    lists = np.repeat([number for *_, number in kept], [len(part[0]) for part in kept])
    return (ids, *index.unpacked(packed, lists))


def _vectors(index: Index, codes: np.ndarray, levels: np.ndarray) -> np.ndarray:
    """The vectors [R, D] float32 that re-ranking compares queries with, not less the origin."""
    origin, reading = np.asarray(index.reading.origin), index.reading
    decoded = np.asarray(coding.decode(index.model, codes))
    near = distance.stretched(reading, jnp.asarray(decoded - origin), jnp.asarray(levels))
    return np.asarray(near) + origin


def _new(path: str | os.PathLike[str]) -> Path:
    target = path_of(path)
    if target.exists():
        raise InputError(f"{target} exists; choose another place or remove it first")
    return target


@contextlib.contextmanager
def _explained(target: Path) -> Iterator[None]:
    """Turns failures to write into a sentence."""
    try:
        yield
    except (OSError, RuntimeError) as error:  # Faiss raises the latter
        raise InputError(
            f"cannot write {target} ({str(error).splitlines()[0]}); make sure that its directory "
            "is there and writable, and has free space"
        ) from error
