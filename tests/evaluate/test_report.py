"""Plots and page of an evaluation, the page in a real browser."""

import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest

from qinco_jax.errors import InputError
from qinco_jax.evaluate import plots, report, results, style

NASTY = """</b><script>console.error("ran")</script>&"'$_$"""
FLAGS = [
    "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync",
    "--disable-background-networking", "--disable-component-update",
]  # fmt: skip


def result(codec: str, size: float, mse: float, recall: float, **more: Any) -> dict[str, Any]:
    return {
        "dataset": f"set {NASTY}", "codec": codec, "bytes": size, "seed": 0, "num_queries": 500,
        "queries": "queries, l2", "mse": mse, "mse_interval": [0.98 * mse, 1.02 * mse],
        "recall@1": recall, "recall@1_interval": [recall - 0.04, recall + 0.04],
        "other_queries": {"noise": {"recall@1": recall / 2}}, "machine": "a machine",
        "settings": {"nasty": NASTY}, "versions": {"numpy": "2"}, "revision": None, **more,
    }  # fmt: skip


def searched(a: int, b: int) -> dict[str, Any]:
    return {"model": "small", "num_candidates": a, "beam_size": b, "joint": False}


RESULTS = [
    row
    for size in (4.0, 8.0)
    for row in (
        result("rq", size, 20000 / size, 0.1, label="RQ"),
        result(NASTY, size, 9000 / size, 0.30),
        result("small:A=4", size, 8000 / size, 0.33, label="QINCo", **searched(4, 8)),
        result("small:A=8", size, 100000 / size, 0.09, label="QINCo", **searched(8, 8)),
    )
]
COSTS = [
    {key: row[key] for key in ("codec", "bytes", "seed")} | {"encode_us": 9 + i, "decode_us": 2.0}
    for i, row in enumerate(RESULTS)
]
GROWTH = [
    {"codec": "rq", "axis": "M", "value": m, "encode_us": 3 * m, "decode_us": 1 / m, "peak_mib": m}
    for m in (2, 4, 8)
]


def folder_of(folder: Path, **files: list[dict[str, Any]]) -> Path:
    for name, rows in files.items():
        results.write(rows, folder / f"{name}.jsonl")
    return folder


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("evaluation")
    return report.write_page(folder_of(folder, results=RESULTS, costs=COSTS, growth=GROWTH))


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    names = ("chromium", "google-chrome", "google-chrome-stable")
    found = os.environ.get("CHROME") or next(filter(None, map(shutil.which, names)), None)
    if found is None:
        pytest.skip("no chromium or google-chrome on PATH, nor in CHROME")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        opened = playwright.chromium.launch(executable_path=found, args=FLAGS)
        yield opened
        opened.close()


@pytest.fixture
def shown(browser: Any, written: Path) -> Iterator[Any]:
    """The page, opened from its file alone; fails on errors and on anything fetched."""
    troubles: list[str] = []
    context = browser.new_context()
    tab = context.new_page()
    tab.on("pageerror", lambda error: troubles.append(str(error)))
    tab.on("console", lambda message: troubles.append(message.text))
    tab.on("dialog", lambda dialog: troubles.append(dialog.message))
    tab.on("request", lambda request: troubles.append(request.url))
    tab.goto(written.as_uri())
    yield tab
    context.close()
    assert [text for text in troubles if not text.startswith("data:")] == [written.as_uri()]


def values(tab: Any, column: int) -> list[list[str]]:
    """What a column of the first table holds, rate by rate."""
    return tab.evaluate(
        """column => [...document.querySelector("table").tBodies].map(body =>
        [...body.rows].slice(1).map(row => row.children[column].dataset.value))""",
        column,
    )


def test_a_heading_sorts_numbers_within_each_rate_and_turns_round(shown: Any) -> None:
    mse, recall = (
        [[row[key] for row in RESULTS if row["bytes"] == size] for size in (4.0, 8.0)]
        for key in ("mse", "recall@1")
    )
    heading = shown.locator("table").first.locator("thead th")
    assert [list(map(float, rate)) for rate in values(shown, 1)] == [sorted(rate) for rate in mse]
    assert heading.nth(1).get_attribute("aria-sort") == "ascending"
    heading.nth(1).locator("button").click()
    assert [list(map(float, rate)) for rate in values(shown, 1)] == [
        sorted(rate, reverse=True) for rate in mse
    ]
    assert heading.nth(1).get_attribute("aria-sort") == "descending"
    heading.nth(2).locator("button").press("Enter")  # the keyboard sorts too, the best first
    assert [list(map(float, rate)) for rate in values(shown, 2)] == [
        sorted(rate, reverse=True) for rate in recall
    ]
    assert heading.nth(1).get_attribute("aria-sort") == "none"


def test_the_page_shows_its_plots_and_every_name_as_written(shown: Any) -> None:
    widths = shown.evaluate("[...document.images].map(image => image.naturalWidth)")
    assert len(widths) == 6 and min(widths) > 100
    assert NASTY in shown.locator("h1").inner_text()
    assert NASTY in shown.locator("tbody th[scope=row]").all_inner_texts()
    shown.evaluate("document.querySelectorAll('details').forEach(part => part.open = true)")
    assert json.dumps(NASTY) in shown.locator("pre").first.inner_text()
    assert shown.locator("b script, pre script, h1 script").count() == 0


def test_the_page_fits_a_phone(shown: Any) -> None:
    shown.set_viewport_size({"width": 360, "height": 700})
    assert shown.evaluate("document.documentElement.scrollWidth") <= 360


def test_a_difference_within_the_intervals_is_no_gain(shown: Any) -> None:
    rate = shown.locator("tbody").first
    names = [text.split("\n")[0] for text in rate.locator("th[scope=row]").all_inner_texts()]
    classes = rate.locator("td:nth-child(3)").evaluate_all("cells => cells.map(x => x.className)")
    assert names == ["QINCo (small:A=4)", NASTY, "RQ", "QINCo (small:A=8)"]
    assert classes == ["best", "same", "", ""]
    marked = rate.locator("td:nth-child(2)").evaluate_all("cells => cells.map(x => x.className)")
    assert marked == ["best", "", "", ""]  # of MSE the intervals lie apart


def test_every_plot_that_the_files_allow_is_drawn(written: Path) -> None:
    names = {"rates", "times", "search", "shift", "growth", "growth-memory"}
    assert {path.stem for path in written.parent.glob("*.svg")} == names
    assert {path.stem for path in written.parent.glob("*.png")} == names
    for path in written.parent.glob("*.svg"):
        assert ElementTree.parse(path).getroot().tag.endswith("svg")


def test_results_alone_are_enough(tmp_path: Path) -> None:
    rows = [
        {"codec": "RQ", "bytes": size, "mse": 9 / size, "recall@1": size / 9}
        for size in (1.0, 16.0)
    ]
    folder_of(tmp_path, results=rows)
    plots.plot_rates(tmp_path / "results.jsonl", tmp_path / "a.svg", "a set")
    plots.plot_rates(tmp_path / "results.jsonl", tmp_path / "b.svg", "a set")
    assert (tmp_path / "a.svg").read_bytes() == (tmp_path / "b.svg").read_bytes()
    assert "<table>" in report.write_page(tmp_path).read_text()
    assert {path.name for path in tmp_path.glob("*.png")} == {"rates.png"}


def test_the_plot_of_rates_holds_every_interval() -> None:
    evaluation = results.gather(RESULTS)
    with style.plot_style():
        figure = plots.PLOTS["rates"].draw(evaluation)
    assert figure is not None
    for axis, key, unit in zip(figure.axes, ("mse", "recall@1"), (1, 100), strict=True):
        ends = [end * unit for row in RESULTS for end in row[f"{key}_interval"]]
        (left, right), (bottom, top) = axis.get_xlim(), axis.get_ylim()
        assert left < 4 and right > 8 and bottom < min(ends) and top > max(ends)


def test_twelve_codecs_differ_in_grey_and_in_colour() -> None:
    looks = style.looks(map(str, range(12))).values()
    assert len({look["marker"] for look in looks}) == 12
    assert len({(look["color"], str(look["linestyle"])) for look in looks}) == 12


def test_seeds_are_averaged_and_their_intervals_joined() -> None:
    rows = [
        {"codec": "c", "bytes": 4.0, "seed": 0, "mse": 2.0, "mse_interval": [1.5, 2.5], "A": 4},
        {"codec": "c", "bytes": 4.0, "seed": 1, "mse": 9.0, "mse_interval": [9.0, 9.0], "A": 4},
        {"codec": "c", "bytes": 4.0, "seed": 1, "mse": 3.0, "mse_interval": [2.0, 4.0], "A": 4},
    ]
    costs = [
        {"codec": "c", "bytes": 4.0, "encode_us": 5.0},
        {"codec": "other", "bytes": 4.0, "encode_us": 5.0},
    ]
    (point,) = results.gather(rows, costs).points
    assert (point["mse"], point["mse_interval"], point["A"]) == (2.5, [1.5, 4.0], 4)
    assert point["encode_us"] == 5.0


def test_files_of_older_versions_are_read_under_todays_names(tmp_path: Path) -> None:
    results.write([{"codec": "a", "family": "b", "settings": {"normalize": True}}], tmp_path / "r")
    assert results.read(tmp_path / "r") == [
        {"codec": "a", "model": "b", "settings": {"unit_norm": True}}
    ]


def test_a_loss_has_the_intervals_of_both_sets() -> None:
    row = {
        "recall@1": 0.6, "recall@1_interval": [0.57, 0.64],
        "other_queries": {
            "other": {"recall@1": 0.5, "recall@1_interval": [0.47, 0.54]},
            "far": {"recall@10": 1.0},
            "noise": {
                "recall@1": 0.5, "recall@1_interval": [0.47, 0.54],
                "recall@1_loss": 0.1, "recall@1_loss_interval": [0.09, 0.11],
            },
        },
    }  # fmt: skip
    (name, (value, ends)), paired = results.losses(row).items()
    assert (name, value) == ("other", pytest.approx(0.1))
    np.testing.assert_allclose(ends, [0.1 - 0.05, 0.1 + 0.05])
    assert paired == ("noise", (0.1, (0.09, 0.11)))


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (None, "results.jsonl cannot be read"),
        ("", "results.jsonl holds no results"),
        ('{"codec": "a", "bytes": 1, "mse": 1}\n{"codec', "results.jsonl, line 2 .*; delete"),
        ('{"codec": "a", "bytes": 1}', "line 1 is not a result with 'codec' and 'bytes' and 'mse'"),
        ('{"codec": "a", "bytes": 1, "mse": 1, "dataset": "b"}\n'
         + '{"codec": "a", "bytes": 2, "mse": 1, "dataset": "c"}\n', r"several data sets \(b, c\)"),
    ],
)  # fmt: skip
def test_damaged_files_say_what_to_do(tmp_path: Path, text: str | None, says: str) -> None:
    if text is not None:
        (tmp_path / "results.jsonl").write_text(text)
    with pytest.raises(InputError, match=says):
        report.write_page(tmp_path)
