"""The same bits as many small steps or few large ones: the codebook size K against the steps M.

    python experiments/k_m_tradeoff.py --dataset NAME --scale full

The papers' tables have K = 256 and M = 8 or 16. `parts.py` trades steps against parts instead.

Ours: not run yet on the papers' sets. Only sizes K whose bits divide the code's are taken: at 15
bytes all of them, at 3 bytes not 1024.
"""

import math

import click
import scale

SIZES = {"small": (16, 64, 256), "full": (16, 64, 256, 1024, 4096)}
BYTES = {"small": 3, "full": 15}


@scale.command(__doc__)
@click.option("--bytes", "num_bytes", type=int, help="per vector [default: 3 small, 15 full]")
@click.option("--preset", default="qinco2-S", show_default=True)
def main(task, num_bytes, preset):
    name = "small" if task.small else "full"
    num_bytes = num_bytes or BYTES[name]
    sizes = [size for size in SIZES[name] if 8 * num_bytes % math.log2(size) == 0]
    every = {}
    for size in sizes:
        name = f"K={size} M={8 * num_bytes // round(math.log2(size))}"
        every[name] = preset, [f"codebook_size={size}"], num_bytes
    scale.variants(task, every)


if __name__ == "__main__":
    main()
