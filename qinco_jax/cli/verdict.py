"""What errors tell at the end of a training: whether it beats RQ, and on the rows to be stored."""

from collections.abc import Sequence

import numpy as np

from qinco_jax.codecs.codec import Codec
from qinco_jax.evaluate.metrics import measure
from qinco_jax.quantizers.rq import sample_rows
from qinco_jax.vectors.stored import Rows


def beside_rq(own: Codec, rqs: Sequence[Codec], rows: Rows, seen: bool) -> str:
    """The error on rows, beside that of the best residual quantizer of these bytes.

    Args:
      own: the model, at its full rate.
      rqs: residual quantizers, some at this rate.
      rows: [V, D].
      seen: whether they were trained on.
    """
    error = _error(own, rows)
    equal = [codec for codec in rqs if codec.bits == max(each.bits for each in rqs)]
    other, name = min((_error(codec, rows), codec.name) for codec in equal)
    which = (
        "vectors that were trained on" if seen else "validation vectors, which were not trained on"
    )
    found = (
        f"on {len(rows):,} {which}, {own.name} has an MSE of {error:.6g} and {name} one of "
        f"{other:.6g}"
    )
    if error < other:
        return f"{found}: {1 - error / other:.1%} less"
    return (
        f"{found}: RQ is as good here. Use it (--set num_epochs=0 makes a model of one), or give "
        "more vectors"
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
