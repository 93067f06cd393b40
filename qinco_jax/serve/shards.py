"""Shards that Ray Serve runs, some replicas of each, searched like one index."""

import contextlib
import dataclasses
import logging
import os
import threading
import time
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import jax
import numpy as np

from qinco_jax import numbers
from qinco_jax.errors import InputError
from qinco_jax.search import manifest
from qinco_jax.search.manifest import Manifest
from qinco_jax.search.searcher import Asked, Shortlist
from qinco_jax.search.sharded import merged
from qinco_jax.serve.requests import Incomplete, Refused

SHARD_SECONDS = 10.0  # that a shard has for an answer
FEWEST_QUERIES = 8  # that are ranked apart from others
HEALTH_SECONDS = 2.0  # after which Ray Serve looks whether a replica lives
LOOK_SECONDS = 0.2  # after which a lost shard is asked again

logger = logging.getLogger("uvicorn.error")


class Deployed(Incomplete):
    """The shards of a manifest behind Ray Serve.

    A query goes to every shard for its shortlist; the merged one is ranked by all of them, each for
    a share of the queries. What a lost replica was asked, another one of its shard is asked; a
    shard without any is missing until it answers again.
    """

    def __init__(
        self, ray: Any, known: Manifest, replicas: int, *, mmap: bool = False,
        compute_dtype: str | None = None, seconds: float = SHARD_SECONDS,
    ) -> None:  # fmt: skip
        """Deploys the shards and waits until all can answer.

        Args:
          ray: the module, connected.
          known: whose shards are served.
          replicas: of each shard.
          mmap: whether the lists stay in their files.
          compute_dtype: of the network that re-ranks.
          seconds: that a shard has for an answer.

        Raises:
          InputError: a shard is missing or another's, or Ray Serve cannot start them.
        """
        self.ray, self.seconds = ray, seconds
        self.replicas = numbers.integer(replicas, "replicas", 1)
        self.options = mmap, compute_dtype
        self.points, self.lost = [], set[int]()
        self._partial, self._absent, self._turn = False, set[int](), 0
        self._take(known)
        try:
            self.handles = self._deployed()
        except BaseException:
            self.stop()
            raise

    def _take(self, known: Manifest) -> None:
        """Checks a manifest's shards, and takes what a search needs of the first."""
        for shard in known.shards:
            manifest.check(known, shard)
        first = manifest.load(known, known.shards[0], mmap=True)
        self.known, self.model, self.reading = known, first.model, first.reading
        self.pairs, self.list_vectors, self.next_id = first.pairs, first.list_vectors, len(known)

    def _deployed(self) -> list[Any]:
        """Starts the replicas, or replaces those that run by new ones, some at a time."""
        from ray import serve

        logging.getLogger("ray.serve").setLevel(logging.ERROR)
        serve.start(proxy_location="Disabled")
        cores = self.ray.cluster_resources().get("CPU", 0)
        share = cores / (len(self.known.shards) * self.replicas)
        num_cpus = int(share) if share >= 1 else int(1000 * share) / 1000
        alone = sum(node["Alive"] for node in self.ray.nodes()) == 1
        compiled = jax.config.values["jax_compilation_cache_dir"] if alone else None
        kind = _replica(max(1, int(share)) if alone else 0, len(self.known.shards), compiled)
        deployment: Any = serve.deployment(
            kind, num_replicas=self.replicas, ray_actor_options={"num_cpus": num_cpus},
            health_check_period_s=HEALTH_SECONDS, max_ongoing_requests=4,
            graceful_shutdown_timeout_s=self.seconds,
        )  # fmt: skip
        folder = str(self.known.folder.absolute())
        targets = [
            serve.RunTarget(
                deployment.bind(folder, number, *self.options), name=name, route_prefix=None
            )
            for number, name in enumerate(self._names())
        ]
        try:
            return list(serve.run_many(targets))
        except (RuntimeError, TimeoutError) as error:
            reason = str(error).strip().splitlines()[-1][:300]
            raise InputError(f"Ray Serve cannot start the shards ({reason})") from error

    def restart(self) -> None:
        """Reads the manifest again and replaces the replicas one after the other.

        Raises:
          InputError: the index in its folder no longer answers as the one that is served.
        """
        known = manifest.read(self.known.folder)
        same = known.fitted_sha256 == self.known.fitted_sha256
        if not same or len(known.shards) != len(self.handles):
            raise InputError(
                f"{known.folder} now holds another index or number of shards; stop this server and "
                "start a new one"
            )
        self._take(known)
        self._deployed()

    def stop(self) -> None:
        """Ends all replicas."""
        from ray import serve

        def delete(name: str) -> None:
            with contextlib.suppress(Exception):  # whatever is gone need not be ended
                serve.delete(name)

        with ThreadPoolExecutor() as pool:
            list(pool.map(delete, self._names()))

    def __len__(self) -> int:
        """The number of vectors in all shards."""
        return len(self.known)

    @property
    def missing(self) -> list[str]:
        """The shards that do not answer now."""
        return self._names_of(self.lost)

    def search(self, *args: Any, **settings: Any) -> tuple[np.ndarray, np.ndarray]:
        """As `Searcher.search`; raises `Refused` if a shard is missing."""
        self._partial, self._absent = False, set()
        return super().search(*args, **settings)

    def partly(
        self, queries: np.ndarray, k: int, **settings: Any
    ) -> tuple[np.ndarray, np.ndarray, list[str]]:
        """As `search`, among the shards that answer; and the names of the others."""
        self._partial, self._absent = True, set()
        distances, ids = super().search(queries, k, **settings)
        return distances, ids, self._names_of(self._absent)

    def shortlist(self, queries: np.ndarray, asked: Asked) -> Shortlist:
        """As `Searcher.shortlist`, of the shards that answer."""
        calls = {number: self._call(number, "shortlist", queries, asked) for number in self._live()}
        found = [self._answer(number, calls[number]) for number in calls]
        self._absent |= set(range(len(self.handles))) - {
            number for number, one in zip(calls, found, strict=True) if one is not None
        }
        there = [one for one in found if one is not None]
        if self._absent and (not there or not self._partial):
            raise self._refusal()
        return merged(there, asked.scanned)

    def ranked(
        self, queries: np.ndarray, shortlist: Shortlist, asked: Asked
    ) -> tuple[np.ndarray, np.ndarray]:
        """As `Searcher.ranked`; any shard can rank any shortlist."""
        asked, live = dataclasses.replace(asked, filter=None), self._live()
        count = max(1, min(len(live), len(queries) // FEWEST_QUERIES))
        rows = np.array_split(np.arange(len(queries)), count)
        self._turn += 1
        pieces = []
        for place, some in enumerate(rows):
            number = live[(self._turn + place) % len(live)] if live else 0
            given = queries[some], Shortlist(*(part[some] for part in shortlist)), asked
            pieces.append((number, given, self._call(number, "ranked", *given)))
        found = [self._ranked_anyhow(*piece) for piece in pieces]
        near, ids = (np.concatenate(part) for part in zip(*found, strict=True))
        return near, ids

    def _ranked_anyhow(self, number: int, given: tuple[Any, ...], call: "Call") -> Any:
        """The answer of a shard, or if it is lost of another one."""
        while (found := self._answer(number, call)) is None:
            live = self._live()
            if not live:
                raise self._refusal()
            number = live[0]
            call = self._call(number, "ranked", *given)
        return found

    def _live(self) -> list[int]:
        return [number for number in range(len(self.handles)) if number not in self.lost]

    def _call(self, number: int, method: str, *args: Any) -> "Call":
        return Call(getattr(self.handles[number], method), args, time.monotonic() + self.seconds)

    def _answer(self, number: int, call: "Call") -> Any:
        """What a shard answers; `None` if it is lost."""
        from ray.serve.exceptions import RayServeException

        for _ in range(self.replicas):
            try:
                return call.answer()
            except self.ray.exceptions.RayActorError:  # its process has died
                call = call.again()
            except (TimeoutError, RayServeException):
                break
        self._miss(number)
        return None

    def _miss(self, number: int) -> None:
        """Asks a lost shard nothing more until it answers again."""
        if number in self.lost:
            return
        self.lost.add(number)
        name = self.known.shards[number].name
        logger.warning("%s does not answer; requests wait for none of it", name)

        def look() -> None:
            while number in self.lost:
                time.sleep(LOOK_SECONDS)
                with contextlib.suppress(Exception):  # as long as it is not back
                    self.handles[number].process.remote().result(timeout_s=self.seconds)
                    self.lost.discard(number)
                    logger.warning("%s answers again", name)

        threading.Thread(target=look, daemon=True).start()

    def _refusal(self) -> Refused:
        names = ", ".join(self._names_of(self._absent or self.lost))
        return Refused(
            503,
            f"{names} cannot answer now; send the request again later, or with "
            '"partial": true for an answer without',
        )

    def _names_of(self, numbers: Iterable[int]) -> list[str]:
        return [self.known.shards[number].name for number in sorted(numbers)]

    def _names(self) -> list[str]:
        """Of the applications of Ray Serve."""
        return [f"qinco-{self.known.fitted_sha256[:12]}-{s.name}" for s in self.known.shards]


class Call:
    """A call to a shard, which can be repeated."""

    def __init__(self, method: Any, args: Sequence[Any], until: float) -> None:
        self.method, self.args, self.until = method, args, until
        self.response = method.remote(*args)

    def answer(self) -> Any:
        """What it returns; raises `TimeoutError` after its time."""
        try:
            return self.response.result(timeout_s=max(0.0, self.until - time.monotonic()))
        except TimeoutError:
            self.response.cancel()
            raise

    def again(self) -> "Call":
        """The same call anew, in the time that is left."""
        return Call(self.method, self.args, self.until)


def _replica(num_cores: int, num_shards: int, compiled: str | None) -> type:
    """What a replica runs: one shard's scan, and the ranking of any shortlist.

    Ray knows the class by value, so that its process takes cores of its own before anything that
    counts them is imported.
    """

    class Replica:  # without types of ours, which would be imported first
        def __init__(self, folder: str, number: int, mmap: bool, compute_dtype: str | None) -> None:
            from ray import serve

            rank = getattr(serve.get_replica_context(), "rank", 0)
            place = number + num_shards * getattr(rank, "rank", rank)
            if num_cores and hasattr(os, "sched_setaffinity"):
                cores = sorted(os.sched_getaffinity(0))
                first = place * num_cores % len(cores)
                os.sched_setaffinity(0, (cores + cores)[first : first + num_cores])
            if compiled:
                os.environ["JAX_COMPILATION_CACHE_DIR"] = compiled
            from qinco_jax.serve.loading import warm_shard

            self.index: Any = warm_shard(folder, number, mmap, compute_dtype)

        def shortlist(self, queries: Any, asked: Any) -> Any:
            return self.index.shortlist(queries, asked)

        def ranked(self, queries: Any, shortlist: Any, asked: Any) -> Any:
            return self.index.ranked(queries, shortlist, asked)

        def process(self) -> int:
            return os.getpid()

    return Replica
