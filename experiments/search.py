"""Error against encoding time: every way to search that was tried, on one trained model.

    python experiments/search.py --model runs/S/model --out experiments/results/search

Writes OUT.jsonl, OUT.png and OUT.svg. Codes are found in these ways and decoded in float32:

- each: the paper's search, the best A codewords of each of B partial codes (QINCo2, Sec. 3);
- joint: the best A B of all B K codewords;
- widening, narrowing: joint, B growing or shrinking over the steps;
- late, early candidates: joint, A twice as large in one half of the steps;
- bfloat16: joint, the network's products in bfloat16.

Giving up on bad partial codes early saves nothing where shapes are fixed; the joint choice is what
becomes of it there: a partial code with a large residual gets no candidates.
"""

import concurrent.futures
import functools
import time
from pathlib import Path
from typing import NamedTuple

import click
import jax
import numpy as np
from matplotlib import style
from matplotlib.figure import Figure
from tqdm import tqdm

import qinco_jax as qj
from qinco_jax.evaluate import results
from qinco_jax.files import replacing
from qinco_jax.quantizers import batching, beam, chunks, qinco
from qinco_jax.quantizers.rq import to_model_space

MARKERS = "os^vDPX"


class Way(NamedTuple):
    """How to search; A and B of each step."""

    name: str
    joint: bool
    candidates: tuple[int, ...]  # A of steps 2 to M
    beams: tuple[int, ...]  # B after steps 1 to M
    dtype: str = "float32"


def ways(num_steps):
    """All that is measured."""
    rest = num_steps - 1

    def uniform(name, joint, candidates, beam_size, dtype="float32"):
        return Way(name, joint, (candidates,) * rest, (beam_size,) * num_steps, dtype)

    for candidates, beam_size in ((2, 4), (4, 8), (8, 16), (4, 32), (16, 16), (16, 32), (32, 32)):
        yield uniform("each", False, candidates, beam_size)
    for candidates in (1, 2, 4):
        for beam_size in (4, 8, 16, 32, 64, 96):
            yield uniform("joint", True, candidates, beam_size)
    for beam_size in (16, 32, 64):
        yield uniform("bfloat16", True, 2, beam_size, "bfloat16")
    for middle in (24, 48):
        growing = tuple(np.linspace(middle / 2, 3 * middle / 2, num_steps).astype(int).tolist())
        yield Way("widening", True, (2,) * rest, growing)
        yield Way("narrowing", True, (2,) * rest, growing[::-1])
        late = tuple(1 + (2 * step >= num_steps) for step in range(1, num_steps))
        yield Way("late candidates", True, late, (middle,) * num_steps)
        yield Way("early candidates", True, late[::-1], (middle,) * num_steps)


@functools.partial(jax.jit, static_argnames="way")
def encode_block(prepared, x, way):
    """Encodes with another A and B at each step, which the library's scan cannot."""
    model, tables = prepared.model, prepared.tables

    def one(x):
        found = beam.start(x, model.codebook, model.num_steps, way.beams[0])
        for step in range(1, model.num_steps):
            search = qinco.Search(way.candidates[step - 1], way.beams[step - 1], way.joint)
            here = functools.partial(jax.tree.map, lambda leaf, at=step - 1: leaf[at])
            step_and_tables = here((model.steps, tables))
            proposed = qinco._propose(model.config.form, search, step_and_tables, x, found)
            found = beam.expand(found, proposed, step, way.beams[step])
        return found.codes[0]

    return jax.vmap(one)(to_model_space(x, model.transform))


def encode(model, x, way):
    """Codes of `x`, and seconds without compilation; two threads, as in the library."""
    prepare = jax.jit(qinco.Qinco.prepare, static_argnames="compute_dtype")
    prepared = prepare(model, compute_dtype=way.dtype)
    work = max(a * b for a, b in zip(way.candidates, way.beams, strict=False))
    size = batching.block_rows(work, 4 * 3 * model.dim * work)
    blocks = [np.resize(x[i : i + size], (size, x.shape[1])) for i in range(0, len(x), size)]

    def run(block):
        return np.asarray(encode_block(prepared, block, way))

    run(blocks[0])
    begin = time.perf_counter()
    with concurrent.futures.ThreadPoolExecutor(chunks.THREADS) as pool:
        codes = np.concatenate(list(pool.map(run, blocks)))[: len(x)]
    return codes, time.perf_counter() - begin


def measure(model, x, way):
    codes, seconds = encode(model, x, way)
    error = x - np.asarray(qj.decode(model, codes))
    return {
        **way._asdict(),
        "mse": float(np.square(error, dtype=np.float64).sum(1).mean()),
        "microseconds": 1e6 * seconds / len(x),
        "rows": len(x),
    }


def plot(rows, image):
    with style.context("tableau-colorblind10"):
        figure = Figure(figsize=(7, 4.5), layout="constrained")
        axis = figure.subplots()
        names = list(dict.fromkeys(row["name"] for row in rows))
        for name, marker in zip(names, MARKERS, strict=True):
            points = [row for row in rows if row["name"] == name]
            time, mse = ([row[key] for row in points] for key in ("microseconds", "mse"))
            axis.plot(time, mse, marker, label=name, markersize=6 if name == "each" else 4)
        axis.set(xscale="log", xlabel="encoding, microseconds per vector")
        axis.set_ylabel("mean squared error")
        axis.grid(alpha=0.3, which="both")
        axis.legend()
        with replacing(image) as partial:
            figure.savefig(partial, dpi=150)


@click.command(help=__doc__.split("\n\n")[0])
@click.option("--model", required=True, help="folder of a trained model")
@click.option("--dataset", default="sift-photos", show_default=True)
@click.option("--eval-rows", default=4096, show_default=True, help="database rows encoded")
@click.option("--out", required=True, type=click.Path(path_type=Path))
def main(model, dataset, eval_rows, out):
    model = qj.load(model)
    x = np.asarray(qj.datasets.load(dataset).database[:eval_rows], np.float32)
    rows = [measure(model, x, way) for way in tqdm(list(ways(model.num_steps)))]
    out.parent.mkdir(parents=True, exist_ok=True)
    results.write(rows, out.with_suffix(".jsonl"))
    for kind in (".png", ".svg"):
        plot(results.read(out.with_suffix(".jsonl")), out.with_suffix(kind))
    for row in sorted(rows, key=lambda row: row["microseconds"]):
        click.echo(
            f"{row['name']:>17}  A {row['candidates'][0]}-{row['candidates'][-1]}  "
            f"B {row['beams'][0]}-{row['beams'][-1]}  {row['microseconds']:8.1f} us  "
            f"MSE {row['mse']:.1f}"
        )


if __name__ == "__main__":
    main()
