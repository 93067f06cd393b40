"""Exports a model as two programs, encode and decode, which run in JAX without this package."""

import dataclasses
import hashlib
import json
import os
import shutil
import uuid
from collections.abc import Callable
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from qinco_jax.errors import InputError
from qinco_jax.files import path_of
from qinco_jax.quantizers import coding
from qinco_jax.quantizers.batching import on_any_platform
from qinco_jax.quantizers.coding import Model
from qinco_jax.version import __version__

ABOUT = "about.json"
PLATFORMS = "cpu", "cuda", "tpu"
MAX_BYTES = 2**31 - 2**20  # JAX writes programs as flatbuffers, which hold no more


def export(
    model: Model,
    path: str | os.PathLike[str],
    *,
    num_candidates: int | None = None,
    beam_size: int | None = None,
    joint: bool | None = None,
) -> None:
    """Writes encode and decode of a model as the new folder `path`, for programs that serve it.

    In it, `encode.jaxprogram` maps vectors [N, D] float32 to codes, and `decode.jaxprogram` maps
    codes, all columns in the dtype that `encode` returns, to vectors [N, D] float32; N is at least
    1. They include the weights and the search, multiply in float32, and run on CPUs, NVIDIA GPUs
    and TPUs, in bounded memory, in a process with `jax` and `flatbuffers`:

        program = jax.export.deserialize(Path("FOLDER/encode.jaxprogram").read_bytes())
        encode = jax.jit(program.call)
        codes = encode(x)

    Each N is compiled at its first call, so a server should use few different N. Inputs are not
    checked: NaN gives some code, and invalid codes give some vector. `program.mlir_module()` is the
    StableHLO, for other compilers; its first argument is the index of the platform in
    `program.platforms`, and N is symbolic. JAX promises to run programs with a `jax` up to 6 months
    newer than the one that wrote them, or 3 weeks older: keep the model too. `about.json` has
    shapes, search, versions and hashes.

    Args:
      model: to export.
      path: the folder.
      num_candidates: A, to encode with; `None` means the model's own, here and below.
      beam_size: B.
      joint: whether candidates are chosen jointly over the beam.

    Raises:
      InputError: `path` exists, A or B out of range, or the model is too large for a program.
      OSError: it cannot be written; then nothing is left behind.
    """
    coding.require_model(model, "export(model, path)")
    target = path_of(path).absolute()
    if target.exists():
        raise InputError(f"{target} exists; choose another place or remove it first")
    search = coding.search_of(model, num_candidates, beam_size, joint)
    if sum(leaf.nbytes for leaf in jax.tree.leaves(model)) > MAX_BYTES:
        raise InputError("a program holds at most 2 GB of weights; save the model instead")
    model = jax.tree.map(np.asarray, model)  # constants while JAX traces

    def encode(x: jax.Array) -> jax.Array:
        return coding.encode(model, x, **dataclasses.asdict(search), compute_dtype="float32")

    def decode(codes: jax.Array) -> jax.Array:
        return coding.decode(model, codes, compute_dtype="float32")

    vectors = jax.ShapeDtypeStruct((1, model.dim), jnp.float32)
    codes = jax.eval_shape(encode, vectors)
    programs = {
        "encode.jaxprogram": _program(encode, vectors),
        "decode.jaxprogram": _program(decode, codes),
    }
    about = {
        "version": __version__,
        "jax": jax.__version__,
        "platforms": PLATFORMS,
        "vectors": {"shape": ["N", model.dim], "dtype": "float32"},
        "codes": {"shape": ["N", codes.shape[1]], "dtype": str(codes.dtype)},
        "search": dataclasses.asdict(search),
        "config": model.config.settings,
        "sha256": {name: hashlib.sha256(data).hexdigest() for name, data in programs.items()},
    }
    files = {**programs, ABOUT: (json.dumps(about, indent=2) + "\n").encode()}
    _write_folder(target, files)


def _program(function: Callable[[jax.Array], jax.Array], row: jax.ShapeDtypeStruct) -> bytes:
    """A function of rows, serialized for any number of rows like `row` [1, ...]."""
    (num_rows,) = jax.export.symbolic_shape("N")
    rows = jax.ShapeDtypeStruct((num_rows, *row.shape[1:]), row.dtype)
    program = jax.export.export(jax.jit(on_any_platform(function)), platforms=PLATFORMS)
    return bytes(program(rows).serialize())


def _write_folder(target: Path, files: dict[str, bytes]) -> None:
    partial = target.with_name(f".{target.name}.{uuid.uuid4().hex[:8]}")
    try:
        partial.mkdir(parents=True)
        for name, data in files.items():
            (partial / name).write_bytes(data)
        partial.rename(target)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
