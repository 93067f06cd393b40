"""The search of one trained model: A candidates of each of B partial codes, or A B of all.

    python experiments/candidates_beam.py --dataset NAME --scale full

The paper trains with A = 16, B = 32 and evaluates with A = 32, B = 64; its figure is not repeated
here.

Ours: not run yet on the papers' sets. On the embedded set `search.py` measured further ways to
search: A = 2, B = 64 jointly takes 1,551 microseconds a vector and has an MSE of 14,083, where A =
16, B = 32 takes 4,475 and has 14,136 (2 cores of a Xeon at 2.3 GHz, 2026-11-22).
"""

import itertools

import click
import scale

EACH = {"small": ((1, 4), (1, 4)), "full": ((4, 8, 16, 32), (1, 4, 16, 32, 64))}
JOINT = {"small": ((2,), (4, 8)), "full": ((1, 2, 4), (16, 32, 64, 96))}


@scale.command(__doc__)
@click.option("--bytes", "num_bytes", default=8, show_default=True, help="per vector")
@click.option("--preset", default="qinco2-S", show_default=True)
def main(task, num_bytes, preset):
    name = "small" if task.small else "full"
    searches = [
        f"{preset}:A={candidates}:B={beam_size}:{how}"
        for how, grid in (("each", EACH), ("joint", JOINT))
        for candidates, beam_size in itertools.product(*grid[name])
    ]
    scale.compare(task, searches, [num_bytes])
    scale.show(task.folder)


if __name__ == "__main__":
    main()
