"""The results of an evaluation as one self-contained HTML page."""

import base64
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from qinco_jax.evaluate import finding, nearest, plots, results, tables
from qinco_jax.evaluate.results import Evaluation
from qinco_jax.files import replacing
from qinco_jax.words import counted


def write_page(folder: str | os.PathLike[str]) -> Path:
    """Draws an evaluation's plots (`plots.draw_all`) and writes its page, `report.html`.

    Args:
      folder: holds `results.jsonl`, `nearest.jsonl` or both, and may hold `costs.jsonl` and
        `growth.jsonl`.

    Returns:
      The file written.

    Raises:
      InputError: a file is missing or damaged.
    """
    import jinja2  # not at the top: slow to import

    searched = nearest.read(folder)
    if searched and not (Path(folder) / results.RESULTS).exists():
        evaluation = Evaluation(results.title_of(str(searched[0]["dataset"])), searched, [], {}, [])
    else:
        evaluation = results.load(folder)
    is_scored = bool(evaluation.points)
    target = Path(folder) / "report.html"
    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined)
    template = environment.from_string(Path(__file__).with_name("report.html").read_text("utf-8"))
    text = template.render(
        title=evaluation.title,
        subject="compression at each rate" if is_scored else "nearest neighbours",
        finding=" ".join([finding.of(evaluation)] * is_scored + [nearest.finding(searched)]),
        summary=_summary(evaluation) if is_scored else "",
        scores=tables.of_scores(evaluation) if is_scored else None,
        losses=tables.of_losses(evaluation),
        queries=_first(evaluation, "queries", "the main queries"),
        plots=[
            _figure(image, plots.PLOTS[name].about)
            for name, image in (plots.draw_all(folder) if is_scored else {}).items()
        ],
        nearest=searched and {
            "table": nearest.table(searched),
            "plot": _figure(nearest.draw(folder), nearest.ABOUT),
        },
        made=_made(evaluation),
        settings=_settings(evaluation),
    )  # fmt: skip
    with replacing(target) as partial:
        partial.write_text(text, encoding="utf-8")
    return target


def _figure(image: Path, about: str) -> dict[str, str]:
    return {"about": about, "image": base64.b64encode(image.read_bytes()).decode()}


def _first(evaluation: Evaluation, key: str, otherwise: str) -> str:
    return next((str(row[key]) for row in evaluation.rows if key in row), otherwise)


def _summary(evaluation: Evaluation) -> str:
    codecs = {row["codec"] for row in evaluation.points}
    sizes = dict.fromkeys(f"{row['bytes']:g}" for row in evaluation.points)
    parts = [f"{counted(len(codecs), 'codec')} at {finding.at_bytes(list(sizes))} per vector"]
    for key, text in (
        ("train_rows", "trained on {:,} vectors"),
        ("database_rows", "measured on a database of {:,}"),
        ("num_queries", "searched with {:,} queries"),
    ):
        counts = sorted({row[key] for row in evaluation.rows if row.get(key)})
        parts += [text.format(counts[-1])] if counts else []
    return "; ".join(parts) + "."


def _made(evaluation: Evaluation) -> dict[str, str]:
    """How the results were made: every value that their rows give."""
    keys = {
        "dataset": "data set",
        "train_rows": "training vectors",
        "database_rows": "database vectors",
        "num_queries": "queries",
        "queries": "main queries",
        "seed": "seeds",
        "versions": "versions",
        "machine": "machine",
        "revision": "revision",
    }
    made = {}
    for key, name in keys.items():
        values = dict.fromkeys(_text(row[key]) for row in evaluation.rows if key in row)
        if values:
            made[name] = "; ".join(values)
    return made


def _text(value: Any) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{name} {version}" for name, version in value.items())
    if isinstance(value, int):
        return f"{value:,}"
    return "unknown" if value is None else str(value)


def _settings(evaluation: Evaluation) -> dict[str, list[str]]:
    """Settings as text -> the codecs and rates that had them."""
    found: dict[str, dict[str, list[str]]] = {}
    for row in evaluation.rows:
        if row.get("settings"):
            text = json.dumps(row["settings"], indent=2, ensure_ascii=False)
            sizes = found.setdefault(text, {}).setdefault(evaluation.names[row["codec"]], [])
            sizes.append(f"{row['bytes']:g}")
    return {
        text: [
            f"{name} at {finding.at_bytes(list(dict.fromkeys(sizes)))}"
            for name, sizes in codecs.items()
        ]
        for text, codecs in found.items()
    }
