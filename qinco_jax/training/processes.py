"""Training in several processes, on one host or many: who does what, and what all must know.

Every process runs the same program. The first one alone keeps the run's folder, logs, and makes
what must be the same in all: it tells the others (`told`, small values) or sends it (`shared`,
arrays). Each reads and computes its share of the rows. Where there is one process, nothing here
costs anything.
"""

import contextlib
import functools
import json
import socket
import threading
from collections.abc import Callable, Iterator, Mapping
from typing import Any, TypeVar

import jax
import numpy as np
from jax._src import distributed  # where the coordinator is has no public name
from jax.experimental import multihost_utils
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from qinco_jax.errors import InputError, differences
from qinco_jax.training import endings

T = TypeVar("T")

START_SECONDS = 60  # until all processes have found each other
HEARTBEAT_SECONDS = 30  # after which JAX takes a silent process for dead
END_SECONDS = 600  # until all have come to the end; the first one may still be saving


@contextlib.contextmanager
def joined(
    coordinator: str | None, num_processes: int | None, number: int | None
) -> Iterator[None]:
    """Joins the processes of one training, for a program that ends with it.

    Args:
      coordinator: HOST:PORT at which the first process listens and the others find it; `None`, as
        the others then must be, takes all from Slurm, Open MPI, Kubernetes or a TPU pod.
      num_processes: of the training.
      number: of this process, from 0.

    Raises:
      InputError: no such cluster, or wrong values; and as of `endings.together`.
    """
    given = coordinator, num_processes, number
    _check(coordinator, num_processes, number)
    jax.config.update("jax_enable_preemption_service", False)  # it keeps SIGTERM from ending us
    before = endings.say_before_abort(functools.partial(_unanswered, START_SECONDS))
    try:
        jax.distributed.initialize(
            *given,
            cluster_detection_method=None if coordinator is None else "deactivate",
            initialization_timeout=START_SECONDS,
            heartbeat_timeout_seconds=HEARTBEAT_SECONDS,
            shutdown_timeout_seconds=END_SECONDS,
        )
    except (ValueError, RuntimeError, ImportError) as error:
        raise InputError(
            f"the processes cannot be joined ({str(error).splitlines()[0]}); give --coordinator "
            "HOST:PORT, --num-processes and --process-id, or start them by Slurm, Open MPI or "
            "Kubernetes"
        ) from error
    finally:
        endings.say_before_abort(before)
    with endings.together(kept=True, is_program=True):
        yield
        jax.distributed.shutdown()


def _check(coordinator: str | None, num_processes: int | None, number: int | None) -> None:
    given = coordinator, num_processes, number
    if given == (None, None, None):
        return
    if None in given:
        raise InputError(
            "give --coordinator, --num-processes and --process-id, or none of them where Slurm, "
            "Open MPI or Kubernetes starts the processes"
        )
    assert coordinator is not None and num_processes is not None and number is not None
    _, _, port = coordinator.rpartition(":")
    if ":" not in coordinator or not port.isdecimal():
        raise InputError(f"--coordinator must be HOST:PORT, got {coordinator!r}")
    if not 0 <= number < num_processes:
        raise InputError(f"--process-id must be 0 to {num_processes - 1}, got {number}")


def _unanswered(seconds: int) -> None:
    state = distributed.global_state
    who = (
        f"not all {state.num_processes} processes came to {state.coordinator_address}"
        if state.process_id == 0
        else f"process 0 does not answer at {state.coordinator_address}"
    )
    endings.exit_with(InputError(
        f"{who} within {seconds} seconds; start all of them, each once, and check that address "
        "and the firewalls between the hosts"
    ))  # fmt: skip


def is_first() -> bool:
    """Whether this process is the one that keeps the folder and logs."""
    return jax.process_index() == 0


def share() -> tuple[int, int]:
    """The number of this process, from 0, and how many there are."""
    return jax.process_index(), jax.process_count()


def told(find: Callable[[], T]) -> T:
    """What `find` gives in the first process, the only one that calls it.

    Args:
      find: gives what JSON can hold; a tuple comes back as a list.
    """
    if jax.process_count() == 1:
        return find()
    key = endings.watch().next_key()
    if is_first():
        endings.watch().set(key, json.dumps(find()))
    found: T = json.loads(endings.watch().get(key))
    return found


def in_turn(find: Callable[[], T]) -> T:
    """What `find` gives in each process; the first one calls it before the others."""
    if is_first():
        found = find()
        told(lambda: None)
        return found
    told(lambda: None)
    return find()


def shared(make: Callable[[], T], like: Any) -> T:
    """The arrays that `make` gives in the first process, sent to all devices.

    Args:
      make: makes a pytree of arrays; called in the first process alone.
      like: a tree like it of `jax.ShapeDtypeStruct`.

    Returns:
      What `make` gave, where there is one process; else a copy of it.
    """
    if jax.process_count() == 1:
        return make()
    blank = jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), like)
    tree = jax.tree.map(np.asarray, make()) if is_first() else blank
    told(lambda: None)  # the others wait here, as long as it takes
    found: T = jax.device_put(multihost_utils.broadcast_one_to_all(tree))
    return found


def shared_rows(make: Callable[[], np.ndarray], shape: tuple[int, ...], dtype: Any) -> np.ndarray:
    """`shared`, of one NumPy array."""
    return np.asarray(shared(make, jax.ShapeDtypeStruct(shape, dtype)))


def stops(interrupted: threading.Event) -> bool:
    """Whether this process is to save and stop; another one than the first asks that to do so."""
    if jax.process_count() == 1:
        return interrupted.is_set()
    if is_first():
        return interrupted.is_set() or endings.watch().asked.is_set()
    if interrupted.is_set():
        endings.watch().ask_to_stop()
    return False


def agree(values: Mapping[str, Any]) -> None:
    """Checks that all processes were given the same, when all have come so far.

    Raises:
      InputError: names a process that differs, and in what.
    """
    if jax.process_count() == 1:
        return
    watch, number = endings.watch(), jax.process_index()
    key, name = watch.next_key(), socket.gethostname()
    values = {**values, "devices of a process": jax.local_device_count()}
    watch.set(f"{key}/{number}", json.dumps([name, values]))

    def compare() -> None:
        for other in range(1, jax.process_count()):
            host, theirs = json.loads(watch.get(f"{key}/{other}"))
            if found := differences(theirs, json.loads(json.dumps(values))):
                raise InputError(
                    f"process {other} on {host} differs: {'; '.join(found)}; start all processes "
                    "with the same command, vectors and versions"
                )

    told(compare)
    multihost_utils.sync_global_devices("qinco_jax")  # they connect while none is busy


def own_rows(num_rows: int) -> slice:
    """The rows that are this process's to read; only the last ones get fewer than the others."""
    number, count = share()
    size = -(-num_rows // count)
    return slice(min(num_rows, number * size), min(num_rows, (number + 1) * size))


def gathered(part: np.ndarray, num_rows: int) -> np.ndarray:
    """The rows [N, ...] of which each process has its `own_rows`."""
    if jax.process_count() == 1:
        return part
    size = -(-num_rows // jax.process_count())
    padded = np.pad(part, [(0, size - len(part))] + [(0, 0)] * (part.ndim - 1))
    return np.asarray(multihost_utils.process_allgather(padded, tiled=True))[:num_rows]


def mesh() -> Mesh:
    """All devices in a row, those of a process side by side."""
    kinds = (AxisType.Auto,)
    if jax.process_count() == 1:
        return jax.make_mesh((jax.device_count(),), ("data",), axis_types=kinds)
    devices = sorted(jax.devices(), key=lambda device: (device.process_index, device.id))
    return Mesh(np.array(devices), ("data",), axis_types=kinds)


def everywhere(tree: Any, mesh: Mesh) -> Any:
    """Copies of arrays on all devices; every process has the same."""
    sharding = NamedSharding(mesh, PartitionSpec())
    if jax.process_count() == 1:
        return jax.device_put(tree, sharding)

    def place(leaf: Any) -> jax.Array:
        rows = np.asarray(leaf)
        return jax.make_array_from_process_local_data(sharding, rows, rows.shape)

    return jax.tree.map(place, tree)


def here(tree: T) -> T:
    """The copies on this process's first device of arrays that are `everywhere`."""

    def copy(leaf: Any) -> Any:
        return leaf if getattr(leaf, "is_fully_addressable", True) else leaf.addressable_data(0)

    copies: T = jax.tree.map(copy, tree)
    return copies
