"""Plots of result files; they compute nothing."""

import os

from qinco_jax.evaluate import report
from qinco_jax.files import replacing

MARKERS = "osD^v*"


def plot_rates(results: str | os.PathLike[str], image: str | os.PathLike[str], title: str) -> None:
    """Draws error and recall against bytes per vector, one line a codec, as PNG or SVG.

    Args:
      results: json lines written by `report.write`.
      image: file to write, named by its ending.
      title: above the plot.
    """
    from matplotlib import style
    from matplotlib.figure import Figure

    rows = sorted(report.read(results), key=lambda row: row["bytes"])
    codecs = list(dict.fromkeys(row["codec"] for row in rows))
    measures = {"mse": "mean squared error", "recall@1": "recall@1 (%)"}
    shown = [name for name in measures if any(name in row for row in rows)]
    with style.context("tableau-colorblind10"):
        figure = Figure(figsize=(4.6 * len(shown), 3.6), layout="constrained")
        axes = figure.subplots(1, len(shown), squeeze=False)
        for axis, name in zip(axes[0], shown, strict=True):
            for codec, marker in zip(codecs, MARKERS, strict=False):
                points = [row for row in rows if row["codec"] == codec and name in row]
                values = [row[name] * (100 if name != "mse" else 1) for row in points]
                axis.plot([row["bytes"] for row in points], values, marker=marker, label=codec)
            axis.set_xlabel("bytes per vector")
            axis.set_ylabel(measures[name])
            axis.set_xticks(sorted({row["bytes"] for row in rows}))
            axis.set_ylim(bottom=0)
            axis.grid(alpha=0.3)
        axes[0][0].legend()
        figure.suptitle(title)
        with replacing(image) as partial:
            figure.savefig(partial, dpi=150)
