"""What recall by inner product gains where another error than the mean squared one is minimised.

    python experiments/recall_and_error.py --dataset PATH --queries topics --variant plain \
        --variant "queries, eps 10" --epochs 0 --out FILE
    python experiments/recall_and_error.py --out FILE --plot IMAGE

Trains a quantizer of 8 bytes for each variant on the first rows of a set, ranks the database
exhaustively by <q, s x_hat>, where s = sqrt(c) |x| / |x_hat| is the scale that an index keeps in a
byte (here unrounded; c is the cosine of x and x_hat), and appends a line to FILE: recall, the error
that s x_hat with the best s leaves, and how recall differs from that of the first variant on the
same queries, with its 95 % interval. --epochs 0 takes the residual quantizer that training starts
from, with a beam of 32. Variants named "tuned" go on from the plain model of so many epochs.

Queries come from training rows beyond the first: a half of them is the sample that variants may
use, the other half is measured. "own" are the set's. Vectors of a set have length 1 unless
--vectors gives them random "lengths", takes "means" of neighbours or subtracts the mean
("centered").
"""

import dataclasses
import functools
import json
from pathlib import Path

import click
import jax
import numpy as np
import recall_losses

import qinco_jax as qj
from qinco_jax.evaluate import results, style, tables
from qinco_jax.evaluate.neighbours import nearest_neighbours
from qinco_jax.quantizers.chunks import num_cores
from qinco_jax.quantizers.transform import approximated
from qinco_jax.training import mixing

RANKS = 1, 10
RUN = "dataset", "vectors", "queries", "rows", "epochs", "preset", "seed"
POOL_ROWS, NUM_QUERIES, DATABASE_ROWS = 40_000, 4000, 20_000
TOPICS, TOPIC_SHARE, CLASS_ROWS = 5, 0.1, 20
VECTORS = "unit", "lengths", "means", "centered"
LENGTHS = 0.2  # standard deviation of their logarithm
QUERIES = "own", "like", "topics", "averages", "differences", "classifiers"


@dataclasses.dataclass(frozen=True)
class Variant:
    """What is minimised.

    Attributes:
      directions: whether x / |x| is quantized, and its length left to the scale.
      eps: rows are multiplied by W = (C_q + eps mean(eigenvalues) I)^(1/2), queries by its inverse;
        `None` leaves both as they are.
      centered: whether C_q is the covariance of queries, instead of their second moment.
      share: of the dimensions, the greatest principal components, that are quantized at all.
      loss: of `recall_losses`, by which the plain model is tuned; `None` does without.
      weight: of that loss.
    """

    directions: bool = False
    eps: float | None = None
    centered: bool = False
    share: float = 1.0
    loss: str | None = None
    weight: float = 0.0


VARIANTS = {
    "plain": Variant(),
    "directions": Variant(directions=True),
    **{f"queries, eps {eps:g}": Variant(eps=eps) for eps in (1.0, 3.0, 10.0, 30.0)},
    **{f"centered queries, eps {eps:g}": Variant(eps=eps, centered=True) for eps in (1.0, 10.0)},
    **{f"directions, queries, eps {eps:g}": Variant(True, eps) for eps in (3.0, 10.0, 30.0)},
    **{f"first {share:.0%} of dimensions": Variant(share=share) for share in (0.25, 0.5)},
    "tuned, error": Variant(loss="error"),
    "tuned, ranking .1": Variant(loss="ranking", weight=0.1),
    "tuned, ranking .3": Variant(loss="ranking", weight=0.3),
    "tuned, ranking 3": Variant(loss="ranking", weight=3.0),
    "tuned, sphere .5": Variant(loss="sphere", weight=0.5),
    "tuned, sphere 1": Variant(loss="sphere", weight=1.0),
    "tuned, dense": Variant(loss="dense", weight=4.0),
    "tuned, along x .3": Variant(loss="along", weight=0.3),
    "tuned, along x 3": Variant(loss="along", weight=3.0),
}


def vectors_of(kind, data, num_rows, rng):
    """Training rows, the database, and further rows from which queries are made, all [N, D]."""
    rows, further = data.train[:num_rows], data.train[num_rows : num_rows + POOL_ROWS]
    parts = [
        np.asarray(part, np.float32) for part in (rows, data.database[:DATABASE_ROWS], further)
    ]
    if kind == "centered":
        mean = parts[0].mean(axis=0)
        return [part - mean for part in parts]
    parts = [approximated(part, True) for part in parts]
    if kind == "means":
        return [means(part, rng) for part in parts]
    if kind == "lengths":
        parts[:2] = (
            part * np.exp(LENGTHS * rng.normal(size=(len(part), 1)), dtype=np.float32)
            for part in parts[:2]
        )
    return parts


def means(x, rng):
    """The mean of each row [N, D] and of 0 to 4 of the nearest ones."""
    count = rng.integers(1, 6, size=(len(x), 1))
    weights = np.float32((np.arange(5) < count) / count)
    groups = np.concatenate([x[:, None], x[mixing.nearest_others(x, 4)]], axis=1)
    return np.einsum("nk,nkd->nd", weights, groups)


def queries_of(kind, data, pool, rng):
    """A sample of queries of a kind, and others [Q, D] to measure."""
    sample, queries = np.array_split(_queries("like" if kind == "own" else kind, pool, rng), 2)
    return sample, approximated(data.queries, True) if kind == "own" else queries


def _queries(kind, pool, rng):
    count = min(NUM_QUERIES, len(pool))
    chosen = rng.choice(len(pool), count, replace=False)
    if kind == "topics":  # the rows nearest to a few
        unit = approximated(pool, True)
        near = (unit @ unit[chosen[:TOPICS]].T).max(axis=1)
        nearest = np.argsort(-near)[: min(count, int(TOPIC_SHARE * len(pool)))]
        return pool[rng.permutation(nearest)]
    if kind == "averages":  # of three rows each
        return pool[rng.choice(len(pool), (count, 3))].mean(axis=1)
    if kind == "differences":  # of two rows each
        return np.subtract(*pool[rng.choice(len(pool), (2, count))])
    if kind == "classifiers":  # the mean of similar rows, less that of all
        alike = nearest_neighbours(pool, pool[chosen], CLASS_ROWS, "ip")
        return pool[alike].mean(axis=1) - pool.mean(axis=0)
    return pool[chosen]


def weighting(queries, eps):
    """W [D, D], symmetric, for which |W e|^2 is the mean of <q, e>^2 over queries, but for eps."""
    values, vectors = np.linalg.eigh(queries.T.astype(np.float64) @ queries / len(queries))
    values = np.maximum(values, 0) + eps * values.mean()
    return (vectors * np.sqrt(values / values.mean())) @ vectors.T


def components(x, share):
    """The first principal components [D, d] of rows [N, D]."""
    columns = np.linalg.svd(x - x.mean(axis=0), full_matrices=False)[2].T
    return columns[:, : round(share * x.shape[1])]


def reconstructed(variant, x, database, sample, train):
    """What the variant's quantizer makes of the database [N, D], in its space but for lengths."""
    there, back = np.eye(x.shape[1]), np.eye(x.shape[1])
    if variant.eps is not None:
        centered = sample - sample.mean(axis=0) if variant.centered else sample
        there = weighting(centered, variant.eps)
        back = np.linalg.inv(there)
    elif variant.share < 1:
        there = components(x, variant.share)
        back = there.T
    if variant.directions:
        x, database = approximated(x, True), approximated(database, True)
    x, database = np.float32(x @ there), np.float32(database @ there)
    model = train(x) if variant.loss is None else recall_losses.tuned(
        train(x), x, mixing.nearest_others(x), variant.loss, variant.weight
    )  # fmt: skip
    return np.float32(np.asarray(qj.decode(model, qj.encode(model, database))) @ back)


def scales(database, x_hat):
    """What an index keeps of the rows [N], and the cosines [N] of rows and reconstructions."""
    lengths, own = (np.linalg.norm(rows, axis=1) for rows in (database, x_hat))
    cosines = np.maximum((database * x_hat).sum(axis=1) / (lengths * own), 0)
    return np.sqrt(cosines) * lengths / own, cosines


def ranks(queries, database, x_hat):
    """How many rows [Q] the reconstructions put before the one that is truly best."""
    scores, best = queries @ x_hat.T, nearest_neighbours(database, queries, 1, "ip")
    return (scores > np.take_along_axis(scores, best, axis=1)).sum(axis=1)


def run(data, vectors, kind, names, num_rows, num_epochs, preset, seed, model):
    """A row for each variant; the first one is what the others are compared with."""
    rng = np.random.default_rng(seed)
    x, database, pool = vectors_of(vectors, data, num_rows, rng)
    sample, queries = queries_of(kind, data, pool, rng)

    @functools.cache
    def plain():
        return train(x) if model is None else qj.load(model)

    def train(x):
        return qj.train(x, qj.PRESETS[preset], qj.RECIPES[preset], seed=seed, num_epochs=num_epochs)

    first = None
    for name in names:
        variant = VARIANTS[name]
        same = variant.loss is not None or variant == Variant()
        x_hat = reconstructed(variant, x, database, sample, (lambda _: plain()) if same else train)
        scale, cosines = scales(database, x_hat)
        rank = ranks(queries, database, x_hat * scale[:, None])
        as_it_is = ranks(queries, database, x_hat)
        first = rank if first is None else first
        yield {
            "dataset": data.name, "vectors": vectors, "queries": kind, "variant": name,
            "rows": len(x), "epochs": num_epochs, "preset": preset, "seed": seed,
            "compared_with": names[0], "num_queries": len(queries),
            "error": float(1 - np.square(cosines, dtype=np.float64).mean()),
            **{key: value for k in RANKS for key, value in recall(rank, first, k).items()},
            **{f"recall@{k} as it is": float((as_it_is < k).mean()) for k in RANKS},
            "device": jax.devices()[0].device_kind, "cores": num_cores(), "jax": jax.__version__,
        }  # fmt: skip


def recall(rank, first, k):
    """recall@k, half its 95 % interval, and the same of the difference from `first` [Q]."""
    hits = np.float64(rank < k)
    gains = hits - (first < k)
    half = 1.96 / len(rank) ** 0.5
    return {
        f"recall@{k}": hits.mean(), f"interval@{k}": half * hits.std(),
        f"gain@{k}": gains.mean(), f"gain_interval@{k}": half * gains.std(),
    }  # fmt: skip


def key_of(row):
    """What the rows of one run share."""
    return tuple(row[key] for key in RUN)


def table(rows):
    """One line for each variant."""
    lines = [["set", "vectors", "queries", "epochs", "variant", "error", "R@1", "R@10", "against"]]
    for row in rows:
        gains = [
            f"{100 * row[f'gain@{k}']:+.1f} ± {100 * row[f'gain_interval@{k}']:.1f}" for k in RANKS
        ]
        lines.append([
            row["dataset"], row["vectors"], row["queries"], f"{row['epochs']}",
            row["variant"], f"{row['error']:.4f}", f"{row['recall@1']:.3f}",
            f"{row['recall@10']:.3f}", " / ".join(gains),
        ])  # fmt: skip
    return tables.aligned(lines)


def plot(rows, image):
    """Points of recall against per cent of error, compared with the first variant of each run."""
    others = [row for row in rows if row["variant"] != row["compared_with"]]
    looks = style.looks(sorted({row["variant"] for row in others}))
    looks = {name: {**look, "linestyle": "none"} for name, look in looks.items()}
    sets = list(dict.fromkeys(row["dataset"] for row in others))
    panels = [(name, k) for k in RANKS for name in sets]
    first = {key_of(row): row["error"] for row in rows if row["variant"] == row["compared_with"]}
    with style.plot_style():
        title = "Recall by inner product and error, compared with the first of each run"
        figure, axes = style.panels(len(panels), title, len(sets))
        for axis, (name, k) in zip(axes, panels, strict=True):
            for row in (row for row in others if row["dataset"] == name):
                axis.errorbar(
                    100 * (row["error"] / first[key_of(row)] - 1), 100 * row[f"gain@{k}"],
                    100 * row[f"gain_interval@{k}"], elinewidth=0.7, **looks[row["variant"]],
                )  # fmt: skip
            axis.axhline(0, color="black", linewidth=0.8)
            axis.axvline(0, color="black", linewidth=0.8)
            axis.set(title=name, xlabel="error (%)", ylabel=f"points of R@{k}")
        style.finish(figure, style.lines(looks))
        style.save(figure, image)


@click.command(help=__doc__.split("\n\n")[0])
@click.option("--dataset", metavar="NAME|PATH", help="[default: only --plot]")
@click.option("--queries", "kind", type=click.Choice(QUERIES), default="own", show_default=True)
@click.option("--vectors", type=click.Choice(VECTORS), default="unit", show_default=True)
@click.option("--variant", "names", type=click.Choice(list(VARIANTS)), multiple=True)
@click.option("--rows", "num_rows", default=20_000, show_default=True)
@click.option("--epochs", "num_epochs", default=0, show_default=True)
@click.option("--preset", default="small", show_default=True)
@click.option("--seed", default=0, show_default=True)
@click.option("--model", help="the plain one, which is then not trained")
@click.option("--out", required=True, type=click.Path(path_type=Path))
@click.option("--plot", "image", type=click.Path(path_type=Path), help=".svg or .png")
def main(dataset, kind, vectors, names, num_rows, num_epochs, preset, seed, model, out, image):
    if dataset is not None:
        data = qj.datasets.load(dataset)
        out.parent.mkdir(parents=True, exist_ok=True)
        for row in run(data, vectors, kind, names, num_rows, num_epochs, preset, seed, model):
            with out.open("a") as file:
                file.write(json.dumps(row) + "\n")
    rows = results.read(out, (*RUN, "variant"))
    click.echo(table(rows))
    if image is not None:
        plot(rows, image)


if __name__ == "__main__":
    main()
