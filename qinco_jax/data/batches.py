"""Which rows form a batch: a pure function of (seed, step), so that resuming needs one integer."""

import numpy as np


def batch_rows(seed: int, step: int, batch_size: int, num_rows: int) -> np.ndarray:
    """The rows of the batch of training step `step`.

    Every epoch visits each row at most once, in an order of its own; the num_rows % batch_size
    rows that are left over differ from epoch to epoch. Nothing of the size of the data is made: a
    Feistel network permutes the numbers 0..num_rows - 1 and is evaluated at the batch's places.

    Args:
      seed: of the order.
      step: training step from 0, over all epochs.
      batch_size: rows of a batch, at most `num_rows`.
      num_rows: rows of the training set, less than 2^62.

    Returns:
      [batch_size] int64, sorted, so that a memory-mapped file is read forwards.
    """
    epoch, place = divmod(step, num_rows // batch_size)
    places = np.arange(place * batch_size, (place + 1) * batch_size, dtype=np.uint64)
    keys = np.random.default_rng([seed, epoch]).integers(0, 2**64, size=6, dtype=np.uint64)
    half_bits = max(1, (int(num_rows - 1).bit_length() + 1) // 2)
    rows = _feistel(places, keys, half_bits)
    while (outside := rows >= num_rows).any():  # walk the cycle until it is inside again
        rows[outside] = _feistel(rows[outside], keys, half_bits)
    return np.sort(rows.astype(np.int64))


def _feistel(values: np.ndarray, keys: np.ndarray, half_bits: int) -> np.ndarray:
    """A permutation of the numbers below 4^half_bits, chosen by `keys`."""
    mask = np.uint64((1 << half_bits) - 1)
    left, right = values >> np.uint64(half_bits), values & mask
    for key in keys:
        mixed = (right ^ key) * np.uint64(0x9E3779B97F4A7C15)  # wraps around, as it should
        mixed ^= mixed >> np.uint64(29)
        mixed *= np.uint64(0xBF58476D1CE4E5B9)
        left, right = right, left ^ ((mixed >> np.uint64(32)) & mask)
    return (left << np.uint64(half_bits)) | right
