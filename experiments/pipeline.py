"""How fast training vectors come from a file, ours, Grain's and naively, and how well shuffled.

    python experiments/pipeline.py --out experiments/results/pipeline.jsonl

Takes minutes on two cores, which should be idle otherwise; it writes files of vectors to a
temporary folder. Batches are of 1024 rows; ours come on the device, the others in NumPy. A rate is
that of a page cache that keeps the whole file, or nothing of it at first. Shuffles are judged where
the order of the file matters most: by how much the means of batches of sorted rows vary, in
multiples of what independent rows give, and by the validation error of small models, trained on the
embedded set, which is stored photograph by photograph, whole or in pools.

Reached on 2 cores of a Xeon at 2.3 GHz, 2026-11-23, in rows/s of 128 x uint8 and of 96 x float32:
from a warm cache ours 2,167,000 and 1,418,000; Grain 16,000 with threads, 24,000 and 25,000 with 2
processes, and 478,000 and 547,000 where it is given our batches' rows; so Grain is not used, as it
handles rows one by one. Naive random rows in NumPy, neither checked nor brought to a device, are 11
and 7 million while the cache holds the file. From the disk ours reads 1,125,000 and 864,000, random
rows 27,000 and 25,000.

Reached by the shuffles: rows in sorted order are the worst case, where
a block counts as one row and the theory says 1 + 1024 / blocks of a pool; in pools of 64 MiB the
ratio is 1.04, 1.23, 1.53, 1.70 and 4.36 with blocks of 4, 16, 32 (the default), 64 and 256 KiB. On
the embedded set, in 8 pools, it is 0.97 with blocks of 12 rows (as many to a pool as with 64 KiB)
and 0.98 with blocks of 512, against 1.01 whole; the validation errors of three seeds are 47,118 and
47,155 on average, against 47,162 whole, whose own seeds lie 160 apart.
"""

import contextlib
import itertools
import mmap
import os
import tempfile
import time
from pathlib import Path

import click
import grain
import jax
import numpy as np
from absl import flags

import qinco_jax as qj
from qinco_jax.evaluate import machine, results
from qinco_jax.training import feed
from qinco_jax.training import shuffle as batches

BATCH = 1024
KINDS = {"128 x uint8": (128, np.uint8), "96 x float32": (96, np.float32)}
BLOCK_BYTES = (2**12, 2**14, 2**15, 2**16, 2**18)
CONFIG = qj.QincoConfig(
    num_steps=4, codebook_size=64, hidden_dim=32, num_candidates=4, beam_size=2, num_blocks=1
)
RECIPE = qj.Recipe(num_epochs=4)
SMALL_POOLS = {"whole": None, "8 pools, blocks of 12 rows": 12, "8 pools, blocks of 512 rows": 512}


class Rows:
    """A file's rows, one by one, for Grain: its processes open the file themselves."""

    def __init__(self, file):
        self.file, self.x = file, np.load(file, mmap_mode="r")

    def __reduce__(self):
        return Rows, (self.file,)

    def __len__(self):
        return len(self.x)

    def __getitem__(self, row):
        return self.x[row]


class Batches(Rows):
    """Our batches, one by one, for Grain to bring."""

    def __reduce__(self):
        return Batches, (self.file,)

    def __len__(self):
        return len(self.x) // BATCH

    def __getitem__(self, step):
        blocks = feed.blocks_for(self.x, BATCH)
        return self.x[batches.batch_rows(0, step, BATCH, len(self.x), blocks=blocks)]


@contextlib.contextmanager
def ours(file):
    x, sharding = np.load(file, mmap_mode="r"), jax.sharding.SingleDeviceSharding(jax.devices()[0])
    with feed.Feed(x, 0, range(10**9), BATCH, sharding) as found:
        yield found


@contextlib.contextmanager
def naive(file, advised=False):
    """A permutation of all rows, made before the clock runs.

    A row reads megabytes around it along, which soon fills the page cache with a file that fits
    there; advised, it does not: so much remains for a file that does not fit.
    """
    x = np.load(file, mmap_mode="r")
    if advised:
        x._mmap.madvise(mmap.MADV_RANDOM)
    order = np.random.default_rng(0).permutation(len(x))
    yield (x[order[begin : begin + BATCH]] for begin in range(0, len(x) - BATCH, BATCH))


@contextlib.contextmanager
def through_grain(file, source=Rows, num_workers=0):
    found = grain.MapDataset.source(source(file))
    if source is Rows:
        found = found.shuffle(seed=0).batch(BATCH)
    found = found.repeat().to_iter_dataset()
    if num_workers:
        flags.FLAGS.mark_as_parsed()  # Grain asks for flags of its own
        found = found.mp_prefetch(grain.MultiprocessingOptions(num_workers=num_workers))
    yield iter(found)


READERS = {
    "ours": ours,
    "naive": naive,
    "naive, advised": lambda file: naive(file, advised=True),
    "Grain, threads": through_grain,
    "Grain, 2 processes": lambda file: through_grain(file, num_workers=2),
    "Grain, our batches": lambda file: through_grain(file, Batches),
}


def rate(reader, file, seconds):
    """Rows per second, seconds to the first batch, and bytes read from the disk for each row given.

    The rate is that after the first pool, for which ours has waited already.
    """
    x = np.load(file, mmap_mode="r")
    ready = len(batches.pool_steps(0, BATCH, len(x), feed.blocks_for(x, BATCH)))
    del x  # what is mapped stays in the page cache
    with reader(file) as found:
        given_at, read, begin = [], bytes_read(), time.perf_counter()
        for _ in found:
            given_at.append(time.perf_counter() - begin)
            late = given_at[-1] > 3 * seconds or given_at[-1] - given_at[:ready][-1] > seconds
            if late and len(given_at) > 20:
                break
    start = min(ready, len(given_at) // 2)
    rows = BATCH * (len(given_at) - 1 - start)
    return {
        "rows_per_s": round(rows / (given_at[-1] - given_at[start])),
        "first_batch_s": round(given_at[0], 4),
        "disk_bytes_per_row": round((bytes_read() - read) / (BATCH * len(given_at)), 1),
    }


def bytes_read():
    """Bytes that this process has read from disks."""
    lines = Path("/proc/self/io").read_text().splitlines()
    return int(dict(line.split(": ") for line in lines)["read_bytes"])


def write(file, num_bytes, dim, dtype):
    """A file of vectors of about `num_bytes`, on the disk and in the page cache."""
    part = np.random.default_rng(0).integers(0, 256, (2**16, dim)).astype(dtype)
    num_parts = max(1, int(num_bytes / part.nbytes))
    x = np.lib.format.open_memmap(file, "w+", dtype, (num_parts * len(part), dim))
    for begin in range(0, len(x), len(part)):
        x[begin : begin + len(part)] = part
    x.flush()


def empty_cache(file):
    """Drops the file from the page cache; nothing may map it. Returns the share kept there."""
    with file.open("rb") as opened:
        os.fsync(opened.fileno())
        os.posix_fadvise(opened.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        offsets = np.random.default_rng(0).integers(file.stat().st_size, size=1000)
        kept = 0
        for offset in offsets.tolist():
            with contextlib.suppress(BlockingIOError):
                kept += os.preadv(opened.fileno(), [bytearray(1)], offset, os.RWF_NOWAIT)
    return kept / len(offsets)


def rates(file, kind, seconds):
    """Ours, by size of block, and rows one by one from an empty cache; all from a warm one."""

    def found(name, **of):
        return {"what": kind, "reader": name, **of, **rate(READERS[name], file, seconds)}

    usual = feed.BLOCK_BYTES
    for feed.BLOCK_BYTES in BLOCK_BYTES:
        yield found("ours", block_bytes=feed.BLOCK_BYTES, kept=empty_cache(file))
    feed.BLOCK_BYTES = usual
    for name in ("naive", "naive, advised"):
        yield found(name, kept=empty_cache(file))
    file.read_bytes()
    for name in READERS:
        yield found(name, kept=1.0)


def variance_ratio(x, blocks, num_epochs):
    """Variance of the means of batches of `x` [N, D], by that of batches of independent rows."""
    num_batches, means, step = len(x) // BATCH, [], 0
    while step < num_epochs * num_batches:
        steps = batches.pool_steps(step, BATCH, len(x), blocks)
        rows = batches.pool_rows(0, steps, BATCH, len(x), blocks=blocks)
        means += [x[part].mean(axis=0, dtype=np.float64) for part in rows]
        step = steps.stop
    return float(np.var(means, axis=0).sum() * BATCH / np.var(x, axis=0, dtype=np.float64).sum())


def small_pools(num_rows, block):
    """An eighth of a small set, in blocks of so many rows; `None` leaves it whole."""
    return None if block is None else batches.Blocks(1, block, -(-num_rows // 8))


def shuffles(photos):
    """How batches vary: the numbers 0..2^22 as if each were of 128 bytes, and the embedded set."""
    for block_bytes in BLOCK_BYTES:
        blocks = batches.Blocks(1, block_bytes // 128, feed.POOL_BYTES // 128)
        found = variance_ratio(np.arange(2**22)[:, None], blocks, num_epochs=6)
        yield {"what": "variance, sorted numbers", "block_bytes": block_bytes, "ratio": found}
    for name, block in SMALL_POOLS.items():
        found = variance_ratio(photos, small_pools(len(photos), block), num_epochs=3)
        yield {"what": "variance, sift-photos", "order": name, "ratio": found}


def trainings(photos, x_val):
    """Validation errors of models of three seeds, trained on the embedded set in every order."""
    usual = feed.blocks_for
    for seed, (name, block) in itertools.product(range(3), SMALL_POOLS.items()):
        blocks = small_pools(len(photos), block)
        feed.blocks_for = (lambda *_, blocks=blocks: blocks) if blocks else usual
        records = []
        qj.train(photos, CONFIG, RECIPE, seed=seed, x_val=x_val, log=records.append)
        error = min(record["val_mse"] for record in records if "val_mse" in record)
        waiting = float(np.median([r["waiting"] for r in records if "waiting" in r]))
        found = {"order": name, "seed": seed, "val_mse": error, "waiting": waiting}
        yield {"what": "training, sift-photos", **found}
    feed.blocks_for = usual


@click.command(help=__doc__.split("\n\n")[0])
@click.option("--out", required=True, type=click.Path(path_type=Path))
@click.option("--gigabytes", default=2.0, show_default=True, help="of each file of vectors, about")
@click.option("--seconds", default=3.0, show_default=True, help="of a measurement, about")
def main(out, gigabytes, seconds):
    facts, rows = {**machine.facts(), "gigabytes": gigabytes}, []
    data = qj.datasets.load("sift-photos")

    def keep(found):
        for row in found:
            rows.append({**row, "load": os.getloadavg()[0], **facts})
            results.write(rows, out)
            click.echo(row)

    with tempfile.TemporaryDirectory() as folder:
        for kind, (dim, dtype) in KINDS.items():
            file = Path(folder) / "x.npy"
            write(file, gigabytes * 1e9, dim, dtype)
            keep(rates(file, kind, seconds))
    keep(shuffles(data.train))
    keep(trainings(data.train, np.asarray(data.database)[::10]))


if __name__ == "__main__":
    main()
