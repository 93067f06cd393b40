"""The machine: its hardware and software versions, and the memory that this process uses."""

import contextlib
import ctypes
import datetime
import functools
import importlib.metadata
import platform
import subprocess
from pathlib import Path

import jax

from qinco_jax.quantizers.chunks import num_cores

STATUS, CLEAR_REFS = Path("/proc/self/status"), Path("/proc/self/clear_refs")
CPU_INFO = Path("/proc/cpuinfo")
PACKAGES = ("jax", "numpy", "faiss-cpu", "torch")


def facts() -> dict[str, str | int | None]:
    """Versions, devices, revision and date, for every row of results."""
    devices = jax.devices()
    return {
        **{f"{name}_version": _version(name) for name in PACKAGES},
        "backend": jax.default_backend(),
        "device": devices[0].device_kind,
        "num_devices": len(devices),
        "cpu": _cpu_model(),
        "cores": num_cores(),
        "revision": _revision(),
        "date": datetime.date.today().isoformat(),
    }


def _version(name: str) -> str | None:
    with contextlib.suppress(importlib.metadata.PackageNotFoundError):
        return importlib.metadata.version(name)
    return None


def _cpu_model() -> str:
    """The CPU's model name and family numbers; some hypervisors hide the name."""
    if not CPU_INFO.exists():
        return platform.processor() or platform.machine()
    pairs = [line.split(":", 1) for line in CPU_INFO.read_text().splitlines() if ":" in line]
    first = {name.strip(): value.strip() for name, value in reversed(pairs)}
    numbers = [first.get(name, "?") for name in ("cpu family", "model", "stepping")]
    return f"{first.get('model name', platform.machine())} ({', '.join(numbers)})"


def _revision() -> str | None:
    """The commit, with a + if tracked files differ from it."""
    git = functools.partial(
        subprocess.run, capture_output=True, text=True, check=True, cwd=Path(__file__).parent
    )
    with contextlib.suppress(OSError, subprocess.CalledProcessError):
        git(["git", "ls-files", "--error-unmatch", Path(__file__).name])  # not another repository
        head = git(["git", "rev-parse", "--short=12", "HEAD"]).stdout.strip()
        changed = git(["git", "status", "--porcelain", "--untracked-files=no"]).stdout
        return head + "+" * bool(changed.strip())
    return None


def reset_memory() -> float | None:
    """Resets the peak on a CPU and returns MiB in use; an accelerator's peak cannot be reset."""
    if jax.default_backend() != "cpu":
        return _device_memory("bytes_in_use")
    if not STATUS.exists():  # not Linux
        return None
    with contextlib.suppress(AttributeError):  # a C library without it
        ctypes.CDLL(None).malloc_trim(0)  # freed memory that it keeps would hide new use
    with contextlib.suppress(OSError):
        CLEAR_REFS.write_text("5")
        return _resident("VmRSS")
    return None


def peak_memory() -> float | None:
    """The most MiB in use since `reset_memory`, on an accelerator since the process started."""
    on_cpu = jax.default_backend() == "cpu"
    return _resident("VmHWM") if on_cpu else _device_memory("peak_bytes_in_use")


def _resident(name: str) -> float | None:
    if not STATUS.exists():
        return None
    lines = dict(line.split(":", 1) for line in STATUS.read_text().splitlines())
    return int(lines[name].split()[0]) / 1024 if name in lines else None


def _device_memory(name: str) -> float | None:
    used = (jax.local_devices()[0].memory_stats() or {}).get(name)
    return None if used is None else used / 2**20
