"""QINCo's multi-rate figure: one model cut to every rate beside models trained for each.

    python experiments/multi_rate.py --dataset NAME --scale full

The paper: the curves lie on each other. The 16-byte model cut to 12 bytes has an MSE (in units of
10^4) and R@1 of .57 / 61.8 on BigANN1M and .08 / 49.7 on Deep1M, better than UNQ at 16 bytes.

Ours: not run yet on these sets.
"""

import scale

RATES = {"small": (4, 8), "full": (2, 4, 6, 8, 10, 12, 14, 16)}
PRESETS = ("qinco1", "qinco2-S")


@scale.command(__doc__)
def main(task):
    rates = RATES["small" if task.small else "full"]
    cut = [f"{preset}@{rates[-1]}" for preset in PRESETS]
    scale.compare(task, ["rq", *cut, *PRESETS], rates)
    scale.show(task.folder)


if __name__ == "__main__":
    main()
