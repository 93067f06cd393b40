"""The index: add, search, remove, merge and reconstruct vectors that are kept as codes."""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np

from qinco_jax import optional
from qinco_jax.errors import InputError
from qinco_jax.models.codes import model_fingerprint
from qinco_jax.quantizers import coding, packing, precision
from qinco_jax.quantizers.coding import Model
from qinco_jax.search import additive, distance, pairwise, rerank, scan
from qinco_jax.search import ids as vector_ids
from qinco_jax.search import tune as tuning
from qinco_jax.search.distance import Measured, Reading
from qinco_jax.search.ids import Filter, Ids
from qinco_jax.search.pairwise import Pairs
from qinco_jax.vectors import checks
from qinco_jax.vectors.stored import Rows, Vectors, lazily, spans

BLOCK_ROWS = 65536
QUERY_BLOCK = 512  # searched at once; fewer are filled up to one of `QUERY_SIZES`
QUERY_SIZES = 1, 2, 4, 8, 16, 32, 64, 128, 256, 384, QUERY_BLOCK
NUM_PROBES = 16
EF_SEARCH = 64


@dataclasses.dataclass
class Index:
    """Vectors as codes in inverted lists; `build` makes one without vectors, `load` reads one.

    Attributes:
      model: whose codes are kept.
      list_vectors: [L, D] float32, which queries are compared with to choose lists, like all below
        in the space of the distances (`distance.in_space`).
      tables: [C, K, D] float32 of the additive decoder; behind residual lists, of x less the list's
        vector.
      reading: of the distances.
      lists: the inverted lists, a `faiss.IndexIVFPQ` of its own kind (`search.scan`).
      next_id: the id that the next vector without one gets.
      made: how it was built, for people to read.
      points: what it reached at which settings, as `tune` measured.
      pairs: the pairwise decoder, which picks those of the scan's codes that the network decodes;
        `None` where it would not find more.
      compute_dtype: of the network that re-ranks, "float32" or "bfloat16"; `None` means what the
        device multiplies faster. Set before the first search, and not saved.
    """

    model: Model
    list_vectors: np.ndarray
    tables: np.ndarray
    reading: Reading
    lists: Any
    next_id: int = 0
    made: dict[str, Any] = dataclasses.field(default_factory=dict)
    points: list[tuning.Point] = dataclasses.field(default_factory=list)
    pairs: Pairs | None = None
    compute_dtype: str | None = None

    def __len__(self) -> int:
        """The number of vectors."""
        return int(self.lists.ntotal)

    @property
    def metric(self) -> str:
        """By which distances are measured: l2, ip or cosine."""
        return self.reading.metric

    @property
    def code_bytes(self) -> int:
        """Bytes that the lists keep of each vector, without its id of 8 bytes."""
        return int(self.lists.code_size)

    @property
    def fingerprint(self) -> tuple[Any, ...]:
        """What two indexes must have in common to be merged."""
        further = (array.tobytes() for array in pairwise.arrays(self.pairs).values())
        origin = np.asarray(self.reading.origin).tobytes()
        arrays = self.list_vectors.tobytes(), self.tables.tobytes(), origin, *further
        return (model_fingerprint(self.model), *arrays, str(distance.settings(self.reading)))

    @functools.cached_property
    def prepared(self) -> Any:
        """What decoding needs of the model, computed once."""
        faster = precision.fastest() if self.compute_dtype is None else self.compute_dtype
        return rerank.prepared(self.model, precision.resolve(faster))

    def add(
        self,
        x: Vectors | None = None,
        ids: Ids | None = None,
        *,
        codes: Vectors | None = None,
        advance: Callable[[int, int], Any] = lambda done, total: None,
    ) -> None:
        """Encodes vectors, or takes codes that exist, into the lists.

        Args:
          x: [N, D], any real dtype, read block by block. Without it the codes stand for the
            vectors: lists are chosen and distances read off by their reconstructions.
          ids: [N] integers from 0 to 2^63 - 2, each new; `None` counts on from the greatest so far.
          codes: [N, columns] of x by the index's model, as `encode` gives them; `None` encodes x.
          advance: called with the vectors done and their number.

        Raises:
          InputError: neither x nor codes, shapes that do not match, NaN or Inf, codes out of range,
            ids that are negative or not new; then nothing is added.
        """
        self._require_memory()
        x = None if x is None else lazily(checks.vectors(x, self.model.dim))
        rows = self._checked_codes(codes)
        given = [part for part in (x, rows) if part is not None]
        if not given or any(part.ndim != 2 for part in given) or len(set(map(len, given))) != 1:
            shapes = " and ".join(str(part.shape) for part in given) or "nothing"
            raise InputError(f"got {shapes}; give vectors [N, D], codes [N, columns], or both of N")
        count = len(given[0])
        own_ids = self.new_ids(ids, count)
        pieces = []
        for span in spans(count, BLOCK_ROWS):
            part = None if x is None else checks.finite(np.asarray(x[span]), span.start)
            code = None if rows is None else np.asarray(rows[span])
            pieces.append(self._encoded(part, code, span.start))
            advance(span.stop, count)
        counts = np.zeros(self.lists.nlist, np.int64)
        for lists, _ in pieces:
            counts += np.bincount(lists, minlength=len(counts))
        scan.reserve(self.lists, counts)
        for span, (lists, packed) in zip(spans(count, BLOCK_ROWS), pieces, strict=True):
            scan.add(self.lists, lists, packed, own_ids[span])
        if count:
            self.next_id = max(self.next_id, int(own_ids.max()) + 1)

    def search(
        self,
        queries: Vectors,
        k: int = 10,
        *,
        num_probes: int = NUM_PROBES,
        num_reranked: int | None = None,
        ef_search: int = EF_SEARCH,
        recall: float | None = None,
        filter: Filter | None = None,
    ) -> tuple[np.ndarray, np.ndarray]:
        """The nearest vectors of each query, nearest first.

        Args:
          queries: [Q, D], any real dtype.
          k: neighbours of each, 1 to the number of vectors.
          num_probes: inverted lists that are scanned.
          num_reranked: codes that the network decodes, the best of the scan or, with `pairs`, of
            four times as many by the pairwise decoder, at least k; `None` means 20 or 2 k, 0 none:
            then distances are those of the pairwise or the additive decoder.
          ef_search: how thoroughly the nearest of more than 4,096 lists are searched for.
          recall: k-recall@k to reach: takes these three settings from `point_for`.
          filter: ids that may be found; `None` means all.

        Returns:
          Distances [Q, k] float32, smaller is nearer: squared L2 distances, minus inner products or
          minus cosines, read off the codes as `reading` says. Ids [Q, k] int64; where fewer are
          found, -1 at a distance of inf.

        Raises:
          InputError: another dimension, NaN or Inf, k out of range, or an option less than its
            least value, or a recall that no point reached.
        """
        if not len(self):
            raise InputError("the index has no vectors; add some before searching")
        if recall is not None:
            if (num_probes, num_reranked, ef_search) != (NUM_PROBES, None, EF_SEARCH):
                raise InputError("recall chooses the settings of a search; give it or them")
            chosen = tuning.settings(self.point_for(recall, k))
            return self.search(queries, k, filter=filter, **chosen)
        vectors = self._queries(queries)
        k = checks.integer(k, "k", 1)
        if k > len(self):
            raise InputError(f"k = {k} exceeds the {len(self)} vectors of the index; lower it")
        num_probes = checks.integer(num_probes, "num_probes", 1)
        ef_search = checks.integer(ef_search, "ef_search", 1)
        most = max(20, 2 * k) if num_reranked is None else num_reranked
        most = checks.integer(most, "num_reranked", 0)
        size = max(k, most)
        scanned = min(len(self), size if self.pairs is None else pairwise.WIDER * size)
        selector = None if filter is None else vector_ids.selector(filter)
        found = np.full((len(vectors), k), np.inf, np.float32)
        ids = np.full((len(vectors), k), -1, np.int64)
        for span in spans(len(vectors), QUERY_BLOCK):
            block, stretch = self._as_long_as_rows(vectors[span])
            best: Sequence[np.ndarray] = scan.search(
                self.lists, len(self.tables), block, scanned, num_probes, ef_search, selector
            )
            if self.pairs is not None and most:
                _, *best = rerank.first(size, self._rough(block, *best), *best)
            own = (
                self._distances(self.prepared, block, *best) if most else self._rough(block, *best)
            )
            near, _, ids[span], *_ = rerank.first(k, own, *best)
            found[span] = near * stretch
        return found, ids

    def tune(self, queries: Vectors, neighbours: np.ndarray, k: int = 10) -> list[tuning.Point]:
        """Measures settings of a search, as `search.tune.tune` says, and keeps the best.

        They replace earlier ones of the same k, and `save` saves them. Measure again once other
        vectors are in the index, or on another machine.

        Args:
          queries: [Q, D].
          neighbours: [Q, k or more], the ids of the vectors truly nearest to each.
          k: neighbours of each query.
        """
        found = tuning.tune(self, queries, neighbours, k)
        self.points = [point for point in self.points if point["k"] != k] + found
        return found

    def point_for(self, recall: float, k: int = 10) -> tuning.Point:
        """The fastest point whose k-recall@k reached `recall`; raises `InputError` without."""
        return tuning.cheapest(self.points, recall, k)

    def remove(self, ids: Ids) -> int:
        """Removes vectors by id; returns how many of the ids were there."""
        self._require_memory()
        faiss = optional.faiss(scan.WANTED)
        asked = vector_ids.checked(ids)
        return int(self.lists.remove_ids(faiss.IDSelectorBatch(asked))) if len(asked) else 0

    def merge(self, other: "Index") -> None:
        """Adds the vectors of another index with the same model, lists and decoder.

        Raises:
          InputError: they differ in one of these, or share an id; then nothing is added.
        """
        self._require_memory()
        if self.fingerprint != other.fingerprint:
            raise InputError(
                "the indexes differ in model, lists, decoder or reading; build one with `build` "
                "and add the parts to copies of it"
            )
        self._check_new(other.ids())
        for number in range(other.lists.nlist):
            ids, packed = scan.entries(other.lists, number)
            if len(ids):
                scan.add(self.lists, np.full(len(ids), number), packed, ids)
        self.next_id = max(self.next_id, other.next_id)

    def ids(self) -> np.ndarray:
        """The ids of all vectors, [N] int64, in the order of the lists."""
        faiss = optional.faiss(scan.WANTED)
        found = [np.zeros(0, np.int64)]
        for number in range(self.lists.nlist):
            if size := self.lists.invlists.list_size(number):
                pointer = self.lists.invlists.get_ids(number)
                found.append(faiss.rev_swig_ptr(pointer, size).copy())
                self.lists.invlists.release_ids(number, pointer)
        return np.concatenate(found)

    def reconstruct(self, ids: Ids) -> np.ndarray:
        """Reconstructions [n, D] float32 of vectors by id, by the network.

        Raises:
          InputError: an id that the index does not have; names the first.
        """
        asked = vector_ids.checked(ids)
        lists, packed = scan.find(self.lists, asked, range(self.lists.nlist))
        if (lists < 0).any():
            raise InputError(
                f"the index has no vector with the id {asked[lists < 0][0]}; `Index.ids` lists all"
            )
        codes, _ = self._unpacked(packed, lists)
        return np.asarray(coding.decode(self.model, codes))

    def _require_memory(self) -> None:
        """Refuses to change lists that lie in a file."""
        if scan.is_mapped(self.lists):
            raise InputError(
                "the index is read from its file as it is searched, so it cannot be changed; load "
                "it without mmap"
            )

    def _checked_codes(self, codes: Vectors | None) -> Rows | None:
        if codes is None:
            return None
        columns = len(self.model.column_sizes)
        rows = lazily(codes)
        if rows.ndim != 2 or rows.shape[1] != columns or rows.dtype.kind not in "iu":
            raise InputError(
                f"the codes are {rows.dtype} {rows.shape}; expected integers [N, {columns}], as "
                "`encode` gives them (`unpack` reads packed ones)"
            )
        return rows

    def new_ids(self, ids: Ids | None, count: int) -> np.ndarray:
        """The ids [N] int64 that `add` gives N vectors; raises `InputError` if one is taken."""
        if ids is None:
            left = vector_ids.MAX_ID + 1 - self.next_id
            if count > left:
                raise InputError(
                    f"{left} ids are left after {self.next_id - 1}, and there are {count} vectors; "
                    "give ids"
                )
            return np.arange(self.next_id, self.next_id + count, dtype=np.int64)
        found = vector_ids.checked(ids)
        if len(found) != count:
            raise InputError(f"got {len(found)} ids for {count} vectors; give one for each")
        self._check_new(found)
        return found

    def _check_new(self, ids: np.ndarray) -> None:
        sorted_ids = np.sort(ids)
        twice = sorted_ids[1:][sorted_ids[1:] == sorted_ids[:-1]]
        if len(ids) and sorted_ids[0] < self.next_id:
            twice = np.concatenate([twice, np.intersect1d(ids, self.ids())])
        if len(twice):
            raise InputError(
                f"the id {twice[0]} is there twice; remove that vector first or give another id"
            )

    def _encoded(
        self, x: np.ndarray | None, codes: np.ndarray | None, begin: int
    ) -> tuple[np.ndarray, np.ndarray]:
        """Lists [R] and packed codes [R, bytes] of vectors, of codes, or of both."""
        if codes is None:
            assert x is not None
            codes = np.asarray(coding.encode(self.model, x))
        codes = packing.check_range(self.model.column_sizes, codes, begin)
        decoded = np.asarray(coding.decode(self.model, codes))
        target, x_hat = self._in_space(decoded if x is None else x), decoded
        if self.metric == "l2":
            x_hat = self._in_space(decoded)
        if self.lists.by_residual:
            lists, columns = codes[:, 0], codes[:, 1:]
            rough = self.list_vectors[lists] + additive.decode(self.tables, columns)
        else:
            lists, columns = scan.nearest_lists(self.lists, self.list_vectors, target), codes
            rough = additive.decode(self.tables, columns)
        kept = distance.values(self.metric, self.reading.kind, Measured(target, x_hat, rough))
        if x is None and self.reading.kind == "scale":  # a reconstruction would always say 1
            low, step = float(self.reading.low[0]), float(self.reading.step[0])
            kept[:, 0] = low + step * (distance.LEVELS // 2)
        levels = distance.to_bytes(self.reading, kept)
        return lists, scan.pack(columns, levels, self.model.codebook_size)

    def _unpacked(self, packed: np.ndarray, lists: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Codes [n, columns] int32 of the model and bytes [n] of packed ones in their lists."""
        num_columns = len(self.tables)
        num_bytes = len(self.reading.low)
        codes, levels = scan.unpack(packed, num_columns, self.model.codebook_size, num_bytes)
        if self.lists.by_residual:
            codes = np.concatenate([lists[:, None].astype(np.int32), codes], axis=1)
        return codes, levels

    def _queries(self, queries: Vectors) -> np.ndarray:
        vectors = lazily(checks.vectors(queries, self.model.dim, "the queries"))
        if vectors.ndim != 2:
            raise InputError(f"the queries have shape {vectors.shape}; expected [Q, D]")
        limit = checks.FLOAT32_MAX if self.metric == "cosine" else coding.LARGEST
        return self._in_space(checks.finite(vectors, 0, "the queries", limit))

    def _as_long_as_rows(self, queries: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Queries [Q, D], and [Q, 1] by which distances from them have to be multiplied.

        What the scan adds for a byte suits queries as long as the rows that it was fitted on. The
        length of a query changes no order of inner products.
        """
        stretch = np.ones((len(queries), 1), np.float32)
        if self.metric == "ip" and self.reading.squared_length > 0:
            lengths = np.linalg.norm(queries, axis=1, keepdims=True)
            usual = np.sqrt(np.asarray(self.reading.squared_length))
            np.divide(lengths, usual, out=stretch, where=lengths > 0)
        return queries / stretch, stretch

    def _in_space(self, x: np.ndarray) -> np.ndarray:
        return distance.in_space(x, self.metric, np.asarray(self.reading.origin))

    def _distances(
        self, decoder: Any, queries: np.ndarray, scores: np.ndarray, ids: np.ndarray,
        lists: np.ndarray, packed: np.ndarray,
    ) -> np.ndarray:  # fmt: skip
        """Distances [Q, S] by the network or by pairs; inf where there is no code."""
        size = next(size for size in QUERY_SIZES if size >= len(queries))
        if size > len(queries):
            more = (0, size - len(queries)), (0, 0)
            queries, ids, lists = np.pad(queries, more), np.pad(ids, more), np.pad(lists, more)
            packed = np.pad(packed, (*more, (0, 0)))
        there = ids >= 0
        flat = np.where(there.ravel()[:, None], packed.reshape(-1, packed.shape[2]), 0)
        codes, levels = self._unpacked(flat, lists.ravel())
        if decoder is self.pairs and not self.lists.by_residual:
            codes = np.concatenate([lists.reshape(-1, 1).astype(np.int32), codes], axis=1)
        origin = self.reading.origin if decoder is self.prepared else jnp.zeros(self.model.dim)
        found = rerank.distances(
            decoder,
            self.reading,
            origin,
            queries,
            codes.reshape(*ids.shape, codes.shape[1]),
            levels.reshape(*ids.shape, levels.shape[1]),
        )
        return np.where(there, found, np.inf)[: len(scores)]

    def _rough(self, queries: np.ndarray, *shortlist: np.ndarray) -> np.ndarray:
        """Distances [Q, S] by pairs or by the additive decoder; inf where there is no code."""
        if self.pairs is not None:
            return self._distances(self.pairs, queries, *shortlist)
        scores, ids, *_ = shortlist
        found = distance.of_scores(self.reading, queries, np.where(ids < 0, 0, scores))
        return np.where(ids >= 0, found, np.inf).astype(np.float32)
