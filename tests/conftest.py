"""Settings of all tests: JAX promotes nothing silently; setup.cfg makes warnings errors."""

import os
import signal
import tempfile
from pathlib import Path

import hypothesis
import pytest

# Workers and subprocesses inherit one folder for temporary files and compiled programs.
if "PYTEST_XDIST_WORKER" not in os.environ:
    os.environ.setdefault("PYTEST_DEBUG_TEMPROOT", tempfile.gettempdir())  # tmp_path is kept
    FOLDER = tempfile.TemporaryDirectory(prefix="qinco_jax-tests-", ignore_cleanup_errors=True)
    os.environ["TMPDIR"] = tempfile.tempdir = FOLDER.name
    os.environ["JAX_COMPILATION_CACHE_DIR"] = os.path.join(FOLDER.name, "compiled")
    os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
    os.environ.setdefault("JAX_DISABLE_MOST_OPTIMIZATIONS", "1")  # compilation is most of the time

# Codes are compared with those of float32 on accelerators, too, where the default is bfloat16.
os.environ.setdefault("JAX_DEFAULT_MATMUL_PRECISION", "highest")
os.environ.setdefault("OMP_NUM_THREADS", "1")  # Faiss's threads spin where workers fill the cores

import jax
import strict  # noqa: F401

# What a shell runs in the background ignores Ctrl-C, which some tests send.
signal.signal(signal.SIGINT, signal.default_int_handler)

# Every example of another size compiles anew. Search longer with --hypothesis-profile=thorough.
options = {"deadline": None, "derandomize": True, "database": None}
hypothesis.settings.register_profile("modest", max_examples=8, **options)
hypothesis.settings.register_profile("thorough", max_examples=200, **options)
hypothesis.settings.load_profile("modest")

MAPS = Path("/proc/self/maps")
MAX_MAPS = 20_000  # memory maps of a process; Linux allows 65,530, beyond which XLA crashes


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup() -> None:
    """Frees compiled programs, each of which takes some maps, before they are too many."""
    if MAPS.exists() and MAPS.read_bytes().count(b"\n") > MAX_MAPS:
        jax.clear_caches()
