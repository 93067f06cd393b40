"""How a vector's scale should depend on how badly its code describes it: recall by exponents.

    python experiments/scales.py --dataset PATH --model runs/glove100-small-8B --out FILE

Ranks reconstructions x_hat by <q, x_hat> c^p |x| / |x_hat|, where c is the cosine of x and x_hat:
p = 0 gives each the vector's own length, p = 1 makes it the best guess of an inner product with any
q. Of a residual quantizer of the first 50,000 training vectors at as many bytes, and of the model;
vectors of unit length, exhaustively, with scales that are not rounded to bytes.
"""

from pathlib import Path

import click
import numpy as np

import qinco_jax as qj
from qinco_jax.evaluate import results
from qinco_jax.evaluate.neighbours import nearest_neighbours
from qinco_jax.quantizers import rq
from qinco_jax.quantizers.transform import approximated

RQ_ROWS, RANKS = 50_000, (1, 10)
EXPONENTS = 0.0, 0.25, 0.5, 0.75, 1.0


def recalls(scores, best):
    """recall@1 and @10 of scores [Q, N], the larger the nearer; `best` [Q] is truly nearest."""
    rank = (scores > np.take_along_axis(scores, best[:, None], axis=1)).sum(axis=1)
    return {f"recall@{k}": float((rank < k).mean()) for k in RANKS}


def rows_of(codec, x, x_hat, queries, best):
    """A row for the reconstructions as they are, and one for each exponent."""
    lengths = np.linalg.norm(x_hat, axis=1)
    products, cosines = queries @ x_hat.T, np.maximum((x * x_hat).sum(axis=1) / lengths, 0)
    found = [{"codec": codec, "exponent": None, **recalls(products, best)}]
    for exponent in EXPONENTS:
        scores = products * (cosines**exponent / lengths)
        found.append({"codec": codec, "exponent": exponent, **recalls(scores, best)})
    return found


def table(rows):
    """A line for each codec, R@1 / R@10 by exponent."""
    heads = ["as it is", *(f"p = {exponent:g}" for exponent in EXPONENTS)]
    lines = [f"| codec | {' | '.join(heads)} |", f"|---|{'--:|' * len(heads)}"]
    for codec in dict.fromkeys(row["codec"] for row in rows):
        own = [row for row in rows if row["codec"] == codec]
        cells = [f"{row['recall@1']:.3f} / {row['recall@10']:.3f}" for row in own]
        lines.append(f"| {codec} | {' | '.join(cells)} |")
    return "\n".join(lines)


@click.command(help=__doc__.split("\n\n")[0])
@click.option("--dataset", required=True, metavar="NAME|PATH")
@click.option("--model", required=True, help="a trained model of such vectors")
@click.option("--out", required=True, type=click.Path(path_type=Path))
def main(dataset, model, out):
    data, model = qj.datasets.load(dataset), qj.load(model)
    x, queries, x_train = (
        approximated(np.asarray(part, np.float32), True)
        for part in (data.database, data.queries, data.train[:RQ_ROWS])
    )
    best = nearest_neighbours(x, queries, 1, "cosine")[:, 0]
    start = rq.train(x_train, model.num_steps, model.codebook_size)
    decoded = {
        "RQ": rq.decode(start, rq.encode(start, x)),
        "ours": qj.decode(model, qj.encode(model, x)),
    }
    rows = []
    for codec, x_hat in decoded.items():
        rows += rows_of(codec, x, np.asarray(x_hat), queries, best)
    bits = model.config.bits
    results.write([{"dataset": data.name, "bits": bits, **row} for row in rows], out)
    click.echo(table(rows))


if __name__ == "__main__":
    main()
