"""The same bytes as steps of whole vectors or of parts of them: PQ-QINCo's table.

    python experiments/parts.py --dataset NAME --scale full

The QINCo paper, FB-ssnpp at 32 bytes, MSE by parts x steps x bits: 2x16x8 42,072, 4x8x8 42,805,
8x4x8 42,493, 16x2x8 41,409; plain PQ 55,700.

Ours: not run yet on that set. `variants.py` compares two parts with one on the embedded set.
"""

import scale

PRESET = "qinco1"
BYTES = {"small": 4, "full": 32}
PARTS = {"small": (1, 2, 4), "full": (1, 2, 4, 8, 16)}


@scale.command(__doc__)
def main(task):
    name = "small" if task.small else "full"
    every = {
        f"{parts}x{BYTES[name] // parts}x8": (PRESET, [f"num_parts={parts}"], BYTES[name])
        for parts in PARTS[name]
    }
    scale.variants(task, {**every, "PQ": ("pq", (), BYTES[name])})


if __name__ == "__main__":
    main()
