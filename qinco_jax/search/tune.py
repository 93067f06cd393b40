"""Operating points: what an index reaches at which settings, and the cheapest that reach enough."""

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, Protocol

import numpy as np

from qinco_jax import numbers
from qinco_jax.errors import InputError
from qinco_jax.search import scan
from qinco_jax.vectors import checks
from qinco_jax.vectors.stored import Vectors

SETTINGS = "num_probes", "num_reranked", "ef_search"
SPEED = "queries_per_second"
GAIN = 0.002  # of a recall: what gains less is not tried further, nor kept
REPEATS, SECONDS = 3, 1.0  # of a point that is kept, whichever ends first
WARMED, ALONE = 256, 200  # queries that compile, and that are timed one by one at most
LEAST_EF = 16

Point = dict[str, Any]
"""One row: k, `SETTINGS`, the measures of `recalls(k)`, `SPEED`, p50_ms, p99_ms, vectors."""


class Searched(Protocol):
    """What is tuned: an `Index`."""

    list_vectors: np.ndarray
    next_id: int

    def __len__(self) -> int:
        """The number of vectors."""

    def search(
        self, queries: np.ndarray, k: int, *, num_probes: int, num_reranked: int, ef_search: int
    ) -> tuple[np.ndarray, np.ndarray]:
        """Distances and ids [Q, k]."""


def recalls(k: int) -> tuple[str, ...]:
    """The names of the measures: recall@1, recall@k, k-recall@k."""
    return tuple(dict.fromkeys(("recall@1", f"recall@{k}", f"{k}-recall@{k}")))


def tune(index: Searched, queries: Vectors, neighbours: np.ndarray, k: int = 10) -> list[Point]:
    """Measures settings of a search and keeps the best: more of a recall for less of the speed.

    Settings grow in powers of two, each until no recall gains by it. Each is searched with once;
    those that seem best are timed again. Times are this machine's: of all queries in one call, the
    fastest of up to four, and of queries one by one.

    Args:
      index: of at least k vectors.
      queries: [Q, D], any real dtype.
      neighbours: [Q, k or more] integers, the ids of the vectors nearest to each query, nearest
        first, by the index's metric. An index keeps no vectors to find them in: search for them
        exactly elsewhere, or take a set's ground truth.
      k: neighbours of each query.

    Returns:
      The Pareto front of the three recalls against queries a second, as of `front`. recall@1
      and recall@k are the shares of queries whose true nearest is the first, or among the k found;
      k-recall@k is the share of the k true nearest that are among the k found. They count ids, so
      a copy of a true neighbour that `neighbours` does not name is a miss. `ef_search` is `None`
      where no graph finds the lists.

    Raises:
      InputError: no queries, or neighbours of another shape, dtype or index.
    """
    k = numbers.integer(k, "k", 1)
    x = checks.finite(np.asarray(checks.vectors(queries, what="the queries")), what="the queries")
    truth = _checked(np.asarray(neighbours), index, len(x), k)

    compiled: set[int] = set()

    def measured(num_probes: int, ef_search: int | None, num_reranked: int) -> Point:
        point = dict(zip(SETTINGS, (num_probes, num_reranked, ef_search), strict=True))
        if num_reranked not in compiled:
            _search(index, x[:WARMED], k, point)
            compiled.add(num_reranked)
        return {"k": k, **point, **_measured(index, x, truth, k, point)}

    graph = len(index.list_vectors) > scan.FLAT
    found = _growing(
        _powers(1, len(index.list_vectors)),
        lambda probes: _growing(
            _powers(max(LEAST_EF, probes), len(index.list_vectors)) if graph else [None],
            lambda ef: _growing(
                [0, *_powers(2 * k, len(index))], lambda rows: [measured(probes, ef, rows)], k
            ),
            k,
        ),
        k,
    )
    points = front([{**point, **_speed(index, x, k, point)} for point in front(found, k)], k)
    facts = {"vectors": len(index), "num_queries": len(x)}
    return [{**point, **_latency(index, x, k, point), **facts} for point in points]


def front(points: Sequence[Point], k: int) -> list[Point]:
    """The points that add `GAIN` or more to a recall of every faster one, the fastest first."""
    kept: list[Point] = []
    for point in sorted(points, key=lambda point: -point[SPEED]):
        own = [point[name] - GAIN for name in recalls(k)]
        faster = [[other[name] for name in recalls(k)] for other in kept]
        if not any(np.greater(other, own).all() for other in faster):
            kept.append(point)
    return kept


def cheapest(points: Sequence[Point], recall: float, k: int) -> Point:
    """The fastest point whose k-recall@k reached `recall`.

    Raises:
      InputError: no point of this k, none that reached it, or a recall that is not above 0 and at
        most 1.
    """
    recall = numbers.real(recall, "recall", 0, 1, above=True)
    own, measure = [point for point in points if point["k"] == k], f"{k}-recall@{k}"
    if not own:
        others = ", ".join(sorted({f"k = {point['k']}" for point in points})) or "none"
        raise InputError(
            f"the index has no operating points for k = {k} (there are: {others}); measure them "
            "with `tune`"
        )
    enough = [point for point in own if point[measure] >= recall]
    if not enough:
        best = max(own, key=lambda point: point[measure])
        raise InputError(
            f"no operating point reached a {measure} of {recall:g}; the best, {text(best)}, "
            f"reached {best[measure]:.3f}, so ask for that or for less"
        )
    return max(enough, key=lambda point: point[SPEED])


def settings(point: Point) -> dict[str, int]:
    """A point's arguments of `Index.search`."""
    return {name: point[name] for name in SETTINGS if point[name] is not None}


def text(point: Point) -> str:
    """A point's settings in words."""
    return ", ".join(f"{name} = {value}" for name, value in settings(point).items())


def _checked(neighbours: np.ndarray, index: Searched, count: int, k: int) -> np.ndarray:
    shape = neighbours.shape
    if neighbours.dtype.kind not in "iu" or len(shape) != 2 or len(neighbours) != count:
        raise InputError(
            f"the neighbours are {neighbours.dtype} {shape}; expected integers [{count}, {k}], "
            "the ids nearest to each query"
        )
    if count == 0 or shape[1] < k:
        raise InputError(
            f"got {count} queries with {shape[1]} neighbours each; tuning for k = {k} takes at "
            "least one query and k neighbours of each"
        )
    truth = neighbours[:, :k]
    if truth.min() < 0 or truth.max() >= index.next_id:
        raise InputError(
            f"the neighbours have ids from {truth.min()} to {truth.max()}, but those of the index "
            f"end at {index.next_id - 1}; give the neighbours among the vectors of this index"
        )
    return truth


def _powers(first: int, last: int) -> Iterator[int]:
    """First, twice that and so on, and at the end `last`."""
    while first < last:
        yield first
        first *= 2
    yield last


def _growing(values: Iterable[Any], measure: Callable[[Any], list[Point]], k: int) -> list[Point]:
    """The points of growing values, up to the first that adds less than `GAIN` to every recall."""
    found: list[Point] = []
    best = np.full(len(recalls(k)), -np.inf)
    for value in values:
        points = measure(value)
        found += points
        reached = np.max([[point[name] for name in recalls(k)] for point in points], axis=0)
        if (reached < best + GAIN).all():
            break
        best = np.maximum(best, reached)
    return found


def _search(index: Searched, queries: np.ndarray, k: int, point: Point) -> tuple[np.ndarray, float]:
    """Ids [Q, k], and the seconds taken."""
    begin = time.perf_counter()
    _, ids = index.search(queries, k, **settings(point))
    return ids, time.perf_counter() - begin


def _measured(
    index: Searched, queries: np.ndarray, truth: np.ndarray, k: int, point: Point
) -> Point:
    """The recalls of a search with a point's settings, and its speed that once."""
    ids, taken = _search(index, queries, k, point)
    hits = ids == truth[:, :1]
    both = (ids[:, :, None] == truth[:, None, :]).any(axis=1)
    values = hits[:, 0].mean(), hits.any(axis=1).mean(), both.mean()
    names = "recall@1", f"recall@{k}", f"{k}-recall@{k}"
    return {**dict(zip(names, map(float, values), strict=True)), SPEED: len(ids) / taken}


def _speed(index: Searched, queries: np.ndarray, k: int, point: Point) -> dict[str, float]:
    """Queries a second of the fastest call, the one that measured recall among them."""
    taken = [len(queries) / point[SPEED]]
    while len(taken) <= REPEATS and sum(taken[1:]) < SECONDS:
        taken.append(_search(index, queries, k, point)[1])
    return {SPEED: len(queries) / min(taken)}


def _latency(index: Searched, queries: np.ndarray, k: int, point: Point) -> dict[str, float]:
    """How long queries take that come one at a time."""
    _search(index, queries[:1], k, point)
    taken = list[float]()
    for query in queries[:ALONE]:
        taken.append(_search(index, query[None], k, point)[1])
        if sum(taken) > SECONDS:
            break
    p50, p99 = 1000 * np.percentile(taken, (50, 99))
    return {"p50_ms": float(p50), "p99_ms": float(p99)}
