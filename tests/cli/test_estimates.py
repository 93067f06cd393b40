"""What a dry run measures: no more rows than there are, none more often than it must."""

from typing import Any

import numpy as np
import pytest

import qinco_jax as qj
from qinco_jax.cli import estimates
from qinco_jax.codecs.codec import Contender
from qinco_jax.models import codes

X = np.float32(np.random.default_rng(0).normal(size=(16_000, 4)))


@pytest.mark.parametrize("num_rows", [300, 5000, 16_000])
def test_timing_a_codec_takes_no_more_rows_than_training_it(num_rows: int) -> None:
    seen: list[int] = []

    def train(x: np.ndarray, *_: Any) -> Any:
        seen.append(len(x))

    contender = Contender("one", "one", 1.0, (1.0,), {}, train)
    x, told = X[:num_rows], list[float]()
    text = estimates.comparison(
        [contender], x, x, 1, lambda done, total, doing="": told.append(done / total)
    )
    assert f"one at 1 byte: {num_rows:,} rows take about 1 second\n" in text
    assert sum(seen) <= num_rows and (len(seen) == 1 or sum(seen) <= num_rows / 2)
    assert told == [0, 1]


def test_a_dry_run_encodes_only_the_vectors_that_there_are(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    config = qj.QincoConfig(num_steps=2, codebook_size=16, hidden_dim=8, num_blocks=1,
                            num_candidates=2, beam_size=2)  # fmt: skip
    model = qj.train(X[:500], config, num_epochs=0)
    seen: list[int] = []

    def encoded(model: Any, x: np.ndarray, search: Any) -> None:
        seen.append(len(x))

    monkeypatch.setattr(codes, "encoded", encoded)
    assert estimates.encoding(model, X[:1]).startswith("dry run: 1 vector at ")
    assert seen == [1, 1]


def test_neither_compiling_nor_padding_counts_as_rows_encoded(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """By a clock of its own: 100 rows a second, and a minute to compile for each number of rows."""
    now, compiled = [0.0], set[int]()

    def encoded(model: Any, x: np.ndarray, search: Any) -> None:
        blocks = -(-len(x) // 16)
        now[0] += 0.16 * blocks + 60 * (blocks not in compiled)
        compiled.add(blocks)

    monkeypatch.setattr(codes, "rows_together", lambda *_: 16)
    monkeypatch.setattr(codes, "encoded", encoded)
    monkeypatch.setattr(estimates.time, "perf_counter", lambda: now[0])
    config = qj.QincoConfig(num_steps=2, codebook_size=16, hidden_dim=8, num_blocks=1,
                            num_candidates=2, beam_size=2)  # fmt: skip
    model = qj.train(X[:500], config, num_epochs=0)
    for num_rows in (40, 16_000):
        assert f"dry run: {num_rows:,} vectors at 100 a second" in estimates.encoding(
            model, X[:num_rows]
        )
