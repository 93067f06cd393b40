"""The scan of inverted lists: an additive decoder as a product quantizer inside Faiss.

A product quantizer sums look-ups too; only its sub-vectors are disjoint. So each of C
sub-quantizers here sees the whole query: it is repeated C times, followed by [1, 0, ...] once for
each digit of the byte that the reading of the distance keeps. The score of a code is then
<q, sum_m T_m[i_m]> plus what its byte adds, and behind residual lists <q, list vector>. Faiss scans
such lists with one table a query, and brings filters, removal and files along.
"""

from collections.abc import Iterable
from typing import Any

import numpy as np

from qinco_jax import optional
from qinco_jax.quantizers import packing
from qinco_jax.search.distance import LEVELS, Reading

WANTED = "indexes"
FLAT = 4096  # lists that a query is compared with one by one; of more a graph finds the nearest
NEIGHBOURS = 32  # of each list in the graph


def new(list_vectors: np.ndarray, tables: np.ndarray, reading: Reading, is_residual: bool) -> Any:
    """An empty `faiss.IndexIVFPQ`.

    Args:
      list_vectors: [L, D], which queries are compared with.
      tables: [C, K, D] of the additive decoder.
      reading: what the byte beside a code adds.
      is_residual: whether codes describe what is left over of a list's vector.
    """
    faiss = optional.faiss(WANTED)
    num_columns, codebook_size, dim = tables.shape
    bits = bits_of(codebook_size)
    parts = num_columns + len(reading.slope) * num_digits(bits)
    quantizer = _quantizer(list_vectors, parts * dim, reading.metric)
    index = faiss.IndexIVFPQ(
        quantizer, parts * dim, len(list_vectors), parts, bits, faiss.METRIC_INNER_PRODUCT
    )
    index.by_residual = is_residual
    centroids = np.zeros((parts, 2**bits, dim), np.float32)
    centroids[:num_columns, :codebook_size] = tables
    weights = np.outer(np.asarray(reading.slope), 2.0 ** (bits * np.arange(num_digits(bits))))
    centroids[num_columns:, :, 0] = np.outer(weights, np.arange(2**bits))
    centroids[num_columns, :, 0] += float(reading.offset)
    faiss.copy_array_to_vector(centroids.ravel(), index.pq.centroids)
    index.is_trained = True
    return index


def _quantizer(list_vectors: np.ndarray, width: int, metric: str) -> Any:
    """What finds a query's nearest lists: by the first D of its `width` numbers."""
    faiss = optional.faiss(WANTED)
    num_lists, dim = list_vectors.shape
    kind = faiss.METRIC_INNER_PRODUCT if metric == "ip" else faiss.METRIC_L2
    if num_lists > FLAT:
        lists = faiss.IndexHNSWFlat(dim, NEIGHBOURS, kind)
    else:
        lists = faiss.IndexFlat(dim, kind)
    lists.add(np.ascontiguousarray(list_vectors, np.float32))
    first = faiss.RemapDimensionsTransform(width, dim, False)
    quantizer = faiss.IndexPreTransform(first, lists)
    quantizer.metric_type = faiss.METRIC_INNER_PRODUCT
    return quantizer


def nearest_lists(index: Any, list_vectors: np.ndarray, x: np.ndarray) -> np.ndarray:
    """The list [N] of each vector [N, D]: the nearest, or among many nearly always the nearest."""
    faiss = optional.faiss(WANTED)
    x = np.ascontiguousarray(x, np.float32)
    lists = faiss.downcast_index(faiss.downcast_index(index.quantizer).index)
    if len(list_vectors) > FLAT and lists.metric_type == faiss.METRIC_L2:
        return lists.search(x, 1)[1][:, 0]
    return faiss.knn(x, list_vectors, 1)[1][:, 0]


def bits_of(codebook_size: int) -> int:
    """Bits of a column, also where K is no power of two."""
    return max(1, (codebook_size - 1).bit_length())


def num_digits(bits: int) -> int:
    """Columns of `bits` bits that hold a byte."""
    return -(-(LEVELS - 1).bit_length() // bits)


def pack(codes: np.ndarray, levels: np.ndarray, codebook_size: int) -> np.ndarray:
    """Codes [N, C] and bytes [N, V] as the lists keep them, [N, bytes] uint8."""
    bits = bits_of(codebook_size)
    places = bits * np.arange(num_digits(bits))
    digits = (levels.astype(np.int64)[:, :, None] >> places) % 2**bits
    columns = np.concatenate([codes.astype(np.int64), digits.reshape(len(codes), -1)], axis=1)
    return packing.pack(columns, 2**bits)


def unpack(
    packed: np.ndarray, num_columns: int, codebook_size: int, num_bytes: int
) -> tuple[np.ndarray, np.ndarray]:
    """The codes [N, C] int32 and bytes [N, V] int32 that `pack` was given."""
    bits = bits_of(codebook_size)
    width = num_columns + num_bytes * num_digits(bits)
    columns = packing.unpack(packed, width, 2**bits).astype(np.int32)
    places = bits * np.arange(num_digits(bits), dtype=np.int32)
    digits = columns[:, num_columns:].reshape(len(packed), num_bytes, len(places))
    return columns[:, :num_columns], (digits << places).sum(axis=2, dtype=np.int32)


def add(index: Any, lists: np.ndarray, packed: np.ndarray, ids: np.ndarray) -> None:
    """Appends packed codes [N, bytes] with ids [N] to their lists [N]."""
    faiss = optional.faiss(WANTED)
    order = np.argsort(lists, kind="stable")
    numbers, begins = np.unique(lists[order], return_index=True)
    for number, rows in zip(numbers, np.split(order, begins[1:]), strict=True):
        own_ids = np.ascontiguousarray(ids[rows], np.int64)  # kept in names: Faiss takes pointers
        own_codes = np.ascontiguousarray(packed[rows])
        index.invlists.add_entries(
            int(number), len(rows), faiss.swig_ptr(own_ids), faiss.swig_ptr(own_codes)
        )
    index.ntotal += len(ids)


def reserve(index: Any, counts: np.ndarray) -> None:
    """Makes room for some more codes [L] in each list; else lists double."""
    for number in np.flatnonzero(counts).tolist():
        size = index.invlists.list_size(number)
        index.invlists.resize(number, size + int(counts[number]))
        index.invlists.resize(number, size)


def is_mapped(index: Any) -> bool:
    """Whether the lists lie in a file that is read as they are searched."""
    faiss = optional.faiss(WANTED)
    lists = faiss.downcast_InvertedLists(index.invlists)
    return isinstance(lists, faiss.OnDiskInvertedLists)


def entries(index: Any, number: int) -> tuple[np.ndarray, np.ndarray]:
    """Ids [n] and packed codes [n, bytes] of a list, copied."""
    faiss = optional.faiss(WANTED)
    lists = index.invlists
    size = lists.list_size(number)
    if size == 0:
        return np.zeros(0, np.int64), np.zeros((0, lists.code_size), np.uint8)
    ids, codes = lists.get_ids(number), lists.get_codes(number)
    try:
        return (
            faiss.rev_swig_ptr(ids, size).copy(),
            faiss.rev_swig_ptr(codes, size * lists.code_size).reshape(size, -1).copy(),
        )
    finally:
        lists.release_ids(number, ids)
        lists.release_codes(number, codes)


def find(index: Any, ids: np.ndarray, numbers: Iterable[int]) -> tuple[np.ndarray, np.ndarray]:
    """Where ids [n] lie in the lists of some numbers, and their codes there.

    Returns:
      Lists [n] int64, -1 where there is no such id; packed codes [n, bytes] uint8.
    """
    wanted, places = np.unique(ids, return_inverse=True)
    lists = np.full(len(wanted), -1)
    packed = np.zeros((len(wanted), index.invlists.code_size), np.uint8)
    for number in numbers if len(wanted) else ():
        own, codes = entries(index, number)
        rows = np.searchsorted(wanted[:-1], own)  # at most the last
        here = wanted[rows] == own
        lists[rows[here]], packed[rows[here]] = number, codes[here]
    return lists[places], packed[places]


def search(
    index: Any,
    num_columns: int,
    queries: np.ndarray,
    count: int,
    num_probes: int,
    ef_search: int,
    selector: Any,
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """The best codes, of `num_columns` columns, of each query [Q, D] in its nearest lists.

    Returns:
      Scores [Q, S] float32, the greatest first; ids [Q, S] int64, -1 where there are fewer; lists
      [Q, S] int64; packed codes [Q, S, bytes] uint8.
    """
    faiss = optional.faiss(WANTED)
    parts, (rows, dim) = index.pq.M, queries.shape
    wide = np.zeros((rows, parts, dim), np.float32)
    wide[:, :num_columns] = queries[:, None]
    wide[:, num_columns:, 0] = 1
    graph = faiss.SearchParametersHNSW(efSearch=ef_search) if index.nlist > FLAT else None
    inside = faiss.SearchParametersPreTransform(index_params=graph) if graph else None
    wide, num_probes = wide.reshape(rows, -1), min(num_probes, index.nlist)
    params = faiss.SearchParametersIVF(nprobe=num_probes, sel=selector, quantizer_params=inside)
    if selector is not None:  # Faiss returns no codes of what it selects
        _, probed = index.quantizer.search(wide, num_probes, params=inside)
        scores, ids = index.search(wide, count, params=params)
        lists, packed = find(index, ids.ravel(), np.unique(probed[probed >= 0]).tolist())
        return scores, ids, np.maximum(lists, 0).reshape(ids.shape), packed.reshape(*ids.shape, -1)
    scores, ids, found = index.search_and_return_codes(
        wide, count, params=params, include_listnos=True
    )
    size = index.coarse_code_size()
    lists = np.zeros(found.shape[:2], np.int64)
    for place in range(size):
        lists |= found[:, :, place].astype(np.int64) << (8 * place)
    return scores, ids, np.where(ids < 0, 0, lists), found[:, :, size:]
