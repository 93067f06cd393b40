"""How fast encoding, decoding and training are, beside the machine's peak and beside others.

    python experiments/speed.py --out experiments/results/speed-MACHINE.jsonl --grid full

Runs on CPU, GPU and TPU; nothing else should run there meanwhile. The extra `faiss` adds Faiss's
QINCo, RQ and k-means, an installed PyTorch the eager network. Vectors and weights are random.

Each line has a configuration and the median rate of its warm calls, with quartiles. `share` is of
the matrix product's peak in the network's dtype, the larger of those at the begin and at the end.
Lines with a `peer` have the median, least and largest ratio of our rate to theirs, of calls in
turn. Memory is the whole process's on a CPU, the process's largest so far on an accelerator.
"""

import functools
import json

import beside
import click
import jax
import jax.numpy as jnp
import numpy as np
import timing
import workload

import qinco_jax as qj
from qinco_jax.evaluate import machine, results
from qinco_jax.quantizers import coding, precision
from qinco_jax.training import step

SEARCHES = ((1, 1), (4, 8), (8, 16), (16, 32), (32, 64))


def encode_points(grid):
    """A base point, and points that differ from it in one thing; the smaller models in two."""
    base = {"name": "qinco2-S", "dim": 128, "num_steps": 8, "dtype": "float32"}
    base |= workload.search(16, 32)
    searches = [base | workload.search(*sizes) for sizes in SEARCHES]
    joint = [base | workload.search(*sizes, joint=True) for sizes in (*SEARCHES[1:], (2, 64))]
    first = [base | workload.search(4, 8) | {"name": f"qinco L={depth}"} for depth in (2, 16)]
    if grid == "small":
        return [*searches[:2], joint[0], first[0], base]
    exhaustive = base | workload.search(256, 1) | {"name": "qinco L=2"}
    small = base | workload.search(2, 32, joint=True) | {"name": "small"}
    sizes = [base | {"dim": dim} for dim in (96, 256, 768)] + [base | {"num_steps": 16}]
    larger = [base | {"name": name} for name in ("qinco2-M", "qinco2-L")]
    half = base | {"dtype": "bfloat16"}
    return [*searches, *joint, *sizes, half, *first, exhaustive, small, *larger]


def encode(grid, seconds):
    for point in encode_points(grid):
        sizes = {name: point[name] for name in ("name", "dim", "num_steps")}
        search = {name: point[name] for name in ("num_candidates", "beam_size", "joint")}
        yield encoding(sizes, search, point["dtype"], seconds)


def encoding(sizes, search, dtype, seconds):
    """One model's rate of encoding by one search; `sizes` are arguments of `workload.sized`."""
    config = workload.sized(**sizes)
    model = workload.random_model(config)
    run = functools.partial(coding.encode, model, **search, compute_dtype=dtype)
    counts, x = workload.search_counts(search), workload.vectors(config.dim)
    found = timing.measure(run, x, seconds, **counts)
    flops = workload.encode_flops(config, search["num_candidates"], search["beam_size"])
    found["gflops"] = found["vectors_per_s"] * flops / 1e9
    return {**workload.fields(search=search, dtype=dtype, **sizes), **found}


def decode_points(grid):
    """Points [model, D, M]: a base point, and points that differ from it in one thing."""
    base = ("qinco2-S", 128, 8)
    if grid == "small":
        return [base, ("qinco L=2", 128, 8)]
    models = ("qinco2-M", "qinco2-L", "qinco L=2", "qinco L=16", "small")
    dims = [("qinco2-S", dim, 8) for dim in (96, 256, 768)]
    return [base, *((name, 128, 8) for name in models), *dims, ("qinco2-S", 128, 16)]


def decode(grid, seconds):
    for point in decode_points(grid):
        for dtype in precision.COMPUTE_DTYPES:
            found = decoding(point, dtype, seconds)
            if dtype == "bfloat16":
                found["mse_change"] = bfloat16_error(workload.random_model(workload.sized(*point)))
            yield found


def decoding(sizes, dtype, seconds):
    """One model's rate of decoding; `sizes` are arguments of `workload.sized`."""
    config = workload.sized(*sizes)
    model, codes = workload.random_model(config), workload.codes(config)
    run = functools.partial(coding.decode, model, compute_dtype=dtype)
    found = timing.measure(run, codes, seconds, **workload.row_counts(4))
    found["gflops"] = found["vectors_per_s"] * workload.decode_flops(config) / 1e9
    return {**workload.fields(*sizes, dtype=dtype), **found}


def bfloat16_error(model, num_rows=1024):
    """By which part of itself the MSE of the same codes grows if decoded in bfloat16."""
    x = workload.vectors(model.mean.shape[0])[:num_rows]
    codes = coding.encode(model, x, **workload.search(4, 1), compute_dtype="float32")
    full, half = (
        np.square(x - coding.decode(model, codes, compute_dtype=dtype)).mean()
        for dtype in precision.COMPUTE_DTYPES
    )
    return float(half / full - 1)


def train(grid, seconds):
    del grid
    for name, recipe in (("small", "small"), ("small", "accelerator"), ("qinco2-S", "qinco2-S")):
        yield training(name, recipe, seconds)


def training(name, recipe_name, seconds):
    """One model's rate of training by one recipe."""
    config, recipe = workload.sized(name), qj.RECIPES[recipe_name]
    batch = jnp.asarray(workload.vectors(config.dim)[: recipe.batch_size])
    run = stepping(step.init_state(workload.random_model(config), recipe), recipe)
    found = timing.measure(run, batch, seconds, start=len(batch))
    found["ms"] = 1000 * len(batch) / found["vectors_per_s"]
    search = {
        key: getattr(config, key) if value is None else value
        for key, value in recipe.search.items()
    }
    dtype = precision.resolve(recipe.compute_dtype)
    return {
        **workload.fields(name, search=search, dtype=dtype), "recipe": recipe_name, **found
    }  # fmt: skip


def stepping(state, recipe):
    """Steps of training that go on from each other."""

    def run(batch):
        nonlocal state
        state, loss = step.train_step(state, batch, recipe, 10_000)
        return loss

    return run


def peaks(seconds):
    for dtype in precision.COMPUTE_DTYPES:
        yield {"dtype": dtype, **timing.peak(jnp.dtype(dtype), seconds)}


MEASUREMENTS = {
    "encode": encode,
    "decode": decode,
    "train": train,
    "rq": beside.residual,
    "kmeans": beside.clusters,
    "peers": beside.others,
}


def with_shares(rows):
    """The rows, with the share of the peak where there is one."""
    top = {}
    for row in rows:
        if row["what"] == "peak":
            top[row["dtype"]] = max(row["gflops"], top.get(row["dtype"], 0))
    for row in rows:
        known = row["what"] != "peak" and "gflops" in row and row["dtype"] in top
        yield {**row, "share": row["gflops"] / top[row["dtype"]]} if known else row


COLUMNS = {
    "what": "what", "peer": "beside", "task": "task", "model": "model", "dim": "D",
    "num_steps": "M", "num_candidates": "A", "beam_size": "B", "joint": "joint", "dtype": "dtype",
    "recipe": "recipe",
    "num_rows": "N", "vectors_per_s": "vectors/s", "gflops": "GFLOP/s", "share": "share",
    "compile_s": "compile s", "peak_memory_mb": "MB", "ms": "ms", "mse_change": "MSE change",
    "ratio": "times theirs", "equal": "equal codes",
}  # fmt: skip


def table(rows):
    """The rows' main columns, aligned."""
    shown = [name for name in COLUMNS if any(row.get(name) is not None for row in rows)]
    lines = [[COLUMNS[name] for name in shown]]
    lines += [[cell(row.get(name)) for name in shown] for row in rows]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "\n".join("  ".join(map(str.ljust, line, widths)).rstrip() for line in lines)


def cell(value):
    if isinstance(value, float):
        return f"{value:.0f}" if abs(value) >= 1000 else f"{value:.3g}"
    return "" if value is None or value is False else str(value)


def line(row):
    named = ((title, cell(row.get(name))) for name, title in COLUMNS.items())
    return ", ".join(f"{title} {text}" for title, text in named if text)


@click.command(help=__doc__.split("\n\n")[0])
@click.option("--out", required=True, type=click.Path(), help="file of json lines")
@click.option("--grid", default="small", type=click.Choice(["small", "full"]), show_default=True)
@click.option("--seconds", default=20.0, show_default=True, help="of a measurement, about")
@click.option("--only", multiple=True, type=click.Choice(["peak", *MEASUREMENTS]))
def main(out, grid, seconds, only):
    jax.config.update("jax_enable_compilation_cache", False)  # compilations are timed
    facts, rows = machine.facts(), []
    click.echo(json.dumps(facts))

    def record(what, found):
        for row in found:
            rows.append({"what": what, **row})
            results.write([{**row, **facts} for row in with_shares(rows)], out)
            click.echo(line(rows[-1]))

    measured = [name for name in MEASUREMENTS if not only or name in only]
    has_peak = not only or "peak" in only
    if has_peak:
        record("peak", peaks(seconds))
    for name in measured:
        record(name, MEASUREMENTS[name](grid, seconds))
    if has_peak and measured:
        record("peak", peaks(seconds))
    click.echo(table(list(with_shares(rows))))


if __name__ == "__main__":
    main()
