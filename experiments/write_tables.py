"""Writes the tables of the docs from the files of results, so that no figure drifts from them.

    python experiments/write_tables.py            # after a measurement
    python experiments/write_tables.py --check    # as a test does

A table stands in a page between `<!-- table NAME -->` and `<!-- end -->`; NAME is one of `TABLES`.
"""

import json
import re
from collections import defaultdict
from functools import partial
from pathlib import Path

import click

from qinco_jax.evaluate import results, tables
from qinco_jax.files import replacing

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "experiments" / "results"
PAGES = "README.md", "docs/benchmarks.md", "docs/choosing.md", "experiments/README.md"
BLOCK = re.compile(r"(<!-- table (\S+) -->\n).*?(<!-- end -->)", re.DOTALL)
OURS = "**QINCo2**"
MOST_HELD_BACK = 10_000  # of the rows that are given, a tenth, to choose the best epoch by
NAMES = {"small@16": f"{OURS}, one model of 16 bytes"}
ROWS = "rows-text-summaries", "rows-glove100", "rows-sift-photos"
SHOWN_SEARCHES = (  # (system, lists, re-ranked) of the table on search
    ("ours", 4, 10), ("ours", 16, 20), ("ours", 64, 10), ("ours", 64, 50), ("published", 4, 10),
    ("published", 16, 10), ("published", 64, 10), ("published", 64, 20), ("Faiss IVF-PQ", 16, None),
    ("Faiss IVF-PQ", 64, None), ("Faiss PQ fast-scan", 16, None), ("Faiss IVF-RQ", 64, None),
)  # fmt: skip


def read(name):
    return [json.loads(line) for line in (RESULTS / f"{name}.jsonl").read_text().splitlines()]


def number(value):
    """Four digits, and no more than whole numbers."""
    return f"{value:,.0f}" if value >= 1000 else f"{value:#.4g}"


def bold(text, is_best):
    return f"**{text}**" if is_best else text


def compared(name, most=16):
    """Error and recall of every codec by bytes, the best at each in bold."""
    points = {}
    for row in read(name):
        if row["bytes"] <= most:
            points[NAMES.get(row["codec"], row["label"]), row["bytes"]] = row
    rates = sorted({rate for _, rate in points})
    codecs = sorted({codec for codec, _ in points}, key=lambda c: points[c, 8.0]["mse"])
    error = {rate: min(points[codec, rate]["mse"] for codec in codecs) for rate in rates}
    recall = {rate: max(points[codec, rate]["recall@1"] for codec in codecs) for rate in rates}
    lines = [["codec", *(f"{rate:g} bytes" for rate in rates)]]
    for codec in codecs:
        cells = []
        for rate in rates:
            row = points[codec, rate]
            mse = bold(number(row["mse"]), row["mse"] == error[rate])
            found = bold(f"{100 * row['recall@1']:.1f}", row["recall@1"] == recall[rate])
            cells.append(f"{mse} / {found}")
        lines.append([codec, *cells])
    return tables.aligned(lines)


def trained():
    """What `make train` prints, without its notes."""
    return tables.markdown(read("sift-photos")).split("\n\n")[0]


def rates():
    """What bytes buy: the model of `make train` beside residual quantization."""
    rows = {(row["codec"].split(" ")[0], row["bytes"]): row for row in read("sift-photos")}
    lines = [["bytes", "MSE, QINCo2", "MSE, RQ", "R@1, QINCo2", "R@1, RQ"]]
    for rate in sorted({rate for _, rate in rows}):
        pair = rows["QINCo2", rate], rows["RQ", rate]
        errors = [number(row["mse"]) for row in pair]
        lines.append([f"{rate:g}", *errors, *(f"{100 * row['recall@1']:.1f}" for row in pair)])
    return tables.aligned(lines)


def of_rows(name, wanted):
    """Lines of a comparison by rows, as (codec, bytes, training rows given): those `wanted`."""
    for row in read(name):
        codec = OURS if row["label"].startswith("QINCo2") else row["label"]
        kept = row["train_rows"]
        point = codec, row["bytes"], kept + min(MOST_HELD_BACK, round(kept / 9))
        if wanted(*point):
            yield *point, row


def of_reading(row, least):
    """The error, in bold if it is the least, and recall by the reading that finds most."""
    if row is None:
        return tables.DASH
    found = (f"{100 * row[f'reading_recall@{k}']:.1f}" for k in (1, 10))
    return " / ".join([bold(number(row["mse"]), row["mse"] == least), *found])


def by_rows(name):
    """Error and recall of codecs by the number of training rows, the least error in bold."""
    points, sizes = defaultdict(dict), set()
    for codec, _, given, row in of_rows(name, lambda codec, rate, given: rate == 8):
        points[codec][given] = row
        sizes.add(given)
    least = {size: min(p[size]["mse"] for p in points.values() if size in p) for size in sizes}
    lines = [["codec", *(f"{size:,.0f} rows" for size in sorted(sizes))]]
    for codec in sorted(points, key=lambda codec: points[codec][20_000]["mse"]):
        cells = []
        for size in sorted(sizes):
            cells.append(of_reading(points[codec].get(size), least[size]))
        lines.append([codec, *cells])
    return tables.aligned(lines)


def by_bytes():
    """Error and recall at every rate that was measured, of 20,000 training rows."""
    every = {
        name: {
            (codec, rate): row
            for codec, rate, _, row in of_rows(name, lambda codec, rate, given: given == 20_000)
        }
        for name in ROWS
    }
    rates = sorted({rate for points in every.values() for _, rate in points})
    lines = [["set", "codec", *(f"{rate:g} bytes" for rate in rates)]]
    for name, points in every.items():
        codecs = [codec for codec, rate in points if rate == 4]
        least = {
            rate: min((row["mse"] for (_, at), row in points.items() if at == rate), default=None)
            for rate in rates
        }
        for codec in sorted(codecs, key=lambda codec: points[codec, 8]["mse"]):
            cells = [of_reading(points.get((codec, rate)), least[rate]) for rate in rates]
            lines.append([f"`{name.removeprefix('rows-')}`", codec, *cells])
    return tables.aligned(lines)


def few_rows():
    """Vectors moved towards their neighbours and stronger decay, beside neither, and with more."""
    rows = read("few_rows")
    errors = {
        (r["dataset"], r["epochs"], r["recipe"], r["regularizer"]): r["database_mse"] for r in rows
    }
    more = list(dict.fromkeys(r["regularizer"] for r in rows if r["regularizer"] != "none"))
    columns = [("plain", "none"), *(("mixed, decay", name) for name in ("none", *more))]
    heads = "as they are, decay 0.1", "moved, decay 0.5", *(f"and {name}" for name in more)
    lines = [["set", "epochs", *heads]]
    for name, epochs in sorted({(name, epochs) for name, epochs, *_ in errors}):
        found = (errors.get((name, epochs, *column)) for column in columns)
        cells = [tables.DASH if error is None else number(error) for error in found]
        lines.append([f"`{results.title_of(name)}`", f"{epochs}", *cells])
    return tables.aligned(lines)


def recipes():
    """The published recipe and ours, on the same rows in the same minutes."""
    kinds = defaultdict(list)
    for row in read("recipes") + read("recipes-500000"):
        kinds[row["train_rows"], row["preset"], row["asked"], row["recipe"]].append(row)
    times = "minutes asked for", "taken"
    lines = [["rows", "network", "recipe", "seeds", *times, "vectors seen", "MSE"]]
    for (num_rows, network, asked, recipe), rows in sorted(kinds.items()):
        mean = {
            k: sum(row[k] for row in rows) / len(rows) for k in ("minutes", "vectors", "val_mse")
        }
        ends = [number(end(row["val_mse"] for row in rows)) for end in (min, max)]
        error = number(mean["val_mse"]) + f" ({' to '.join(ends)})" * (len(rows) > 1)
        lines.append([
            f"{num_rows:,}", network, recipe, f"{len(rows)}", f"{asked:g}",
            f"{mean['minutes']:.2g}", f"{mean['vectors']:,.0f}", error,
        ])  # fmt: skip
    return tables.aligned(lines)


def searched():
    """Points of `nearest.py`, and how many times as many queries ours answers at such a recall."""
    rows = read("nearest-sift-photos")
    ours = [row for row in rows if row["system"] == "ours"]
    points = {(row["system"], row.get("num_probes"), row.get("num_reranked")): row for row in rows}
    lines = [["", "bytes", "lists", "re-ranked", "R@1", "R@10", "queries/s", "ours"]]
    for system, lists, shortlist in SHOWN_SEARCHES:
        row = points[system, lists, shortlist]
        as_good = [o for o in ours if o["recall@1"] >= row["recall@1"]]
        ratio = max(o["queries_per_second"] for o in as_good) / row["queries_per_second"]
        lines.append([
            system, f"{row['bytes']:g}", f"{lists}", f"{shortlist or ''}",
            *(f"{row[f'recall@{k}']:.3f}".lstrip("0") for k in (1, 10)),
            f"{row['queries_per_second']:,.0f}", "" if system == "ours" else f"{ratio:.2g}",
        ])  # fmt: skip
    return tables.aligned(lines)


def traffic():
    """Bytes of a candidate, of the first count and of the last."""
    found = defaultdict(list)
    for row in read("traffic"):
        search = f"A={row['num_candidates']} B={row['beam_size']}" + " joint" * row["joint"]
        found[row["compiled_for"], search, row["dtype"]].append(row)
    kinds = {"h100": "H100", "v5e": "TPU v5e", "cpu": "CPU"}
    times, types = ("before", "after"), ("float32", "bfloat16")
    lines = [["compiled for", "search", *(f"{kind}: {time}" for kind in types for time in times)]]
    for device, name in kinds.items():
        for search in sorted({search for kind, search, _ in found if kind == device}):
            counts = []
            for kind in types:
                rows = sorted(found[device, search, kind], key=lambda row: row["date"])
                counts += [f"{row['bytes']:,.0f}" for row in (rows[0], rows[-1])]
            lines.append([name, search, *counts])
    return tables.aligned(lines)


TABLES = {
    "train": trained,
    "rates": rates,
    "few_rows": few_rows,
    "rows-bytes": by_bytes,
    "recipes": recipes,
    "search": searched,
    "traffic": traffic,
    **{name: partial(compared, name) for name in ("compare-sift-photos", "compare-glove100")},
    **{name: partial(by_rows, name) for name in ROWS},
}


def rewritten(text):
    """A page with all of its tables written anew."""
    return BLOCK.sub(lambda found: f"{found[1]}\n{TABLES[found[2]]()}\n\n{found[3]}", text)


@click.command(help=__doc__.split("\n\n")[0])
@click.option("--check", is_flag=True, help="fail if a page is not up to date; write nothing")
def main(check):
    for name in PAGES:
        page = ROOT / name
        old = page.read_text()
        new = rewritten(old)
        if new == old:
            continue
        if check:
            raise click.ClickException(
                f"the tables of {name} are not those of experiments/results; "
                "run python experiments/write_tables.py"
            )
        with replacing(page) as beside:
            beside.write_text(new)
        click.echo(f"wrote {name}")


if __name__ == "__main__":
    main()
