"""In which dtype the network's products are computed, and what this device multiplies faster."""

import functools
from pathlib import Path

import jax

from qinco_jax.errors import InputError

COMPUTE_DTYPES = ("float32", "bfloat16")
CPU_INFO = Path("/proc/cpuinfo")
CPU_FLAGS = {"avx512_bf16", "amx_bf16"}


def resolve(compute_dtype: str | None) -> str:
    """The dtype of the network's products: the one that is named, or the default of this device.

    The default is `fastest` on accelerators, where float32 takes 2 to 5 times as long. On CPUs it
    is float32 even where `fastest` is not: some codes differ between the dtypes, and a set of codes
    should not depend on which CPU made it. It is also float32 where JAX is told to compute so
    (`jax_default_matmul_precision` is "highest" or "float32").

    Args:
      compute_dtype: "float32", "bfloat16" or `None`.

    Raises:
      InputError: another name.
    """
    if compute_dtype is None:
        told = getattr(jax.config, "jax_default_matmul_precision")  # noqa: B009  unknown to mypy
        exact = told in ("highest", "float32")
        return "float32" if exact or jax.default_backend() == "cpu" else fastest()
    if compute_dtype not in COMPUTE_DTYPES:
        raise InputError(
            f"compute_dtype must be {', '.join(COMPUTE_DTYPES)} or None for this device's default, "
            f"got {compute_dtype!r}"
        )
    return compute_dtype


def fastest() -> str:
    """The dtype in which JAX's default device multiplies matrices faster.

    bfloat16 on TPUs, on NVIDIA GPUs of compute capability 8.0 and later, and on CPUs that have
    instructions for it, as Linux tells; float32 elsewhere.
    """
    device = jax.local_devices()[0]
    if device.platform == "cpu":
        faster = bool(CPU_FLAGS & _cpu_flags())
    else:
        major = str(getattr(device, "compute_capability", "")).partition(".")[0]
        faster = device.platform == "tpu" or (major.isdecimal() and int(major) >= 8)
    return "bfloat16" if faster else "float32"


@functools.cache
def _cpu_flags() -> frozenset[str]:
    """The instruction sets of the first core, on x86 under Linux; else none."""
    lines = CPU_INFO.read_text().splitlines() if CPU_INFO.exists() else []
    flags = (line.partition(":")[2] for line in lines if line.startswith("flags"))
    return frozenset(next(flags, "").split())
