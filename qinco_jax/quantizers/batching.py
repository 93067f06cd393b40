"""Runs a function over the rows of an array of any length in bounded memory.

A function of rows is `apply(model, rows, *options)`, which maps a block of rows [R, ...] to results
[R, ...], a pytree of arrays. `prepare(model)` may compute once what depends on the model alone, and
`apply` takes what it gives instead of the model.

Outside `jit`, rows go through one device in chunks of a fixed shape (`chunks`). Under the caller's
transformations, or for rows that are sharded over a mesh, the blocks are scanned in one call and
each device keeps its own rows.
"""

import contextlib
import functools
from collections.abc import Callable, Iterator
from contextvars import ContextVar
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import NamedSharding, PartitionSpec

from qinco_jax.quantizers.chunks import (
    Apply,
    Check,
    Job,
    Prepare,
    over_chunks,
    prepared_from,
    unprepared,
)
from qinco_jax.vectors import checks
from qinco_jax.vectors.stored import Vectors

CPU_ROWS, CPU_WORK = 2**13, 2**11  # at most in a block, and network evaluations
ROWS, BYTES = 2**16, 2**30  # likewise on accelerators, and bytes of activations
MEMORY_SHARE = 16  # of an accelerator's memory a block takes one part in
ASSUMED_MEMORY = 2**34  # of an accelerator that does not tell

T = TypeVar("T")

_platform: ContextVar[str | None] = ContextVar("platform", default=None)


def on_cpus() -> bool:
    """Whether what is traced now will run on CPUs."""
    return (_platform.get() or jax.default_backend()) == "cpu"


def block_rows(work_per_row: int, bytes_per_row: int) -> int:
    """Rows per block, a power of two.

    A block's activations should stay in a CPU's cache; they should be many enough to fill an
    accelerator, and take a small part of its memory.

    Args:
      work_per_row: network evaluations a row.
      bytes_per_row: of the activations of a row that exist at the same time.
    """
    if on_cpus():
        rows, most = CPU_WORK // work_per_row, CPU_ROWS
    else:
        rows, most = min(BYTES, _memory() // MEMORY_SHARE) // bytes_per_row, ROWS
    return min(most, 2 ** (max(1, rows).bit_length() - 1))


def _memory() -> int:
    """Bytes of memory of JAX's default device."""
    told = jax.local_devices()[0].memory_stats() or {}
    return told.get("bytes_limit", ASSUMED_MEMORY)


def of_one(of_rows: Callable[[Any], T], x: Any) -> T:
    """What a function of rows gives for a single one, an array [...], without the rows' axis."""
    rows = _with_axis(x) if isinstance(x, jax.Array) else x[None]
    return _only(of_rows(rows))


@jax.jit
def _with_axis(x: jax.Array) -> jax.Array:
    return x[None]


@jax.jit
def _only(found: Any) -> Any:
    return jax.tree.map(lambda leaf: leaf[0], found)


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
      x: N rows; an `np.memmap` or a `Stored` is read chunk by chunk, and a `jax.Array` stays on
        its devices.
      rows: R, rows per block.
      options: static arguments of `apply`.
      prepare: model -> what `apply` takes first.
      check: called with a chunk of concrete rows and its offset; refuses bad values and returns
        the rows as they are computed with. Rows on accelerators and on several devices are checked
        there (`checks.where_they_lie`), so it must refuse what lies outside of an interval, and
        `apply` gets the rows as they are.

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
    return over_chunks(Job(prepare, apply, model, options, check), x, rows)


@contextlib.contextmanager
def traced_for(platform: str) -> Iterator[None]:
    """What is traced within suits "cpu" or "accelerator", whatever runs here."""
    token = _platform.set(platform)
    try:
        yield
    finally:
        _platform.reset(token)


def on_any_platform(function: Callable[[jax.Array], jax.Array]) -> Callable[..., jax.Array]:
    """`function` with what suits the platform on which an exported program will run."""

    def suiting(platform: str) -> Callable[[jax.Array], jax.Array]:
        return traced_for(platform)(function)

    return lambda x: lax.platform_dependent(x, cpu=suiting("cpu"), default=suiting("accelerator"))


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
        return prepared_from(prepare, model)


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
    shards = [shard for shard in x.addressable_shards if shard.replica_id == 0]
    parts = [(shard.data, shard.index[0].start or 0) for shard in shards]
    with checks.where_they_lie(check, parts):
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
