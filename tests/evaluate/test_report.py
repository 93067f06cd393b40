"""Plots and page of an evaluation, the page in a real browser."""

import itertools
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
from qinco_jax.evaluate import finding, plots, report, results, style, tables

KEPT = Path(__file__).parents[2] / "experiments" / "results"  # nine codecs, 4 to 64 bytes
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


def test_nothing_scrolls_sideways_in_a_common_window(browser: Any, tmp_path: Path) -> None:
    for name in ("results", "costs"):
        kept = "compare-sift-photos" + "-costs" * (name == "costs")
        shutil.copy(KEPT / f"{kept}.jsonl", tmp_path / f"{name}.jsonl")
    tab = browser.new_page(viewport={"width": 1300 - 15, "height": 900})  # with a scroll bar
    tab.goto(report.write_page(tmp_path).as_uri())
    assert tab.evaluate("document.documentElement.scrollWidth") <= 1285
    spare = "[...document.querySelectorAll('.scroll')].map(x => x.clientWidth - x.scrollWidth)"
    assert tab.evaluate(spare) == [0, 0]
    tab.close()


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


@pytest.fixture(scope="module")
def crowded() -> Any:
    """Plots of rates that stand close together, with recalls of 100 %."""
    evaluation = results.gather(
        results.read(KEPT / "compare-sift-photos.jsonl"),
        results.read(KEPT / "compare-sift-photos-costs.jsonl"),
        GROWTH,
    )
    with style.plot_style():
        return {name: plot.draw(evaluation) for name, plot in plots.PLOTS.items()}


@pytest.mark.parametrize("name", ["rates", "times", "shift", "growth"])
def test_texts_of_ticks_lie_apart(crowded: Any, name: str) -> None:
    crowded[name].draw_without_rendering()
    for panel in crowded[name].axes:
        for side, axis in enumerate((panel.xaxis, panel.yaxis)):
            labels = [label for label in axis.get_ticklabels() if label.get_text()]
            ends = sorted(
                label.get_window_extent().get_points()[:, side].tolist() for label in labels
            )
            assert all(one[1] < next_one[0] for one, next_one in itertools.pairwise(ends))
            assert len(labels) > 1 or not axis.get_ticklabels()  # a shared axis has them once


def test_texts_beside_near_points_do_not_read_as_one() -> None:
    with style.plot_style():
        figure, (axis,) = style.panels(1, "near")
        axis.set(xlim=(0, 100), ylim=(0, 100))
        points = [(50.0 + 1.2 * i, 50.0, text) for i, text in enumerate("4216")]
        style.write_labels(figure, [axis], [points])
        figure.draw_without_rendering()
    boxes = [text.get_window_extent() for text in axis.texts]
    assert [text.get_text() for text in axis.texts] == list("4216")
    for one, other in itertools.combinations(boxes, 2):
        assert not one.padded(1).overlaps(other)


def test_large_ticks_are_short_and_titles_have_no_hash() -> None:
    ticks = 950.0, 1000.0, 2_500_000.0
    assert [style.short(tick) for tick in ticks] == ["950", "1k", "2.5M"]
    assert results.title_of("v.npy-4b771a") == "v.npy" and results.title_of("a-set") == "a-set"


def test_every_codec_has_its_name_beside_its_bar(crowded: Any) -> None:
    names = [label.get_text() for label in crowded["shift"].axes[0].get_yticklabels()]
    assert len(names) == 6 and all(names)


@pytest.mark.parametrize("name", ["rates", "times"])
def test_markers_are_drawn_whole_and_shares_end_at_100(crowded: Any, name: str) -> None:
    figure = crowded[name]
    figure.draw_without_rendering()
    whole, inside = figure.bbox.get_points(), 0
    for panel in figure.axes:
        left, bottom, right, top = panel.get_window_extent().extents
        if "%" in panel.get_ylabel():
            low, high = panel.get_ylim()
            assert low >= 0 and high <= 100
        for line in panel.get_lines():
            if line.get_marker() not in style.MARKERS:
                continue
            radius = figure.dpi / 72 * line.get_markersize() / 2
            for x, y in line.get_transform().transform(line.get_xydata()):
                assert left < x - radius and x + radius < right
                assert bottom < y - radius and y <= top + 1e-6 and y + radius < whole[1, 1]
                assert not line.get_clip_on()  # half of a marker at 100 % is above the panel
                inside += 1
    assert inside > 20


def test_a_codec_without_company_stands_at_its_own_rate(crowded: Any) -> None:
    panel = crowded["rates"].axes[0]
    (alone,) = (
        line for line in panel.get_lines()
        if line.get_marker() in style.MARKERS and 64 in line.get_xdata()
    )  # fmt: skip
    (x, _), tick = alone.get_transform().transform(alone.get_xydata())[0], (64.0, 1.0)
    assert x == pytest.approx(panel.transData.transform(tick)[0])


def summed_up(*rows: tuple[str, float, float, float | None], unit: str = "") -> str:
    """The finding on rows of codec, bytes, error and recall@1; the error of `unit` has no norm."""
    made = []
    for codec, size, mse, recall in rows:
        row = result(codec, size, mse, recall or 0.0, unit_norm=codec == unit)
        made.append({k: v for k, v in row.items() if recall is not None or "recall" not in k})
    return finding.of(results.gather(made))


def test_the_result_is_summed_up_at_each_rate() -> None:
    both = (
        ("a", 4.0, 90.0, 0.2),
        ("b", 4.0, 80.0, 0.3),
        ("a", 8.0, 30.0, 0.7),
        ("b", 8.0, 40.0, 0.68),
    )
    assert summed_up(*both) == (
        "Lowest error: b at 4 bytes; a at 8 bytes. Highest recall@1: b at 4 bytes; a or b, too "
        "close to tell apart, at 8 bytes."
    )
    assert summed_up(*((*row[:3], None) for row in both)) == (
        "Lowest error: b at 4 bytes; a at 8 bytes."
    )
    three = [("a", size, 9.0, None) for size in (4.0, 8.0, 16.0)]
    ties = [(name, 16.0, 9.1, None) for name in "bc"]
    assert summed_up(*three, *ties) == (
        "Lowest error: all 3, too close to tell apart, at 16 bytes."
    )
    ties.append(("e", 16.0, 99.0, None))
    lone = [("b", 32.0, 1.0, None), ("d", 8.0, 99.0, None), ("d", 4.0, 99.0, None)]
    assert summed_up(*three, *ties, *lone) == (
        "Lowest error: a at 4 and 8 bytes; a or one of 2 others, too close to tell apart, at 16 "
        "bytes."
    )


def test_errors_of_unit_vectors_are_not_ranked_among_others() -> None:
    rows = ("a", 4.0, 90.0, 0.2), ("b", 4.0, 0.8, 0.5)
    assert summed_up(*rows, unit="b") == f"Highest recall@1: b at 4 bytes. {finding.MIXED}"
    assert summed_up(*((*row[:3], None) for row in rows), unit="b") == finding.MIXED


def test_a_codec_alone_is_not_called_the_best() -> None:
    assert summed_up(("a", 4.0, 90.0, 0.2), ("a", 8.0, 3.0, 0.5), ("a", 6.0, 5.0, 0.5)) == (
        "a alone was measured; mean squared error: 90 at 4 bytes and 3 at 8 bytes; recall@1: 20.0 "
        "% at 4 bytes and 50.0 % at 8 bytes."
    )
    assert summed_up(("a", 4.0, 0.5, None), unit="a") == (
        "a alone was measured; error of unit vectors: 0.5 at 4 bytes."
    )
    assert summed_up(("a", 4.0, 90.0, 0.2), ("b", 8.0, 90.0, 0.2)) == finding.NONE_SHARED


def test_the_page_says_what_its_columns_mean(tmp_path: Path) -> None:
    rows = [{**row, "entropy_bits": 30.0, "dead_codewords": 3} for row in RESULTS]
    page = report.write_page(folder_of(tmp_path, results=rows)).read_text()
    for about in (tables.ENTROPY, tables.DEAD):
        assert f"<dd>{about}</dd>" in page


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
