"""How the time of encoding grows with N, M, D, L and the beam, beside what the arithmetic says.

    python experiments/growth.py --out experiments/results/growth-MACHINE

Each size is doubled over a range while the others stay at a small base point; nothing else should
run on the machine. Writes PREFIX.jsonl, PREFIX.png and PREFIX.svg. A slope is that of a straight
line through the logarithms; the arithmetic's is of the multiply-adds of the same points.
"""

import dataclasses
import functools

import click
import numpy as np
import timing
import workload

from qinco_jax.evaluate import machine, results
from qinco_jax.files import replacing
from qinco_jax.quantizers import coding

BASE = {"dim": 128, "num_steps": 4, "num_blocks": 2, "num_candidates": 4, "beam_size": 4}
RANGES = {
    "num_rows": ("vectors N", [0.125, 0.25, 0.5, 1, 2, 4]),
    "num_steps": ("steps M", [2, 4, 8, 16, 32]),
    "dim": ("dimensions D (E = 128)", [64, 128, 256, 512, 1024]),
    "beam_size": ("beam B, A = 4, joint", [2, 4, 8, 16, 32, 64]),
    "num_blocks": ("blocks L", [1, 2, 4, 8, 16]),
}
"""By what is varied: its name in the plot, and its values; those of N are times enough rows."""


def point(sizes):
    """The config of a point, its search, and a function that encodes rows with them."""
    search = workload.search(sizes["num_candidates"], sizes["beam_size"], joint=True)
    names = ("dim", "num_steps", "num_blocks")
    config = dataclasses.replace(
        workload.sized("qinco2-S", sizes["dim"]), **{name: sizes[name] for name in names}
    )
    return config, search, functools.partial(coding.encode, workload.random_model(config), **search)


def over_rows(factors, seconds):
    """Seconds and FLOPs of whole calls on more and more rows."""
    config, search, run = point(BASE)
    enough, x = workload.search_counts(search)["enough"], workload.vectors(BASE["dim"])
    flops = workload.encode_flops(config, search["num_candidates"], search["beam_size"])
    for num_rows in (int(factor * enough) for factor in factors):
        timing.call_seconds(run, x[:num_rows])
        times = timing.repeated(run, x[:num_rows], seconds)
        low, median, high = np.quantile(times, [0.25, 0.5, 0.75]).tolist()
        found = {"seconds": median, "seconds_low": low, "seconds_high": high}
        yield num_rows, BASE | found | {"num_rows": num_rows, "flops": num_rows * flops}


def over_sizes(name, values, seconds):
    """Seconds and FLOPs of a vector for larger and larger models or searches."""
    for value in values:
        sizes = BASE | {name: value}
        config, search, run = point(sizes)
        counts, x = workload.search_counts(search), workload.vectors(config.dim)
        rate = timing.measure(run, x, seconds, **counts)
        ends = {"": "", "_low": "_high", "_high": "_low"}
        found = {f"seconds{low}": 1 / rate[f"vectors_per_s{high}"] for low, high in ends.items()}
        flops = workload.encode_flops(config, search["num_candidates"], search["beam_size"])
        yield value, sizes | found | {"num_rows": rate["num_rows"], "flops": flops}


def slope(values, heights):
    """Slope and offset of the line through the logarithms to base 2."""
    return np.polyfit(np.log2(values), np.log2(heights), 1)


def plot(rows, images):
    from matplotlib import style
    from matplotlib.figure import Figure

    with style.context("tableau-colorblind10"):
        figure = Figure(figsize=(11, 6.2), layout="constrained")
        axes = figure.subplots(2, 3).flat
        for axis, (name, (title, _)) in zip(axes, RANGES.items(), strict=False):
            panel(axis, [row for row in rows if row["varied"] == name], title)
        axes[len(RANGES)].remove()
        for image in images:
            with replacing(image) as partial:
                figure.savefig(partial, dpi=150)


def panel(axis, rows, title):
    """Measured points with quartiles, and the line fitted to them."""
    values, seconds, low, high = (
        np.array([row[name] for row in rows])
        for name in ("value", "seconds", "seconds_low", "seconds_high")
    )
    measured, offset = slope(values, seconds)
    counted, _ = slope(values, [row["flops"] for row in rows])
    axis.plot(values, 2**offset * values**measured, label="fitted")
    spread = np.maximum(0, [seconds - low, high - seconds])
    axis.errorbar(values, seconds, spread, fmt="o", capsize=3, label="measured")
    axis.set_xscale("log", base=2)
    axis.set_yscale("log")
    axis.set_xlabel(title)
    whole = rows[0]["varied"] == "num_rows"
    axis.set_ylabel("seconds" if whole else "seconds per vector")
    axis.set_title(f"slope {measured:.2f}, arithmetic {counted:.2f}")
    axis.grid(alpha=0.3)
    axis.legend()


@click.command(help=__doc__.split("\n\n")[0])
@click.option("--out", required=True, help="prefix of the files to write")
@click.option("--seconds", default=10.0, show_default=True, help="of a measurement, about")
def main(out, seconds):
    facts, rows = machine.facts(), []
    for varied, (title, values) in RANGES.items():
        if varied == "num_rows":
            found = over_rows(values, seconds)
        else:
            found = over_sizes(varied, values, seconds)
        for value, row in found:
            rows.append({"varied": varied, "value": value, **row, **facts})
            results.write(rows, f"{out}.jsonl")
            click.echo(f"{title} = {value}: {row['seconds']:.3g} s")
        chosen = [row for row in rows if row["varied"] == varied]
        of = {name: [row[name] for row in chosen] for name in ("value", "seconds", "flops")}
        measured, counted = (slope(of["value"], of[name])[0] for name in ("seconds", "flops"))
        click.echo(f"slope {measured:.2f}, of the arithmetic {counted:.2f}")
    plot(rows, [f"{out}.png", f"{out}.svg"])


if __name__ == "__main__":
    main()
