"""What each part of QINCo2 is worth: one change of the model, the search or the recipe at a time.

    python experiments/ablations.py --dataset NAME --scale full

The papers: QINCo's ablations (L = 8, 8 bytes, 500,000 training vectors, MSE of BigANN1M in units of
10^4): all losses 1.40; the last step's loss alone 2.81; losses detached between steps 1.42; one
concatenation layer for all steps 1.46; one residual network for all steps 1.69. None of them can be
expressed here: each needs another loss or network, an option in the library that nobody else would
use. QINCo2's, which show what the candidates, the beam, the projections and the recipe gain, can.

Ours: not run yet on the papers' sets.
"""

import scale

PRESET, RATE, TRAIN_ROWS = "qinco2-S", 8, 500_000
EACH = ("joint=false",)
WITHOUT_PROPOSALS = (*EACH, "num_candidates=null", "train_candidates=null")
GREEDY = ("beam_size=1", "train_beam=1")
CHANGES = {
    "QINCo2": EACH,
    "joint choice (ours)": (),
    "without pre-selection": WITHOUT_PROPOSALS,
    "without beam": (*EACH, *GREEDY),
    "neither": (*WITHOUT_PROPOSALS, *GREEDY),
    "without projections": (*EACH, "projections=false", "embed_dim=null"),
    "QINCo's network": (*EACH, "form=qinco", "embed_dim=null"),
    "QINCo's recipe": (
        *EACH, "learning_rate=1e-3", "schedule=plateau", "warmup=0", "weight_decay=0", "clip=null",
    ),
    "8 updates per batch (ours)": (*EACH, "num_updates=8"),
}  # fmt: skip


@scale.command(__doc__, train_rows=TRAIN_ROWS)
def main(task):
    scale.variants(task, {name: (PRESET, change, RATE) for name, change in CHANGES.items()})


if __name__ == "__main__":
    main()
