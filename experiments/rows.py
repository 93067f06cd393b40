"""Codecs trained on few and on many rows of a set: error and recall of ours beside the others.

    python experiments/rows.py --dataset PATH --rows 5000 --rows 20000 --rates 4,8,16 --out FOLDER

Takes the first rows as training vectors, of which a tenth is held back, and compares codecs on the
same database as `qinco compare` does; Faiss's are also trained on vectors moved towards their
neighbours, as ours are. FOLDER gets a comparison for each number of rows, and `rows.jsonl` all
their lines, of which the table is printed. Run the same command again to resume, or with further
numbers, codecs and rates to add them.
"""

import json
from pathlib import Path

import click

import qinco_jax as qj
from qinco_jax.evaluate import tables
from qinco_jax.evaluate.compare import compare
from qinco_jax.training.logs import stage_bar

CODECS = "opq,rq:B=32,lsq,opq:moved,rq:moved:B=32,lsq:moved,small"
RECALLS = "recall@1", "recall@10", "reading_recall@1", "reading_recall@10"
HEADINGS = "R@1", "R@10", "R@1*", "R@10*"


@click.command(help=__doc__.split("\n\n")[0])
@click.option("--dataset", default="sift-photos", show_default=True, metavar="NAME|PATH")
@click.option("--rows", "numbers", type=int, multiple=True, required=True)
@click.option("--codecs", default=CODECS, show_default=True)
@click.option("--rates", default="8", show_default=True, help="bytes per vector")
@click.option("--metric", help="of recall [default: the set's own, or l2]")
@click.option("--eval-rows", default=20_000, show_default=True, help="of the database")
@click.option("--set", "settings", multiple=True, metavar="NAME=VALUE")
@click.option("--out", required=True, type=click.Path(path_type=Path))
def main(dataset, numbers, codecs, rates, metric, eval_rows, settings, out):
    data = qj.datasets.load(dataset)
    for number in numbers:
        compare(
            data._replace(train=data.train[:number]), codecs.split(","),
            [float(rate) for rate in rates.split(",")], out / f"{number}",
            metrics=None if metric is None else [metric], eval_rows=eval_rows, settings=settings,
            stage=stage_bar,
        )  # fmt: skip
    rows = []
    for path in sorted(out.glob("*/results.jsonl"), key=lambda path: int(path.parent.name)):
        rows += [json.loads(line) for line in path.read_text().splitlines()]
    (out / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    click.echo(table(rows))


def table(rows):
    """One line for each codec, by training rows and bytes; recall in percent, with its interval."""
    lines = [["codec", "rows", "bytes", "MSE", *HEADINGS]]
    for row in sorted(rows, key=lambda row: (row["train_rows"], row["bytes"], row["mse"])):
        recalls = [_percent(row, key) for key in RECALLS]
        size = f"{row['bytes']:g}+{row.get('reading_bytes', row['bytes']) - row['bytes']:g}"
        label = row["label"]
        lines.append([label, f"{row['train_rows']:,}", size, f"{row['mse']:#.5g}", *recalls])
    return tables.aligned(lines)


def _percent(row, key):
    low, high = (100 * end for end in row[f"{key}_interval"])
    return f"{100 * row[key]:.1f} ({low:.1f}-{high:.1f})"


if __name__ == "__main__":
    main()
