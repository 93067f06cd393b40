"""How a search goes, for one index and for several that answer as one: scan, then rank."""

import abc
import dataclasses
import functools
from typing import Any, NamedTuple

import numpy as np

from qinco_jax import numbers
from qinco_jax.errors import InputError
from qinco_jax.quantizers import precision
from qinco_jax.quantizers.coding import Model
from qinco_jax.search import distance, pairwise
from qinco_jax.search import ids as vector_ids
from qinco_jax.search import tune as tuning
from qinco_jax.search.distance import Reading
from qinco_jax.search.ids import Filter
from qinco_jax.search.pairwise import Pairs
from qinco_jax.vectors import checks
from qinco_jax.vectors.stored import Vectors, lazily, spans

QUERY_BLOCK = 512  # searched at once; fewer are filled up to one of `QUERY_SIZES`
QUERY_SIZES = 1, 2, 4, 8, 16, 32, 64, 128, 256, 384, QUERY_BLOCK
NUM_PROBES = 16
EF_SEARCH, MOST_EF = 64, 2**31 - 1


class Shortlist(NamedTuple):
    """What the scan finds for each query.

    Attributes:
      scores: [Q, S] float32, the greatest first.
      ids: [Q, S] int64, -1 where fewer are found.
      lists: [Q, S] int64.
      packed: [Q, S, bytes] uint8, the codes.
    """

    scores: np.ndarray
    ids: np.ndarray
    lists: np.ndarray
    packed: np.ndarray


@dataclasses.dataclass(frozen=True)
class Asked:
    """What a search asks for, checked.

    Attributes:
      k: neighbours of each query.
      num_probes: inverted lists that are scanned.
      num_reranked: codes that the network decodes, 0 for none.
      ef_search: how thoroughly the nearest of many lists are searched for.
      scanned: codes that the scan names, over all shards.
      filter: ids that may be found; `None` means all.
    """

    k: int
    num_probes: int
    num_reranked: int
    ef_search: int
    scanned: int
    filter: Filter | None

    @property
    def ranked(self) -> int:
        """Codes that are left for the last stage."""
        return max(self.k, self.num_reranked)

    @functools.cached_property
    def selector(self) -> Any:
        """The filter as Faiss takes it."""
        return None if self.filter is None else vector_ids.selector(self.filter)


class Searcher(abc.ABC):
    """What is searched: an `Index`, or shards that answer as one.

    Attributes:
      model: whose codes are kept.
      reading: of the distances.
      pairs: the pairwise decoder, if there is one.
      list_vectors: [L, D] float32, of the inverted lists.
      points: what it reached at which settings, as `tune` measured.
      next_id: above all ids.
    """

    model: Model
    reading: Reading
    pairs: Pairs | None
    list_vectors: np.ndarray
    points: list[tuning.Point]
    next_id: int

    @abc.abstractmethod
    def __len__(self) -> int:
        """The number of vectors."""

    @abc.abstractmethod
    def shortlist(self, queries: np.ndarray, asked: Asked) -> Shortlist:
        """The codes [Q, `asked.scanned`] that score best; queries [Q, D] are `in_space`."""

    @abc.abstractmethod
    def ranked(
        self, queries: np.ndarray, shortlist: Shortlist, asked: Asked
    ) -> tuple[np.ndarray, np.ndarray]:
        """Distances and ids [Q, k] of the nearest of a shortlist; ties by id."""

    @property
    def metric(self) -> str:
        """By which distances are measured: l2, ip or cosine."""
        return self.reading.metric

    @precision.in_32_bits
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
        asked = self._asked(k, num_probes, num_reranked, ef_search, filter)
        found = np.full((len(vectors), asked.k), np.inf, np.float32)
        ids = np.full((len(vectors), asked.k), -1, np.int64)
        for span in spans(len(vectors), QUERY_BLOCK):
            block, stretch = self._as_long_as_rows(vectors[span])
            best = self.shortlist(block, asked)
            near, ids[span] = self.ranked(block, best, asked)
            found[span] = near * stretch
        return found, ids

    @precision.in_32_bits
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

    def _asked(
        self, k: int, num_probes: int, num_reranked: int | None, ef_search: int,
        filter: Filter | None,
    ) -> Asked:  # fmt: skip
        k = numbers.integer(k, "k", 1)
        if k > len(self):
            raise InputError(f"k = {k} exceeds the {len(self)} vectors of the index; lower it")
        num_probes = numbers.integer(num_probes, "num_probes", 1)
        ef_search = numbers.integer(ef_search, "ef_search", 1, MOST_EF)
        most = max(20, 2 * k) if num_reranked is None else num_reranked
        most = numbers.integer(most, "num_reranked", 0)
        size = max(k, most)
        scanned = min(len(self), size if self.pairs is None else pairwise.WIDER * size)
        return Asked(k, num_probes, most, ef_search, scanned, filter)

    def _queries(self, queries: Vectors) -> np.ndarray:
        vectors = lazily(checks.vectors(queries, self.model.dim, "the queries"))
        if vectors.ndim != 2:
            raise InputError(
                f"the queries have shape {vectors.shape}; expected [Q, D], so pass one vector x as "
                "x[None]"
            )
        limit = checks.FLOAT32_MAX if self.metric == "cosine" else checks.SQUARED_MAX
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
