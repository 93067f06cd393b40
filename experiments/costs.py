"""What codecs cost as N, D, M, K, A and B grow: time, memory, size and training, fitted slopes.

    python experiments/costs.py --scale full

One size varies at a time, the others stay at `BASE`; all codecs run in one process on the same
normal vectors, and nothing else should run on the machine. N vectors are trained on, once each by
our models, and then encoded and decoded; times are those of warm calls, a second training's for our
models. A and B are those of training, too. Writes `growth.jsonl`, `results.jsonl` with the errors
at the base sizes, plots with the slopes of lines fitted to the logarithms, and a page. The same
command resumes where it was interrupted.

The papers leave it open how costs grow. `growth.py` sets our encoder's time against its arithmetic;
here training and other codecs count, too.

Ours: results/costs.jsonl; the slopes stand in experiments/README.md.
"""

import dataclasses
import functools
import itertools
import time
from pathlib import Path
from typing import NamedTuple

import click
import numpy as np
import scale
import timing

import qinco_jax as qj
from qinco_jax.codecs import ours
from qinco_jax.codecs.codec import Codec
from qinco_jax.evaluate import machine, report, results

FAISS = {"opq": "OPQ{M},PQ{M}x{bits}", "rq": "RQ{M}x{bits}", "lsq": "LSQ{M}x{bits}"}
OURS = {"qinco1": {"num_blocks": 2}, "qinco2-S": {}}
CODECS = (*FAISS, "unq", *OURS)


class Sizes(NamedTuple):
    """Vectors, dimensions, steps, codewords, candidates, beam."""

    N: int
    D: int
    M: int
    K: int
    A: int
    B: int


BASE = {"small": Sizes(2048, 32, 4, 16, 4, 4), "full": Sizes(4096, 128, 8, 256, 4, 8)}
RANGES = {
    "small": {
        "N": (1024, 2048, 4096), "D": (16, 32, 64), "M": (2, 4, 8), "K": (8, 16, 32),
        "A": (2, 4, 8), "B": (2, 4, 8),
    },
    "full": {
        "N": (1024, 4096, 16384), "D": (32, 128, 512), "M": (2, 4, 8, 16),
        "K": (16, 64, 256, 512), "A": (2, 4, 8, 16, 32), "B": (1, 2, 4, 8, 16, 32),
    },
}  # fmt: skip


def trained(name, sizes, x):
    """A codec of these sizes, trained on `x`: our models and UNQ for one pass over it."""
    if name in FAISS:
        return _of_faiss(name, sizes, x)
    if name == "unq":
        from qinco_jax.codecs.unq import unq
        from qinco_jax.codecs.unq.train import train

        return unq.codec(train(x, sizes.M, sizes.K, num_epochs=1))
    searches = name != "qinco1"
    search = {"num_candidates": sizes.A, "beam_size": sizes.B, "joint": False} if searches else {}
    config = dataclasses.replace(
        qj.PRESETS[name], num_steps=sizes.M, codebook_size=sizes.K, **search, **OURS[name]
    )
    changes = dict.fromkeys(("train_candidates", "train_beam", "train_joint"))
    model = qj.train(
        x, config, qj.RECIPES[name], num_epochs=1, epoch_rows=len(x), batch_size=256, **changes
    )
    return ours.of_qinco(model, sizes.M)


def _of_faiss(name, sizes, x):
    import faiss

    bits = round(np.log2(sizes.K))
    index = faiss.index_factory(sizes.D, FAISS[name].format(M=sizes.M, bits=bits))
    if name == "opq":  # which learns its rotation for 256 codewords unless it is told
        rotation = faiss.downcast_VectorTransform(index.chain.at(0))
        parts = faiss.ProductQuantizer(sizes.D, sizes.M, bits)
        rotation.pq = parts
    index.train(x)
    if name == "opq":
        rotation.pq = None
    size = len(faiss.serialize_index(index))
    return Codec(name, sizes.M * bits, index.sa_encode, index.sa_decode, size)


@functools.cache
def cost(name, sizes):
    """What a codec costs at these sizes, and its error, as a row."""
    x = np.random.default_rng(0).standard_normal((sizes.N, sizes.D), np.float32)
    if name not in FAISS:
        trained(name, sizes, x)  # compiles
    begin = time.perf_counter()
    codec = trained(name, sizes, x)
    seconds = time.perf_counter() - begin
    error = x - np.asarray(codec.decode(codec.encode(x)))
    return {
        **timing.of_codec(codec, x),
        "train_seconds": round(seconds, 3),
        "model_bytes": codec.size,
        "bytes": codec.bits / 8,
        "mse": float(np.square(error, dtype=np.float64).sum(1).mean()),
        "sizes": sizes._asdict(),
    }


def points(name, size, axes):
    """The sizes to measure a codec at, by axis and value."""
    for axis, values in RANGES[size].items():
        if axis in axes and (name == "qinco2-S" or axis not in "AB"):
            for value in values:
                yield axis, value, BASE[size]._replace(**{axis: value})


@click.command(help=__doc__.split("\n\n")[0])
@click.option("--scale", "size", default="small", show_default=True, type=click.Choice(scale.NAMES))
@click.option("--out", help="folder of results [default: runs/reproduce/costs-SCALE]")
@click.option("--codecs", "names", default=",".join(CODECS), show_default=True)
@click.option("--axes", default="NDMKAB", show_default=True)
def main(size, out, names, axes):
    folder, facts = Path(out or f"runs/reproduce/costs-{size}"), machine.facts()
    folder.mkdir(parents=True, exist_ok=True)
    file, base = folder / "growth.jsonl", BASE[size]
    rows = results.read(file, ("codec", "axis", "value")) if file.exists() else []
    done = {(row["codec"], row["axis"], row["value"]) for row in rows}
    for name in names.split(","):
        for axis, value, sizes in points(name, size, axes):
            if (name, axis, value) not in done:
                rows.append(
                    {"codec": name, "axis": axis, "value": value, **cost(name, sizes), **facts}
                )
                results.write(rows, folder / "growth.jsonl")
                click.echo(line(rows[-1]))
    at_base = [row for row in rows if row["sizes"] == base._asdict()]
    first = [next(group) for _, group in itertools.groupby(at_base, lambda row: row["codec"])]
    results.write([{"dataset": "normal vectors", **row} for row in first], folder / results.RESULTS)
    report.write_page(folder)
    click.echo(f"page: {folder / 'report.html'}")


def line(row):
    figures = (
        f"{key} {row[key]:.4g}" for key in ("encode_us", "decode_us", "peak_mib", "train_seconds")
        if row[key] is not None
    )  # fmt: skip
    return f"{row['codec']} at {row['axis']} = {row['value']}: {', '.join(figures)}"


if __name__ == "__main__":
    main()
