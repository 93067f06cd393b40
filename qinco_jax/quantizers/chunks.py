"""Rows of any number through one device, outside `jit`, in chunks of a fixed shape.

Few rows are one block of one of a few sizes, so that another number of rows seldom compiles. On a
CPU threads work on the chunks of many. On an accelerator chunks of rows that lie there are sliced
there, others are read ahead and sent, and results are gathered there; the host waits for nothing
but to keep the memory bounded.
"""

import dataclasses
import functools
import os
import weakref
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from qinco_jax.vectors import checks
from qinco_jax.vectors.stored import Rows, Vectors, lazily

CHUNK_BLOCKS, CHUNK_ROWS = 16, 4096  # at most on CPUs, unless one block is larger
AHEAD, BEHIND = 4, 2  # chunks that are read before an accelerator needs them, and that it works on


def num_cores() -> int:
    """Cores that this process may use; a container or `taskset` may allow it fewer than exist."""
    if hasattr(os, "sched_getaffinity"):  # not on macOS
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


THREADS = max(2, min(16, num_cores()))

Prepare = Callable[[Any], Any]
Apply = Callable[..., Any]
Check = checks.Check


def unprepared(model: Any) -> Any:
    """The `prepare` of functions that need nothing but the model."""
    return model


@dataclasses.dataclass(frozen=True)
class Job:
    """What to do with rows: the arguments of `batching.map_rows`."""

    prepare: Prepare
    apply: Apply
    model: Any
    options: tuple[Any, ...]
    check: Check | None

    def checked(self, x: Rows, begin: int, end: int) -> np.ndarray:
        """Reads rows begin:end."""
        part = np.asarray(x[begin:end])
        return part if self.check is None else self.check(part, begin)


def over_chunks(job: Job, x: Vectors, rows: int) -> Any:
    """`batching.map_rows` of concrete rows that are not spread over devices."""
    device = _device_of((x, job.model))
    prepared = _prepared_once(job.prepare, job.model, device)
    size = min(rows, _few(len(x)))
    if _is_accelerator(device):
        if not isinstance(x, jax.Array):
            return _gathered(job, prepared, _sent(job, lazily(x), size, device), len(x), device)
        x = x if device is None else jax.device_put(x, device)
        with checks.where_they_lie(job.check, [(x, 0)]):
            return _gathered(job, prepared, _slices(x, size, device), len(x), device)
    x = lazily(x)
    if len(x) <= size:
        found = _chunk(prepared, _padded(job, x, 0, size), None, job.apply, size, job.options)
        return found if len(x) == size else _shortened(found, len(x), device)
    return jax.device_put(_in_threads(job, prepared, x, rows), device)


def _few(num_rows: int) -> int:
    """The least of a few sizes for so many rows.

    Up to 8 they are the powers of two; up to 64 there is one more between two of them, and then
    three: the more rows, the more of the time is theirs, and not the program's.
    """
    power = 1 << max(0, num_rows - 1).bit_length()
    unit = max(1, power // (2 if power <= 8 else 4 if power <= 64 else 8))
    return -(-max(1, num_rows) // unit) * unit


def _device_of(tree: Any) -> jax.Device | None:
    """The device of the first array that its owner has placed on one; `None` is the default's."""
    for leaf in jax.tree.leaves(tree):
        if isinstance(leaf, jax.Array) and leaf.committed and len(leaf.devices()) == 1:
            return next(iter(leaf.devices()))
    return None


def _is_accelerator(device: jax.Device | None) -> bool:
    """Whether a device, or the default one, has memory of its own."""
    chosen = getattr(jax.config, "jax_default_device")  # noqa: B009  unknown to mypy
    device = device or chosen or jax.default_backend()
    return getattr(device, "platform", device) != "cpu"


def _prepared_once(prepare: Prepare, model: Any, device: jax.Device | None) -> Any:
    """What `prepare` gives, on a device, kept while the model lives; only of what cannot change."""
    if prepare is unprepared:
        return model if device is None else jax.device_put(model, device)
    key = id(model), prepare, device
    if key in _kept:
        return _kept[key]
    placed = model if device is None else jax.device_put(model, device)
    prepared = prepared_from(prepare, placed)
    if all(isinstance(leaf, jax.Array) for leaf in jax.tree.leaves(model)):
        _kept[key] = prepared
        weakref.finalize(model, _kept.pop, key, None)
    return prepared


_kept: dict[tuple[int, Prepare, jax.Device | None], Any] = {}


@functools.partial(jax.jit, static_argnames="prepare")
def prepared_from(prepare: Prepare, model: Any) -> Any:
    """`prepare(model)`, compiled."""
    return prepare(model)


@functools.partial(jax.jit, static_argnames=("apply", "rows", "options"))
def _chunk(
    prepared: Any,
    x: jax.Array,
    num_rows: jax.Array | None,
    apply: Apply,
    rows: int,
    options: tuple[Any, ...],
) -> Any:
    """Applies to the first `num_rows` of a chunk; a traced loop length needs no new compilation.

    `None` stands for all rows of a chunk of one block.
    """
    if num_rows is None:
        return apply(prepared, x, *options)
    blocks = x.reshape(-1, rows, *x.shape[1:])
    abstract = jax.eval_shape(lambda block: apply(prepared, block, *options), blocks[0])

    def body(i: jax.Array, out: Any) -> Any:
        found = apply(prepared, blocks[i], *options)
        return jax.tree.map(lambda rows, of_block: rows.at[i].set(of_block), out, found)

    out = jax.tree.map(lambda leaf: jnp.zeros((len(blocks), *leaf.shape), leaf.dtype), abstract)
    out = lax.fori_loop(0, (num_rows + rows - 1) // rows, body, out)
    return jax.tree.map(lambda leaf: leaf.reshape(-1, *leaf.shape[2:]), out)


# On CPUs


def _padded(job: Job, x: Rows, begin: int, size: int) -> np.ndarray:
    """A copy of the next rows, `size` of them with zeros at the end."""
    part = job.checked(x, begin, begin + size)
    chunk = np.zeros((size, *part.shape[1:]), part.dtype)
    chunk[: len(part)] = part
    return chunk


def _shortened(found: Any, num_rows: int, device: jax.Device | None) -> Any:
    """The first rows of what a CPU computed, without a program for each number of rows."""
    return jax.device_put(jax.tree.map(lambda out: np.asarray(out)[:num_rows], found), device)


def _in_threads(job: Job, prepared: Any, x: Rows, rows: int) -> Any:
    """Threads feed the device, so that a CPU's cores do not wait for what runs on one of them.

    Everything is compiled in the caller's thread, where the caller's settings of JAX hold.
    Chunks of one block keep all threads busy with more rows, and larger ones cost fewer calls.
    """
    chunk_rows = max(rows, min(CHUNK_BLOCKS * rows, CHUNK_ROWS))
    if len(x) <= CHUNK_BLOCKS * rows:
        chunk_rows = rows

    def filled(begin: int) -> np.int32 | None:
        return None if chunk_rows == rows else np.int32(min(chunk_rows, len(x) - begin))

    first = _padded(job, x, 0, chunk_rows)
    compiled = _chunk.lower(prepared, first, filled(0), job.apply, rows, job.options).compile()
    out = jax.tree.map(
        lambda info: _aligned_empty((x.shape[0], *info.shape[1:]), info.dtype), compiled.out_info
    )

    def run(begin: int) -> None:
        chunk = first if begin == 0 else _padded(job, x, begin, chunk_rows)
        found = compiled(prepared, chunk, filled(begin))
        jax.tree.map(functools.partial(_copy_rows, begin), out, found)

    pool = ThreadPoolExecutor(THREADS)
    try:
        deque(pool.map(run, range(0, x.shape[0], chunk_rows)), maxlen=0)
    finally:
        pool.shutdown(cancel_futures=True)
    return out


def _copy_rows(begin: int, out: np.ndarray, chunk: jax.Array) -> None:
    room = out[begin : begin + len(chunk)]
    room[:] = np.asarray(chunk)[: len(room)]


def _aligned_empty(shape: tuple[int, ...], dtype: Any, alignment: int = 64) -> np.ndarray:
    """An empty array that JAX's CPU backend can take over without a copy."""
    size = int(np.prod(shape)) * np.dtype(dtype).itemsize
    memory = np.empty(size + alignment, np.uint8)
    offset = -memory.ctypes.data % alignment
    return memory[offset : offset + size].view(dtype).reshape(shape)


# On accelerators


def _slices(x: jax.Array, size: int, device: jax.Device | None) -> Iterator[jax.Array]:
    """Chunks of rows that lie on the device; the last overlaps the one before, or is padded."""
    begin = jax.device_put(np.int32(0), device)
    for _ in range(0, max(1, len(x)), size):
        part, begin = _slice(x, begin, size)
        yield part


@functools.partial(jax.jit, static_argnames="size")
def _slice(x: jax.Array, begin: jax.Array, size: int) -> tuple[jax.Array, jax.Array]:
    x = jnp.pad(x, [(0, max(0, size - len(x)))] + [(0, 0)] * (x.ndim - 1))
    return lax.dynamic_slice_in_dim(x, begin, size), begin + size


def _sent(job: Job, x: Rows, size: int, device: jax.Device | None) -> Iterator[jax.Array]:
    """The same of rows on the host, which threads read ahead."""
    begins = deque(min(begin, max(0, len(x) - size)) for begin in range(0, max(1, len(x)), size))
    read: deque[Any] = deque()
    pool = ThreadPoolExecutor(AHEAD)
    try:
        while begins or read:
            while begins and len(read) < AHEAD:
                read.append(pool.submit(_padded, job, x, begins.popleft(), size))
            yield jax.device_put(read.popleft().result(), device)
    finally:
        pool.shutdown(cancel_futures=True)


def _gathered(
    job: Job,
    prepared: Any,
    parts: Iterator[jax.Array],
    num_rows: int,
    device: jax.Device | None,
) -> Any:
    """The results of chunks, in an array on the device; the host runs ahead by a few of them."""
    out, begin, working = None, jax.device_put(np.int32(0), device), deque[jax.Array]()
    for part in parts:
        size = len(part)
        found = _chunk(prepared, part, None, job.apply, size, job.options)
        if num_rows <= size:
            return found if num_rows == size else _first_rows(found, num_rows)
        out = _first_rows(found, num_rows) if out is None else out
        out, begin = _placed(out, found, begin)
        working.append(begin)
        if len(working) > BEHIND:
            working.popleft().block_until_ready()
    return out


@functools.partial(jax.jit, static_argnames="num_rows")
def _first_rows(found: Any, num_rows: int) -> Any:
    """The first rows, or room for more."""

    def resized(leaf: jax.Array) -> jax.Array:
        more = max(0, num_rows - len(leaf))
        return jnp.pad(leaf[:num_rows], [(0, more)] + [(0, 0)] * (leaf.ndim - 1))

    return jax.tree.map(resized, found)


@functools.partial(jax.jit, donate_argnums=0)
def _placed(out: Any, found: Any, begin: jax.Array) -> tuple[Any, jax.Array]:
    """Results with those of a chunk; a chunk that would end after them is moved to their end."""
    place = functools.partial(lax.dynamic_update_slice_in_dim, start_index=begin, axis=0)
    return jax.tree.map(place, out, found), begin + len(jax.tree.leaves(found)[0])
