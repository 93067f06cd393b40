"""The uses of a run's seed, each with random numbers of its own."""

import numpy as np

INITIAL_WEIGHTS, NEW_CODEWORDS, PART, MIXED_ROWS = range(4)


def seed_for(seed: int, *use: int) -> int:
    """A seed below 2^31 for one use of `seed`, such as (PART, 2) for the third part."""
    return int(np.random.SeedSequence([seed, *use]).generate_state(1)[0] >> 1)
