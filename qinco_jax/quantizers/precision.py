"""In which dtype the network's products are computed, and what this device multiplies faster."""

import functools
import time
from collections.abc import Callable
from pathlib import Path
from typing import ParamSpec, TypeVar

import jax
import jax.numpy as jnp

from qinco_jax.errors import InputError, unknown
from qinco_jax.quantizers.distances import matmul

P = ParamSpec("P")
T = TypeVar("T")

COMPUTE_DTYPES = ("float32", "bfloat16")
CPU_INFO = Path("/proc/cpuinfo")
CPU_FLAGS = {"avx512_bf16", "amx_bf16"}
MEASURED = (2048, 128, 256), 10  # a product of the network's size, and how often
WORTH = 1.2  # times as fast


def in_32_bits(function: Callable[P, T]) -> Callable[P, T]:
    """A function that computes in JAX's 64-bit mode what it computes without.

    Models are of 32-bit numbers, and in that mode JAX makes wider ones.
    """

    @functools.wraps(function)
    def computed(*args: P.args, **settings: P.kwargs) -> T:
        with jax.enable_x64(False):
            return function(*args, **settings)

    return computed


def resolve(compute_dtype: str | None) -> str:
    """The dtype of the network's products: the one that is named, or the default of this device.

    The default is `fastest` on accelerators, whose units for bfloat16 are several times as fast. On
    CPUs it is float32: some codes differ between the dtypes, and a set of codes should not depend
    on which CPU made it; bfloat16 is 0.6 to 1.4 times as fast there.

    Args:
      compute_dtype: "float32", "bfloat16" or `None`.

    Raises:
      InputError: another name.
    """
    check(compute_dtype)
    if compute_dtype is None:
        return "float32" if jax.default_backend() == "cpu" else fastest()
    return compute_dtype


def check(compute_dtype: str | None) -> None:
    """Refuses an unknown name, without starting JAX's devices."""
    if compute_dtype not in (None, *COMPUTE_DTYPES):
        raise InputError(unknown("compute dtype", str(compute_dtype), COMPUTE_DTYPES))


def fastest() -> str:
    """The dtype in which JAX's default device multiplies matrices faster.

    bfloat16 on TPUs and on NVIDIA GPUs of compute capability 8.0 and later; on CPUs that have
    instructions for it, as Linux tells, by a measurement of some milliseconds at the first call;
    float32 elsewhere, and where JAX is told to compute so (`jax_default_matmul_precision` is
    "highest" or "float32").
    """
    told = getattr(jax.config, "jax_default_matmul_precision")  # noqa: B009  unknown to mypy
    if told in ("highest", "float32"):
        return "float32"
    device = jax.local_devices()[0]
    if device.platform == "cpu":
        faster = bool(CPU_FLAGS & _cpu_flags()) and _measured() > WORTH
    else:
        major = str(getattr(device, "compute_capability", "")).partition(".")[0]
        faster = device.platform == "tpu" or (major.isdecimal() and int(major) >= 8)
    return "bfloat16" if faster else "float32"


@functools.cache
def _measured() -> float:
    """How many times as fast a product is in bfloat16 on this CPU.

    The instructions alone do not tell: the same compiler makes it 1.6 to 1.9 on one CPU that has
    them and 0.6 on another.
    """
    (rows, inner, outer), repeats = MEASURED
    seconds = {dtype: float("inf") for dtype in COMPUTE_DTYPES}
    with jax.ensure_compile_time_eval():
        multiply = jax.jit(matmul)
        given = {
            dtype: (jnp.ones((rows, inner), dtype), jnp.ones((inner, outer), dtype))
            for dtype in COMPUTE_DTYPES
        }
        for repeat in range(1 + repeats):  # in turn, so that other programs disturb both
            for dtype, arrays in given.items():
                begin = time.perf_counter()
                jax.block_until_ready(multiply(*arrays))
                if repeat:  # the first one compiles
                    seconds[dtype] = min(seconds[dtype], time.perf_counter() - begin)
    return seconds["float32"] / seconds["bfloat16"]


@functools.cache
def _cpu_flags() -> frozenset[str]:
    """The instruction sets of the first core, on x86 under Linux; else none."""
    lines = CPU_INFO.read_text().splitlines() if CPU_INFO.exists() else []
    flags = (line.partition(":")[2] for line in lines if line.startswith("flags"))
    return frozenset(next(flags, "").split())
