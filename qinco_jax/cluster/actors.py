"""Workers on Ray that call functions: one for a share of this machine's cores, or one a node."""

import os
from collections.abc import Callable
from typing import Any

import jax


def actors(ray: Any, workers: int | str, restarts: int) -> list[Any]:
    """Workers whose method `run(function, *args)` calls a function in a process of their own.

    A number of them share the cores of this machine, so that they do not fight; otherwise there is
    one a node, with all its CPUs and accelerators.

    Args:
      ray: of `connected`.
      workers: their number on this machine, or the cluster that `ray` is connected to.
      restarts: how often a lost one is started again, with the call that it worked at.
    """

    class Worker:  # known to Ray by value: it sets its cores before anything is imported
        def __init__(self, cores: list[int], folder: str, compiled: str | None) -> None:
            if cores:
                os.sched_setaffinity(0, cores)
            if os.path.isdir(folder):
                os.chdir(folder)
            if compiled:
                os.environ["JAX_COMPILATION_CACHE_DIR"] = compiled

        def run(self, function: Callable[..., Any], *args: Any) -> Any:
            return function(*args)

    options = {"max_restarts": restarts, "max_task_retries": restarts}
    remote, folder = ray.remote(Worker), os.getcwd()
    if isinstance(workers, int):
        compiled = jax.config.values["jax_compilation_cache_dir"]
        num_cpus = min(1.0, ray.cluster_resources()["CPU"] / workers)
        return [
            remote.options(num_cpus=num_cpus, **options).remote(cores, folder, compiled)
            for cores in shares_of_cores(workers)
        ]
    found = []
    for node in ray.nodes():
        held = node["Resources"] if node["Alive"] else {}
        if held.get("CPU"):
            place = ray.util.scheduling_strategies.NodeAffinitySchedulingStrategy(
                node["NodeID"], soft=True
            )
            wanted = {"num_cpus": held["CPU"], "num_gpus": held.get("GPU", 0)}
            given = remote.options(scheduling_strategy=place, **wanted, **options)
            found.append(given.remote([], folder, None))
    return found


def shares_of_cores(count: int) -> list[list[int]]:
    """The cores of this process divided among `count`; of fewer cores, some share one."""
    if not hasattr(os, "sched_getaffinity"):  # on macOS
        return [[]] * count
    cores = sorted(os.sched_getaffinity(0))
    return [cores[number::count] or [cores[number % len(cores)]] for number in range(count)]
