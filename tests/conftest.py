"""Settings of all tests: JAX promotes nothing silently; setup.cfg makes warnings errors."""

import os
import signal
import tempfile

import hypothesis

COMPILED = tempfile.TemporaryDirectory()  # the command line keeps what it compiles; not at home
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", COMPILED.name)

import strict  # noqa: E402, F401

# What a shell runs in the background ignores Ctrl-C, which some tests send.
signal.signal(signal.SIGINT, signal.default_int_handler)

# Every example of another size compiles anew. Search longer with --hypothesis-profile=thorough.
options = {"deadline": None, "derandomize": True, "database": None}
hypothesis.settings.register_profile("modest", max_examples=8, **options)
hypothesis.settings.register_profile("thorough", max_examples=200, **options)
hypothesis.settings.load_profile("modest")
