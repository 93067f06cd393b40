"""Results of search for neighbours: fronts, how much faster ours is, one page with a comparison."""

from pathlib import Path
from typing import Any

import pytest

from qinco_jax.errors import InputError
from qinco_jax.evaluate import nearest, report, results


def row(system: str, recall: float, speed: float | None, **more: Any) -> dict[str, Any]:
    own = {} if speed is None else {"num_probes": 4, nearest.SPEED: speed}
    return {
        "dataset": "a set", "vectors": 1000, "model_bytes": 8.0, "lists": 16, "metric": "l2",
        "residual": False, "system": system, "bytes": 10, "recall@1": recall, "recall@10": 0.9,
        "10-recall@10": 0.6, **own, **more,
    }  # fmt: skip


ROWS = [
    row("ours", 0.30, 4000), row("ours", 0.50, 1000), row("ours", 0.45, 900),
    row("ours", 0.55, 100, num_reranked=50), row("published", 0.40, 500),
    row("published", 0.60, 10), row("exhaustive", 0.50, None),
]  # fmt: skip


def test_a_front_has_what_no_other_setting_beats() -> None:
    ours = [found for found in ROWS if found["system"] == "ours"]
    assert [found["recall@1"] for found in nearest.front(ours)] == [0.30, 0.50, 0.55]
    assert [found["recall@1"] for found in nearest.front([row("a", 0.0, 5)])] == [0.0]
    theirs = nearest.fronts(ROWS)["published"]
    assert [found.get("times") for found in theirs] == [2.0, None]  # ours never reaches .60


def test_a_benchmark_replaces_its_own_rows_only(tmp_path: Path) -> None:
    assert nearest.read(tmp_path) == []
    other = [row("ours", 0.7, 50, vectors=2000, residual=True)]
    for rows in (ROWS, other, ROWS[:4]):
        nearest.add(rows, tmp_path)
    assert nearest.read(tmp_path) == other + ROWS[:4]
    said = nearest.finding(nearest.read(tmp_path))
    assert "2,000 vectors by l2, 8-byte codes in 16 residual lists: recall@1 up to 70.0 %." in said
    (tmp_path / nearest.NEAREST).write_text('{"system": "ours"}\n')
    with pytest.raises(InputError, match=r"line 1 is not a result with 'dataset'"):
        nearest.read(tmp_path)


def test_a_table_and_a_page_show_the_fronts_beside_a_comparison(tmp_path: Path) -> None:
    lines = nearest.markdown(ROWS).splitlines()
    assert len(lines) == 2 + 3 + 2 + 1 and len({len(line) for line in lines}) == 1
    assert "| published" in lines[5] and "40.0 |" in lines[5] and "2 times" in lines[5]
    nearest.add(ROWS, tmp_path)
    alone = report.write_page(tmp_path).read_text()
    assert "a set: nearest neighbours" in alone and "2 times as fast as published" in alone
    assert '<h2 id="results">' not in alone and alone.count("data:image/svg") == 1
    codec = {"dataset": "a set", "codec": "rq", "bytes": 8.0, "mse": 3.0, "recall@1": 0.4}
    results.write([codec], tmp_path / "results.jsonl")
    both = report.write_page(tmp_path).read_text()
    assert '<h2 id="results">' in both and '<h2 id="nearest">' in both
    assert both.index("rq alone") < both.index("2 times as fast as published")
    assert {"nearest.svg", "nearest.png"} <= {path.name for path in tmp_path.iterdir()}
