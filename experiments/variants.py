"""The papers' variants of QINCo compared with their plain counterparts, with what they cost.

    python experiments/variants.py --scale full --set num_epochs=3

QINCo-LR, whose W is of low rank (for large D); IVF-QINCo and IVF-QINCo2 behind 1,024 frozen
centroids, which cost 2 bytes of the 10; PQ-QINCo, whose halves of a vector have a model each, with
and without a rotation. 8 bytes in the steps everywhere, the network and the recipe of `small`.

The papers compare them at the sizes they are made for: QINCo-LR at D = 768 (Contriever), lists by
the million, PQ at 16 bytes and more. Here they only show what each costs where it is not needed.

Ours: README, and results/variants.jsonl with its costs; three epochs on 90,000 rows of sift-photos.
"""

import scale

PRESET = "small"
FIRST = ("form=qinco", "embed_dim=null")
LISTS = "num_centroids=1024"
EVERY = {
    "QINCo2": (PRESET, (), 8),
    "IVF-QINCo2": (PRESET, (LISTS,), 10),
    "QINCo": (PRESET, FIRST, 8),
    "QINCo-LR": (PRESET, ("form=qinco-lr", "embed_dim=null"), 8),
    "IVF-QINCo": (PRESET, (*FIRST, LISTS), 10),
    "PQ-QINCo": (PRESET, (*FIRST, "num_parts=2"), 8),
    "PQ-QINCo, rotated": (PRESET, (*FIRST, "num_parts=2", "opq=true"), 8),
}


@scale.command(__doc__)
def main(task):
    scale.variants(task, EVERY)


if __name__ == "__main__":
    main()
