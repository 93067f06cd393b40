"""What a request asks for, checked before it waits beside others, and the answer's two forms.

As JSON, a body is {"vectors": [[...]], "k": 10, ...} and its answer {"ids": ..., "distances": ...}.
In binary, a body is rows of little-endian float32, the settings are in the query string, and the
answer is Q k ids as little-endian int64, then Q k distances as little-endian float32.
"""

import abc
import dataclasses
import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from qinco_jax import numbers
from qinco_jax.errors import InputError, unknown
from qinco_jax.search import ids as vector_ids
from qinco_jax.search.ids import MAX_ID
from qinco_jax.search.searcher import NUM_PROBES, Searcher
from qinco_jax.vectors import checks

JSON, BINARY = "application/json", "application/octet-stream"
FEWEST_RERANKED = 20  # that a search asks for by default


class Refused(Exception):
    """A request that gets an HTTP status of its own instead of an answer."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


class Incomplete(Searcher):
    """An index of which parts may be missing for a while."""

    @property
    @abc.abstractmethod
    def missing(self) -> list[str]:
        """The parts that do not answer now."""

    @abc.abstractmethod
    def partly(
        self, queries: np.ndarray, k: int, **settings: Any
    ) -> tuple[np.ndarray, np.ndarray, list[str]]:
        """As `search`, among the parts that answer; and the names of the others."""


@dataclasses.dataclass(frozen=True)
class Limits:
    """What a server takes.

    Attributes:
      max_bytes: of a request's body.
      max_rows: vectors of a request.
      max_k: neighbours of a vector; twice as many codes may be re-ranked.
      max_queue: vectors that wait to be searched.

    Raises:
      InputError: a limit is less than 1, or the queue is shorter than a request.
    """

    max_bytes: int = 2**24
    max_rows: int = 1024
    max_k: int = 1000
    max_queue: int = 16384

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            numbers.integer(getattr(self, field.name), field.name, 1)
        if self.max_queue < self.max_rows:
            raise InputError(
                f"a queue of {self.max_queue} vectors cannot take a request of {self.max_rows}; "
                "raise max_queue or lower max_rows"
            )


@dataclasses.dataclass(frozen=True)
class Settings:
    """How to search; requests that agree in it are searched together.

    Attributes:
      k: neighbours of each vector.
      num_probes: inverted lists that are scanned.
      num_reranked: codes that the network decodes; `None` leaves it to the search.
      filter: ids that may be found, int64 as bytes; `None` means all.
      partial: whether an answer without the parts that are missing is wanted, too.
    """

    k: int = 10
    num_probes: int = NUM_PROBES
    num_reranked: int | None = None
    filter: bytes | None = None
    partial: bool = False

    def search(
        self, index: Searcher, x: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray, Sequence[str]]:
        """Distances [Q, k] float32 and ids [Q, k] int64 of queries [Q, D], and what is missing."""
        allowed = None if self.filter is None else np.frombuffer(self.filter, np.int64)
        options: dict[str, Any] = {
            "num_probes": self.num_probes, "num_reranked": self.num_reranked, "filter": allowed
        }  # fmt: skip
        if self.partial and isinstance(index, Incomplete):
            return index.partly(x, self.k, **options)
        return (*index.search(x, self.k, **options), ())


def parse(
    body: bytes, media_type: str, query: Mapping[str, str], index: Searcher, limits: Limits
) -> tuple[np.ndarray, Settings]:
    """The vectors [Q, D] float32 of a request and how to search for them.

    Args:
      body: of the request.
      media_type: of the body, `JSON` or `BINARY`.
      query: settings as text; those of a JSON body come before them.
      index: that is to be searched.
      limits: of the server.

    Raises:
      InputError: vectors or settings that cannot be used; says which and why.
      Refused: another media type.
    """
    given = _from_query(query)
    if media_type == BINARY:
        vectors = _from_binary(body, index.model.dim)
    elif media_type == JSON:
        vectors, fields = _from_json(body)
        given |= fields
    else:
        raise Refused(415, f"the content type is {media_type!r}; send {JSON} or {BINARY}")
    return _checked(vectors, index.model.dim, limits), _settings(given, index, limits)


def answer(
    distances: np.ndarray, ids: np.ndarray, missing: Sequence[str], media_type: str
) -> bytes:
    """The body of an answer, in the form of its request.

    Args:
      distances: [Q, k] float32; in JSON, those that are not finite become null.
      ids: [Q, k] int64, -1 where fewer than k were found.
      missing: the parts of the index that did not answer, if any; only JSON has a place for them.
      media_type: of the request.
    """
    if media_type == BINARY:
        return ids.astype("<i8").tobytes() + distances.astype("<f4").tobytes()
    kept = distances.astype(object)
    kept[~np.isfinite(distances)] = None
    found: dict[str, Any] = {"ids": ids.tolist(), "distances": kept.tolist()}
    return json.dumps(found | ({"missing": list(missing)} if missing else {})).encode()


def _from_query(query: Mapping[str, str]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, text in query.items():
        try:
            numbers = [int(part) for part in text.split(",") if part]
        except ValueError:
            raise InputError(f"{name} must be an integer, got {text[:50]!r}") from None
        found[name] = numbers if name == "filter" or len(numbers) != 1 else numbers[0]
    return found


def _from_binary(body: bytes, dim: int) -> np.ndarray:
    if len(body) % (4 * dim):
        raise InputError(
            f"the body has {len(body)} bytes, no multiple of the {4 * dim} of one vector; send "
            f"rows of {dim} little-endian float32"
        )
    return np.frombuffer(body, "<f4").reshape(-1, dim)


def _from_json(body: bytes) -> tuple[np.ndarray, dict[str, Any]]:
    try:
        fields = json.loads(body)
    except (ValueError, RecursionError) as error:
        raise InputError(f"the body is not JSON ({str(error)[:200]}); send an object") from None
    if not isinstance(fields, dict) or "vectors" not in fields:
        raise InputError('the body has no "vectors"; send an object like {"vectors": [[...]]}')
    try:
        vectors = np.asarray(fields.pop("vectors"))
    except (ValueError, OverflowError):  # of rows that differ in length, and of great integers
        raise InputError("vectors is no matrix of numbers; send rows of one length") from None
    return vectors, {name: value for name, value in fields.items() if value is not None}


def _checked(vectors: np.ndarray, dim: int, limits: Limits) -> np.ndarray:
    if vectors.ndim != 2 or len(vectors) == 0:
        raise InputError(f"vectors has shape {vectors.shape}; send at least one row, [Q, {dim}]")
    checks.vectors(vectors, dim, "vectors")
    if len(vectors) > limits.max_rows:
        raise InputError(
            f"the request has {len(vectors)} vectors, and this server takes {limits.max_rows} at "
            "once; send several requests"
        )
    return checks.finite(vectors, what="vectors").astype(np.float32)


def _settings(given: dict[str, Any], index: Searcher, limits: Limits) -> Settings:
    known = [field.name for field in dataclasses.fields(Settings)]
    for name in given:
        if name not in known:
            raise InputError(unknown("field", name, ["vectors", *known]))
    default = Settings()
    k = numbers.integer(given.get("k", default.k), "k", 1)
    reranked = given.get("num_reranked")
    if reranked is not None:
        reranked = numbers.integer(reranked, "num_reranked")
    for name, number, most in (
        ("k", k, min(limits.max_k, len(index))),
        ("num_reranked", reranked, max(FEWEST_RERANKED, 2 * limits.max_k)),
    ):
        if number is not None and number > most:
            raise InputError(f"{name} = {number} exceeds the {most} of this server; lower it")
    num_probes = numbers.integer(given.get("num_probes", default.num_probes), "num_probes", 1)
    allowed = _filter(given["filter"]) if "filter" in given else None
    partial = given.get("partial", False)
    if partial not in (0, 1):  # True and False among them
        raise InputError(f"partial must be true or false, got {str(partial)[:50]!r}")
    return Settings(k, num_probes, reranked, allowed, bool(partial))


def _filter(ids: Any) -> bytes:
    try:
        return vector_ids.checked(ids).tobytes()
    except (ValueError, OverflowError) as error:
        raise InputError(f"filter must be a list of ids, integers from 0 to {MAX_ID}") from error
