"""How long and how big calls are, and the machine's peak of matrix products.

Rates are medians of warm calls; `low` and `high` are their quartiles.
"""

import functools
import time

import jax
import jax.numpy as jnp
import numpy as np

from qinco_jax.evaluate.machine import peak_memory, reset_memory
from qinco_jax.quantizers.distances import matmul

PEAK_SHAPES = (
    (2048, 2048, 2048),
    (4096, 4096, 4096),
    (8192, 128, 256),
    (8192, 384, 384),
    (65536, 128, 256),
    (65536, 384, 384),
)


def rates(num_rows, seconds):
    """Rows per second of repeated calls on `num_rows` rows: median and quartiles."""
    low, median, high = num_rows / np.quantile(seconds, [0.75, 0.5, 0.25])
    return {
        "num_rows": num_rows,
        "repeats": len(seconds),
        "vectors_per_s": float(median),
        "vectors_per_s_low": float(low),
        "vectors_per_s_high": float(high),
    }


def call_seconds(run, *args):
    begin = time.perf_counter()
    jax.block_until_ready(run(*args))
    return time.perf_counter() - begin


def repeated(run, rows, seconds, at_least=3, at_most=50):
    """Seconds of each of some warm calls on `rows`, until `seconds` have passed."""
    found, begin = [], time.perf_counter()
    while len(found) < at_least or (len(found) < at_most and time.perf_counter() - begin < seconds):
        found.append(call_seconds(run, rows))
    return np.array(found)


def calibrated(run, rows, seconds, start, enough):
    """As many of `rows`, `start` times a power of two, as a warm call maps in `seconds`.

    Up to `enough` rows, a call may take four times as long.

    Returns:
      Those rows, and the seconds by which the first call ever was longer than the second one.
    """
    count = min(start, len(rows))
    cold, warm = (call_seconds(run, rows[:count]) for _ in range(2))
    compile_seconds = max(0.0, cold - warm)
    while True:
        limit, room = (seconds, len(rows)) if count >= enough else (4 * seconds, enough)
        doublings = int(min(3, np.log2(limit / warm), np.log2(min(room, len(rows)) / count)))
        if doublings < 1:
            return rows[:count], compile_seconds
        count *= 2**doublings
        warm = min(call_seconds(run, rows[:count]) for _ in range(2))


def measure(run, rows, seconds, start, enough=1):
    """Rate, compilation and memory of `run`, in about `seconds` once it is compiled."""
    jax.clear_caches()
    rows, compile_seconds = calibrated(run, rows, seconds / 5, start, enough)
    before = reset_memory()
    found = rates(len(rows), repeated(run, rows, seconds))
    memory = {"memory_before_mb": before, "peak_memory_mb": peak_memory()}
    return {**found, "compile_s": compile_seconds, **memory}


def of_codec(codec, x):
    """Microseconds a vector to encode and decode `x`, and the MB that it takes, once warm."""
    codes = np.asarray(codec.encode(x))
    call_seconds(codec.decode, codes)
    found = {
        "encode_us": np.median(repeated(codec.encode, x, 0)) * 1e6 / len(x),
        "decode_us": np.median(repeated(codec.decode, codes, 0)) * 1e6 / len(x),
    }
    before = reset_memory()  # apart from the times: getting memory back takes some
    np.asarray(codec.decode(codec.encode(x)))
    peak = peak_memory()
    known = peak is not None and before is not None
    return {
        **{name: round(float(value), 3) for name, value in found.items()},
        "peak_mib": round(peak - before, 1) if known else None,
    }


def side_by_side(ours, theirs, rows, seconds, start, enough=1, rounds=5):
    """Times two functions in turn, each on as many of `rows` as suit it, `seconds` in all."""
    runs, share = (ours, theirs), seconds / (2 * rounds)
    parts = [calibrated(run, rows, share, start, enough)[0] for run in runs]
    calls = [
        [call_seconds(run, part) for run, part in zip(runs, parts, strict=True)]
        for _ in range(rounds)
    ]
    own, their = np.array(calls).T
    ratios = (len(parts[0]) / own) / (len(parts[1]) / their)
    return {
        **rates(len(parts[0]), own),
        **{f"peer_{name}": value for name, value in rates(len(parts[1]), their).items()},
        "ratio": float(np.median(ratios)),
        "ratio_min": float(ratios.min()),
        "ratio_max": float(ratios.max()),
    }


def peak(dtype, seconds, shapes=PEAK_SHAPES):
    """The best rate of matrix products, in GFLOP/s, over a handful of shapes, and by shape.

    Products are float32 in full precision or bfloat16 accumulated in float32, chained in one call.
    """
    by_shape = {}
    for shape in shapes:
        chain, flops = _chain(shape, dtype)
        call_seconds(chain)
        times = repeated(lambda _, chain=chain: chain(), None, seconds / len(shapes))
        by_shape["x".join(map(str, shape))] = flops / float(np.median(times)) / 1e9
    return {"gflops": max(by_shape.values()), "by_shape": by_shape}


def _chain(shape, dtype):
    """A call of products [n, k] x [k, h] and [n, h] x [h, k] in turn, and its FLOPs."""
    num_rows, inner, outer = shape
    pair = 4 * num_rows * inner * outer
    budget = 1e10 if jax.default_backend() == "cpu" else 4e12
    pairs = int(np.clip(budget // pair, 1, 64))
    keys = jax.random.split(jax.random.key(0), 3)
    x = jax.random.normal(keys[0], (num_rows, inner), dtype)
    up = jax.random.normal(keys[1], (inner, outer), dtype) * jnp.asarray(inner**-0.5, dtype)
    down = jax.random.normal(keys[2], (outer, inner), dtype) * jnp.asarray(outer**-0.5, dtype)

    @jax.jit
    def run(x, up, down):
        for _ in range(pairs):
            x = matmul(matmul(x, up), down)
        return x

    return functools.partial(run, x, up, down), pairs * pair
