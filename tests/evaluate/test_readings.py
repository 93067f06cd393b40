"""Recall by the chosen reading of distances against brute force in float64; bytes and tables."""

from unittest import mock

import numpy as np
import pytest
from oracle import half_scale

from qinco_jax.codecs.codec import Codec
from qinco_jax.datasets.dataset import Dataset
from qinco_jax.errors import InputError
from qinco_jax.evaluate import readings, results, tables
from qinco_jax.evaluate.metrics import Score, measure
from qinco_jax.evaluate.neighbours import BLOCK_ROWS, RANKS, queries_of
from qinco_jax.search import distance, trial

RNG = np.random.default_rng(0)
X = np.float32(RNG.normal(size=(BLOCK_ROWS + 700, 8)) + 2)  # two blocks, and a trial
DATABASE, TRIAL, QUERIES = X[:-600], X[-600:], np.float32(RNG.normal(size=(60, 8)) + 2)


def on_a_sphere(x: np.ndarray) -> np.ndarray:
    return np.float32(3 * x / np.linalg.norm(x, axis=1, keepdims=True))


def codec_of(decode, unit_norm: bool = False) -> Codec:  # type: ignore[no-untyped-def]
    """A codec whose codes are the bits of the vectors, and of one byte, as it says."""
    return Codec(
        "bits", 8.0, lambda x: np.asarray(x, np.float32).view(np.int32),
        lambda codes: np.float32(decode(np.asarray(codes).view(np.float32))),
        unit_norm=unit_norm, column_sizes=(1,),
    )  # fmt: skip


def distorted(x: np.ndarray) -> np.ndarray:
    """Shorter than x, by a factor that differs between rows, and off its direction."""
    return (0.5 + 0.4 * np.cos(9 * x[:, :1])) * (x + 0.1 * np.sin(7 * x))


def reading_recall(score: Score, name: str = "queries") -> dict[str, float]:
    return {
        key.removeprefix("reading_"): estimate.value
        for key, estimate in score.recall[name].items() if key.startswith("reading_")
    }  # fmt: skip


def by_brute_force(metric: str, kind: str) -> dict[str, float]:
    """Recall of the queries in float64, with the byte as 256 levels of the trial's quantiles."""
    database, held, queries = on_a_sphere(DATABASE), on_a_sphere(TRIAL), np.float64(QUERIES)
    if kind == "length":
        database, held = DATABASE, TRIAL

    def placed(x: np.ndarray) -> np.ndarray:
        origin = TRIAL.mean(axis=0, dtype=np.float64)
        return np.float64(x) - origin if (metric, kind) == ("l2", "length") else np.float64(x)

    def goal(x: np.ndarray) -> np.ndarray:
        x = placed(x)
        return x / np.linalg.norm(x, axis=1, keepdims=True) if metric == "cosine" else x

    def value(x: np.ndarray) -> np.ndarray:
        x_hat = placed(distorted(x))
        if kind == "length":
            return np.square(goal(x)).sum(1)
        return half_scale(goal(x), x_hat)

    low, high = np.quantile(value(held), (0.001, 0.999))
    low, step = (float(np.float32(number)) for number in (low, (high - low) / 255))
    kept = low + step * np.clip(np.rint((value(database) - low) / step), 0, 255)
    x_hat = placed(distorted(database))
    factor = np.sqrt(kept / np.square(x_hat).sum(1)) if kind == "length" else kept
    near, asked, x = factor[:, None] * x_hat, goal(queries), goal(database)
    true, found = -asked @ x.T, -asked @ near.T
    if metric == "l2":
        true = np.square(x).sum(1) + 2 * true
        if kind == "length":
            found = np.square(near).sum(1) + 2 * found
    best, top = np.argsort(true, axis=1), np.argsort(found, axis=1)
    expected = {f"recall@{k}": float((top[:, :k] == best[:, :1]).any(1).mean()) for k in RANKS}
    for k in RANKS[1:]:
        both = [len(set(a) & set(b)) / k for a, b in zip(top[:, :k], best[:, :k], strict=True)]
        expected[f"{k}-recall@{k}"] = float(np.mean(both))
    return expected


@pytest.mark.parametrize(
    ("metric", "kind"),
    [("l2", "length"), ("l2", "scale"), ("ip", "length"), ("ip", "scale"), ("cosine", "scale")],
)
def test_recall_by_each_reading_is_that_of_brute_force(metric: str, kind: str) -> None:
    database, held = (on_a_sphere(x) if kind == "scale" else x for x in (DATABASE, TRIAL))

    def fixed(metric: str, rows: distance.Measured, origin: np.ndarray) -> distance.Reading:
        assert kind in distance.kinds(metric, rows.x)
        return distance.fit(metric, kind, rows, origin)

    with mock.patch.object(trial, "choose", fixed):
        asked = [queries_of(QUERIES, database, metric)]
        score = measure(codec_of(distorted), database, asked, trial_rows=held)
    assert score.readings["queries"] == (kind, 2)
    expected = by_brute_force(metric, kind)
    # Two rows that differ by rounding alone may change places for one of the queries.
    assert reading_recall(score) == pytest.approx(expected, abs=1.01 / len(QUERIES))
    assert 0.05 < expected["recall@1"] < expected["recall@10"]


@pytest.mark.parametrize("metric", ["l2", "ip"])
def test_lengths_beside_codes_of_shrunken_reconstructions_find_more(metric: str) -> None:
    shrunken = codec_of(lambda x: (x - 2) * (0.5 + 0.4 * np.cos(9 * x[:, :1])) + 2)
    directions = codec_of(lambda x: x / np.linalg.norm(x, axis=1, keepdims=True), unit_norm=True)
    for codec in (shrunken, directions) if metric == "l2" else (directions,):
        asked = queries_of(QUERIES, DATABASE, metric)
        other = queries_of(QUERIES + 0.1, DATABASE, metric, name="noise")._replace(paired=True)
        score = measure(codec, DATABASE, [asked, other], trial_rows=TRIAL)
        assert score.readings["queries"] == score.readings["noise"] == ("length", 2)
        by_reading = reading_recall(score)
        plain = {name: score.recall["queries"][name].value for name in by_reading}
        assert by_reading["recall@1"] > plain["recall@1"] + 0.1
        assert by_reading["recall@100"] > 0.95
        row = results.fields(score, [asked, other])
        assert (row["reading"], row["reading_bytes"]) == ("length", 2)
        assert row["reading_recall@1"] == by_reading["recall@1"]
        assert "reading_recall@1_loss" in row["other_queries"]["noise"]


def test_without_a_byte_there_is_nothing_to_count() -> None:
    perfect, asked = codec_of(lambda x: x), [queries_of(QUERIES, DATABASE)]
    score = measure(perfect, DATABASE, asked, trial_rows=TRIAL)
    assert score.readings["queries"] == ("reconstruction", 1)
    assert set(reading_recall(score).values()) == {1.0}
    for few in (None, TRIAL[:19]):  # too few to try anything by
        score = measure(perfect, DATABASE, asked, trial_rows=few)
        assert not score.readings and not reading_recall(score)
        assert "reading" not in results.fields(score, asked)


def test_a_reading_is_chosen_by_training_vectors_that_are_not_measured() -> None:
    train = np.arange(40_000, dtype=np.float32).reshape(20_000, 2)
    whole = Dataset("a set", train)
    for data, held_back, end in (
        (whole, train[-2000:], 18_000),
        (whole, train, 0),
        (whole._replace(database=train[:9]), train[-2000:], 20_000),
        (whole._replace(validation=train[:9]), train[:9], 20_000),
    ):
        rows = readings.trial_rows(data, held_back)
        np.testing.assert_array_equal(np.sort(rows[:, 0]), train[:end][-5000:, 0])
    train[17_000] = np.nan
    with pytest.raises(InputError, match="row 17000 of the training vectors holds NaN"):
        readings.trial_rows(whole, train[-2000:])


def test_rows_with_and_without_a_reading_are_shown_together() -> None:
    old = {"codec": "old", "bytes": 8.0, "mse": 1.5, "recall@1": 0.25, "recall@10": 0.5}
    new = {**old, "codec": "new", "reading": "scale", "reading_bytes": 9.0,
           "reading_recall@1": 0.375, "reading_recall@10": 0.625}  # fmt: skip
    same = {**new, "codec": "same", "reading": "reconstruction", "reading_bytes": 8.0}
    lines = tables.markdown([old, new, same]).splitlines()
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[:5]]
    assert cells[0] == ["codec", "bytes", "MSE", "R@1", "R@10", "R@1*", "R@10*"]
    assert cells[2:] == [
        ["old", "8", "1.5", "25.0", "50.0", "—", "—"],
        ["new", "8+1", "1.5", "25.0", "50.0", "37.5", "62.5"],
        ["same", "8", "1.5", "25.0", "50.0", "37.5", "62.5"],
    ]
    assert lines[5] == "" and "R@k*: by the reading of distances" in lines[6]
    assert "*" not in tables.markdown([old])

    def page(*rows: dict[str, object]) -> tuple[list[str], list[list[str]], list[str]]:
        shown = tables.of_scores(results.gather(rows))
        (rate,) = shown["groups"]
        return (
            [column["heading"] for column in shown["columns"]],
            [[f"{cell['text']} {cell['note']}".strip() for cell in row["cells"]]
             for row in rate["rows"]],
            [row["cells"][3]["standing"] for row in rate["rows"]] if len(rows) > 1 else [],
        )  # fmt: skip

    headings, shown, standings = page(old, new, same)
    assert headings == ["codec", "MSE", "R@1", "R@10", "R@1*", "R@10*", "bytes*"]
    assert shown[0][3:] == ["—", "—", "—"] and shown[1][3:] == ["37.5", "62.5", "9 scale"]
    assert shown[2][-1] == "8", "the plain reading, which keeps nothing, needs no name"
    assert standings == ["", "", ""], "at different numbers of bytes none is the best"
    assert page(old, new, {**new, "codec": "b", "reading_recall@1": 0.3})[2] == ["", "best", ""]
    assert page(old)[0] == ["codec", "MSE", "R@1", "R@10"]
