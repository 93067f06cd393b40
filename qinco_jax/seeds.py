"""The uses of a seed, each with random numbers of its own.

A sample of rows is drawn by the seed itself (`rq.sample_rows`), k-means starts by its key. Each use
below always takes the same number of further integers, because NumPy pads with zeros: (7, 2) and
(7, 2, 0) give the same numbers.
"""

import numpy as np

(
    INITIAL_WEIGHTS, NEW_CODEWORDS, PART, MIXED_ROWS, COARSE_SCALE, COARSE_START, CODEBOOK_NOISE,
    ROW_ORDER, MINED_ROWS, BATCHES, CODE_NOISE,
) = range(11)  # fmt: skip


def seed_for(seed: int, *use: int) -> int:
    """A seed below 2^31 for one use of `seed`, such as (PART, 2) for the third part."""
    return int(np.random.SeedSequence([seed, *use]).generate_state(1)[0] >> 1)
