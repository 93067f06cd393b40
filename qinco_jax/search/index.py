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
from qinco_jax.quantizers import additive, coding, packing, precision
from qinco_jax.quantizers.coding import Model
from qinco_jax.search import distance, pairwise, rerank, scan
from qinco_jax.search import ids as vector_ids
from qinco_jax.search import tune as tuning
from qinco_jax.search.distance import Measured, Reading
from qinco_jax.search.ids import Ids
from qinco_jax.search.pairwise import Pairs
from qinco_jax.search.searcher import QUERY_SIZES, Asked, Searcher, Shortlist
from qinco_jax.vectors import checks
from qinco_jax.vectors.stored import Rows, Vectors, lazily, spans

BLOCK_ROWS = 65536


@dataclasses.dataclass
class Index(Searcher):
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

    @precision.in_32_bits
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

    def shortlist(self, queries: np.ndarray, asked: Asked) -> Shortlist:
        """The codes that score best, as `Searcher.shortlist`."""
        return Shortlist(*scan.search(
            self.lists, len(self.tables), queries, asked.scanned, asked.num_probes,
            asked.ef_search, asked.selector,
        ))  # fmt: skip

    def ranked(
        self, queries: np.ndarray, shortlist: Shortlist, asked: Asked
    ) -> tuple[np.ndarray, np.ndarray]:
        """The nearest of a shortlist, as `Searcher.ranked`."""
        best: Sequence[np.ndarray] = shortlist
        if self.pairs is not None and asked.num_reranked:
            _, *best = rerank.first(asked.ranked, self._rough(queries, *best), *best)
        own = (
            self._distances(self.prepared, queries, *best)
            if asked.num_reranked
            else self._rough(queries, *best)
        )
        near, _, ids, *_ = rerank.first(asked.k, own, *best)
        return near, ids

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

    @precision.in_32_bits
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
        codes, _ = self.unpacked(packed, lists)
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

    def unpacked(self, packed: np.ndarray, lists: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Codes [n, columns] int32 of the model and bytes [n] of packed ones in their lists."""
        num_columns = len(self.tables)
        num_bytes = len(self.reading.low)
        codes, levels = scan.unpack(packed, num_columns, self.model.codebook_size, num_bytes)
        if self.lists.by_residual:
            codes = np.concatenate([lists[:, None].astype(np.int32), codes], axis=1)
        return codes, levels

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
        codes, levels = self.unpacked(flat, lists.ravel())
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
