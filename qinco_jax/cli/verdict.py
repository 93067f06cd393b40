"""What is told at the end of a training: how it began, whether it beats RQ, errors of all rows."""

from collections.abc import Sequence

import numpy as np

from qinco_jax.codecs.codec import Codec
from qinco_jax.evaluate.metrics import measure
from qinco_jax.quantizers.rq import sample_rows
from qinco_jax.training.initial_model import LEFT_OVER
from qinco_jax.training.run_folder import Fitting, Mixing
from qinco_jax.vectors.stored import Rows


def of_mixing(found: Sequence[Mixing], num_rows: int) -> str:
    """Why vectors were moved towards their neighbours; empty if they were not.

    Args:
      found: what held-back vectors decided, in the run or in each of its parts.
      num_rows: how many vectors it was trained on.
    """
    moved = [(each, each.moved) for each in found if each.mix and each.moved is not None]
    if not moved:
        return ""
    first, error = moved[0]
    which = f" in {len(moved)} of {len(found)} parts" * (len(found) > 1)
    overfit, change = first.held_back / first.own - 1, error / first.held_back - 1
    return (
        f"{num_rows:,} vectors are few{which}: residual k-means has an error {overfit:.0%} "
        "higher on vectors that it was not trained on. So training moved each vector towards its "
        f"neighbours, which changes that error by {change:+.1%} and helps networks more (mix "
        f"{first.mix:g}; --set mix=0 trains on the vectors as they are)"
    )


def of_fitting(found: Sequence[Fitting]) -> str:
    """Whether and why codebooks were fitted together before the training; empty if they were not.

    Args:
      found: what the run decided, or each of its parts.
    """
    share = [each.error / each.variance for each in found if each.together]
    if not share:
        return ""
    which = f" in {len(share)} of {len(found)} parts" * (len(found) > 1)
    return (
        f"RQ leaves {max(share):.0%} of the variance of validation vectors{which}, so training "
        f"began with its codebooks fitted anew together, which helps from {LEFT_OVER:.0%} on"
    )


def beside_rq(own: Codec, rqs: Sequence[Codec], rows: Rows, seen: bool) -> str:
    """The error on rows, beside that of the best residual quantizer of these bytes.

    Args:
      own: the model, at its full rate.
      rqs: residual quantizers, some at this rate.
      rows: [V, D].
      seen: whether they were trained on.
    """
    error, other, found = _both(own, rqs, rows, seen)
    if error < other:
        return f"{found}: {1 - error / other:.1%} less"
    return (
        f"{found}: RQ is as good here. Use it (--set num_epochs=0 makes a model of one), or give "
        "more vectors"
    )


def of_nothing_gained(
    own: Codec, rqs: Sequence[Codec], rows: Rows, seen: bool, continued: bool
) -> str:
    """As `beside_rq`, of a model that is still the one that its training began with.

    It `continued` from another model, or began with the untrained one.
    """
    start = "the model of --init" if continued else "the start, without a trained network"
    return (
        f"no epoch improved on the start, so this model is {start}; "
        f"{_both(own, rqs, rows, seen)[2]}"
    )


def _both(own: Codec, rqs: Sequence[Codec], rows: Rows, seen: bool) -> tuple[float, float, str]:
    """The errors of the model and of the best residual quantizer, and a sentence on them."""
    error = _error(own, rows)
    equal = [codec for codec in rqs if codec.bits == max(each.bits for each in rqs)]
    other, name = min((_error(codec, rows), codec.name) for codec in equal)
    which = (
        "vectors that were trained on" if seen else "validation vectors, which were not trained on"
    )
    return (
        error,
        other,
        (
            f"on {len(rows):,} {which}, {own.name} has an MSE of {error:.6g} and {name} one of "
            f"{other:.6g}"
        ),
    )


def of_stored(own: Codec, x: Rows, num_trained: int, most: int) -> str:
    """The error on the file itself, where it is the database: its rows or so many of them.

    Args:
      own: the model, at its full rate.
      x: [N, D], all rows, of which the first `num_trained` were trained on.
      num_trained: how many.
      most: rows to measure.
    """
    rows = sample_rows(x, most, 0)
    some = f"{len(rows):,} drawn from " * (len(rows) < len(x))
    trained, unseen = "", "higher, nobody knows by how much, since none were held back"
    if num_trained < len(x):
        trained = f", {num_trained:,} of which were trained on"
        unseen = "that on validation vectors; --train-on-all trains on those, too"
    return (
        f"on {some}all {len(x):,} vectors of the file{trained}, its MSE is "
        f"{_error(own, rows):.6g}: the error if they are the database. That of vectors to come is "
        f"{unseen}"
    )


def _error(codec: Codec, rows: Rows) -> float:
    return measure(codec, np.asarray(rows)).mse.value
