"""Runs a function over the rows of an array of any length in bounded memory.

A function of rows is `apply(model, rows, *options)`, which maps a block of rows [R, ...] to results
[R, ...], a pytree of arrays. `prepare(model)` may compute once what depends on the model alone, and
`apply` takes what it gives instead of the model.

Outside `jit`, rows go through the device in chunks of a fixed shape, smaller ones for few rows, so
that another number of rows seldom compiles; a loop whose length is an argument visits only the
blocks that are filled.
Under the caller's transformations, or for rows that are sharded over a mesh, the blocks are
scanned in one call and each device keeps its own rows.
"""

import functools
import math
import os
import weakref
from collections import deque
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextvars import ContextVar
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.sharding import NamedSharding, PartitionSpec

from qinco_jax.vectors.stored import Vectors, lazily

BLOCK_ROWS = 8192  # at most
CHUNK_BLOCKS, CHUNK_ROWS = 16, 4096  # at most, unless one block is larger
FEW = 8  # blocks in a small chunk, and from one size of small blocks to the next
FEW_CALLS = 4  # times as many rows fill a block: then one call is as fast as several threads


def num_cores() -> int:
    """Cores that this process may use; a container or `taskset` may allow it fewer than exist."""
    if hasattr(os, "sched_getaffinity"):  # not on macOS
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


THREADS = max(2, min(16, num_cores()))

Prepare = Callable[[Any], Any]
Apply = Callable[..., Any]
Check = Callable[[np.ndarray, int], np.ndarray]

_platform: ContextVar[str | None] = ContextVar("platform", default=None)


def block_rows(work_per_row: int) -> int:
    """Rows per block, a power of two, for `work_per_row` network evaluations a row.

    A block's activations should stay in a CPU's cache, and be many enough to fill an accelerator.
    """
    platform = _platform.get() or jax.default_backend()
    budget = 2**11 if platform == "cpu" else 2**18
    rows = max(1, budget // work_per_row)
    return min(BLOCK_ROWS, 2 ** (rows.bit_length() - 1))


def unprepared(model: Any) -> Any:
    """The `prepare` of functions that need nothing but the model."""
    return model


def map_rows(
    apply: Apply,
    model: Any,
    x: Vectors,
    *,
    rows: int,
    options: tuple[Any, ...] = (),
    prepare: Prepare = unprepared,
    check: Check | None = None,
) -> Any:
    """Applies a function of rows to `x` [N, ...], `rows` rows at a time.

    Args:
      apply: (prepared, block [R, ...], *options) -> a pytree of [R, ...]. Must be hashable, as
        must `prepare` and `options`.
      model: pytree of arrays.
      x: N rows; an `np.memmap` or a `Stored` is read chunk by chunk.
      rows: R, rows per block.
      options: static arguments of `apply`.
      prepare: model -> what `apply` takes first.
      check: called with each chunk of concrete rows and its offset; refuses bad values and
        returns the rows as they are computed with.

    Returns:
      The pytree of [N, ...], each a `jax.Array`.
    """
    if is_traced((model, x)):
        x = jnp.asarray(x)
        sharding = jax.typeof(x).sharding  # known here on a mesh of explicit axes only
        if any(sharding.spec):
            return _over_shards(prepare, apply, model, x, rows, options, sharding)
        return _over_blocks(prepare, apply, model, x, rows, options)
    if isinstance(x, jax.Array) and len(x.sharding.device_set) > 1:
        return _over_devices(prepare, apply, model, x, rows, options, check)
    return _over_chunks(prepare, apply, model, x, rows, options, check)


def on_any_platform(function: Callable[[jax.Array], jax.Array]) -> Callable[..., jax.Array]:
    """`function` with the blocks that suit the platform on which an exported program will run."""

    def traced_for(platform: str) -> Callable[[jax.Array], jax.Array]:
        def traced(x: jax.Array) -> jax.Array:
            token = _platform.set(platform)
            try:
                return function(x)
            finally:
                _platform.reset(token)

        return traced

    cpu, accelerator = traced_for("cpu"), traced_for("accelerator")
    return lambda x: lax.platform_dependent(x, cpu=cpu, default=accelerator)


def is_traced(tree: Any) -> bool:
    """Whether any leaf of `tree` is abstract, that is, under a transformation of JAX."""
    return any(isinstance(leaf, jax.core.Tracer) for leaf in jax.tree.leaves(tree))


def _over_blocks(
    prepare: Prepare, apply: Apply, model: Any, x: jax.Array, rows: int, options: tuple[Any, ...]
) -> Any:
    """Scans the blocks of `x`. Block i takes every n-th row, so a sharded batch stays sharded."""
    num_rows = x.shape[0]  # `jax.export` may leave it open
    rows = jax.core.max_dim(1, jax.core.min_dim(rows, num_rows))
    num_blocks = -(-num_rows // rows)
    prepared = _prepared_early(prepare, model)
    if isinstance(num_rows, int) and num_blocks <= 1:
        return apply(prepared, x, *options)
    padded = jnp.pad(x, [(0, num_blocks * rows - num_rows)] + [(0, 0)] * (x.ndim - 1))
    blocks = padded.reshape(rows, num_blocks, *x.shape[1:]).swapaxes(0, 1)
    found = lax.map(lambda block: apply(prepared, block, *options), blocks)
    return jax.tree.map(
        lambda out: out.swapaxes(0, 1).reshape(num_blocks * rows, *out.shape[2:])[:num_rows], found
    )


def _prepared_early(prepare: Prepare, model: Any) -> Any:
    """What `prepare` gives: a constant of the caller's program where the model is one."""
    if is_traced(model):
        return prepare(model)
    with jax.ensure_compile_time_eval():
        return _prepared(prepare, model)


def _over_devices(
    prepare: Prepare,
    apply: Apply,
    model: Any,
    x: jax.Array,
    rows: int,
    options: tuple[Any, ...],
    check: Check | None,
) -> Any:
    """Rows that lie on several devices stay there, and so does what is made of them."""
    sharding = x.sharding
    if isinstance(sharding, NamedSharding):
        model = jax.device_put(model, NamedSharding(sharding.mesh, PartitionSpec()))
        sharding = NamedSharding(sharding.mesh, PartitionSpec(*sharding.spec[:1]))
        x = jax.device_put(x, sharding)
    for shard in x.addressable_shards:
        if check is not None and shard.replica_id == 0:
            check(np.asarray(shard.data), shard.index[0].start or 0)
    return _over_shards(prepare, apply, model, x, rows, options, sharding)


@functools.partial(jax.jit, static_argnames=("prepare", "apply", "rows", "options", "sharding"))
def _over_shards(
    prepare: Prepare,
    apply: Apply,
    model: Any,
    x: jax.Array,
    rows: int,
    options: tuple[Any, ...],
    sharding: jax.sharding.Sharding,
) -> Any:
    """Each device encodes the rows that it holds, whatever the mesh's axis types are."""
    if not isinstance(sharding, NamedSharding):
        return _over_blocks(prepare, apply, model, x, rows, options)
    spec = PartitionSpec(sharding.spec[0] if sharding.spec else None)

    def local(model: Any, x: jax.Array) -> Any:
        return _over_blocks(prepare, apply, model, x, rows, options)

    shard = jax.shard_map(
        local, mesh=sharding.mesh, in_specs=(PartitionSpec(), spec), out_specs=spec, check_vma=False
    )
    return shard(model, x)


def _over_chunks(
    prepare: Prepare,
    apply: Apply,
    model: Any,
    x: Vectors,
    rows: int,
    options: tuple[Any, ...],
    check: Check | None,
) -> Any:
    """Threads feed the device, so that a CPU's cores do not wait for what runs on one of them.

    Everything is compiled in the caller's thread, where the caller's settings of JAX hold.
    """
    device = _device_of((x, model))
    model = model if device is None else jax.device_put(model, device)
    x = lazily(x)
    rows, chunk_rows = _block_and_chunk(len(x), rows)
    prepared = _prepared_once(prepare, model)

    def read(begin: int) -> np.ndarray:
        part = np.asarray(x[begin : begin + chunk_rows])
        part = part if check is None else check(part, begin)
        chunk = np.zeros((chunk_rows, *part.shape[1:]), part.dtype)
        chunk[: len(part)] = part
        return chunk

    if len(x) <= chunk_rows:
        found = _chunk(prepared, read(0), np.int32(len(x)), apply, rows, options)
        return jax.device_put(jax.tree.map(lambda out: np.asarray(out)[: len(x)], found), device)
    first = read(0)
    count = np.int32(chunk_rows)
    compiled = _chunk.lower(prepared, first, count, apply, rows, options).compile()
    out = jax.tree.map(
        lambda info: _aligned_empty((x.shape[0], *info.shape[1:]), info.dtype), compiled.out_info
    )

    def run(begin: int) -> None:
        count = min(chunk_rows, len(x) - begin)
        found = compiled(prepared, first if begin == 0 else read(begin), np.int32(count))
        jax.tree.map(functools.partial(_copy_rows, begin, count), out, found)

    pool = ThreadPoolExecutor(THREADS)
    try:
        deque(pool.map(run, range(0, x.shape[0], chunk_rows)), maxlen=0)
    finally:
        pool.shutdown(cancel_futures=True)
    return jax.device_put(out, device)


def _block_and_chunk(num_rows: int, rows: int) -> tuple[int, int]:
    """Rows of a block and of a chunk: few rows get small blocks, of one of a few sizes.

    Rows that are soon done go in one call; chunks of one block keep all threads busy with more, and
    larger ones cost fewer calls.
    """
    block = min(rows, FEW ** int(math.log(max(1, num_rows), FEW) + 1e-9))
    if FEW_CALLS * num_rows < rows:
        return block, FEW * block
    chunk = max(rows, min(CHUNK_BLOCKS * rows, CHUNK_ROWS))
    return (block, block) if num_rows <= CHUNK_BLOCKS * block else (rows, chunk)


def _device_of(tree: Any) -> jax.Device | None:
    """The device of the first array that its owner has placed on one; `None` is the default's."""
    for leaf in jax.tree.leaves(tree):
        if isinstance(leaf, jax.Array) and leaf.committed and len(leaf.devices()) == 1:
            return next(iter(leaf.devices()))
    return None


def _prepared_once(prepare: Prepare, model: Any) -> Any:
    """What `prepare` gives, kept as long as the model lives; only of what cannot change."""
    if prepare is unprepared:
        return model
    if not all(isinstance(leaf, jax.Array) for leaf in jax.tree.leaves(model)):
        return _prepared(prepare, model)
    key = id(model), prepare
    if key not in _kept:
        _kept[key] = _prepared(prepare, model)
        weakref.finalize(model, _kept.pop, key, None)
    return _kept[key]


_kept: dict[tuple[int, Prepare], Any] = {}


@functools.partial(jax.jit, static_argnames="prepare")
def _prepared(prepare: Prepare, model: Any) -> Any:
    return prepare(model)


@functools.partial(jax.jit, static_argnames=("apply", "rows", "options"))
def _chunk(
    prepared: Any,
    x: jax.Array,
    num_rows: jax.Array,
    apply: Apply,
    rows: int,
    options: tuple[Any, ...],
) -> Any:
    """Applies to the first `num_rows` of a chunk; a traced loop length needs no new compilation."""
    blocks = x.reshape(-1, rows, *x.shape[1:])
    abstract = jax.eval_shape(lambda block: apply(prepared, block, *options), blocks[0])

    def body(i: jax.Array, out: Any) -> Any:
        found = apply(prepared, blocks[i], *options)
        return jax.tree.map(lambda rows, of_block: rows.at[i].set(of_block), out, found)

    out = jax.tree.map(lambda leaf: jnp.zeros((len(blocks), *leaf.shape), leaf.dtype), abstract)
    out = lax.fori_loop(0, (num_rows + rows - 1) // rows, body, out)
    return jax.tree.map(lambda leaf: leaf.reshape(-1, *leaf.shape[2:]), out)


def _copy_rows(begin: int, count: int, out: np.ndarray, chunk: jax.Array) -> None:
    out[begin : begin + count] = np.asarray(chunk)[:count]


def _aligned_empty(shape: tuple[int, ...], dtype: Any, alignment: int = 64) -> np.ndarray:
    """An empty array that JAX's CPU backend can take over without a copy."""
    size = int(np.prod(shape)) * np.dtype(dtype).itemsize
    memory = np.empty(size + alignment, np.uint8)
    offset = -memory.ctypes.data % alignment
    return memory[offset : offset + size].view(dtype).reshape(shape)
