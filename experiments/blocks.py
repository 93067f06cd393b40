"""How many residual blocks L are worth it: error and time of both forms of the network.

    python experiments/blocks.py --dataset NAME --scale full

The paper, R@1 of QINCo trained on 10 million vectors, L = 2 / L = 16: BigANN1M 40.2 / 45.2 at 8
bytes and 67.5 / 71.9 at 16, Deep1M 31.1 / 36.3 and 55.0 / 59.8.

Ours: not run yet on these sets.
"""

import click
import scale

DEPTHS = {"small": (1, 2, 4), "full": (1, 2, 4, 8, 16)}
PRESETS = {"QINCo": "qinco1", "QINCo2": "qinco2-S"}


@scale.command(__doc__)
@click.option("--bytes", "num_bytes", default=8, show_default=True, help="per vector")
def main(task, num_bytes):
    depths = DEPTHS["small" if task.small else "full"]
    every = {
        f"{name} L={depth}": (preset, [f"num_blocks={depth}"], num_bytes)
        for name, preset in PRESETS.items()
        for depth in depths
    }
    scale.variants(task, every)


if __name__ == "__main__":
    main()
