"""A recipe that takes a given time on this machine."""

import dataclasses
import math

from qinco_jax.errors import InputError
from qinco_jax.training.estimate import Costs
from qinco_jax.training.recipe import Recipe, length
from qinco_jax.training.run_folder import Schedule

FEWEST_BATCHES = 20  # in all, of which the warm-up is one; of an epoch, where it is shortened
FEWEST_EPOCHS = 8  # the best of which is kept
VALIDATING = 0.1  # share of the time, at most, that epochs are shortened for


def lasting(minutes: float, used: float, found: Costs, recipe: Recipe, num_rows: int) -> Schedule:
    """The schedule that ends about so long after the work began.

    An epoch is at most a pass over the rows, as in the recipe. Where there is time for few of
    them, they are shorter, as long as validation takes at most a tenth of the time.

    Args:
      minutes: from the first to the last second: measuring, start, compiling, training.
      used: seconds of them that are gone.
      found: what the pieces take.
      recipe: how to train.
      num_rows: training vectors.

    Raises:
      InputError: they are too few; says how many do.
    """
    batch_size, most, _ = length(dataclasses.replace(recipe, num_epochs=1), num_rows)
    before = used + found.start + found.compiling + found.validation  # the start is validated
    left = 60 * minutes - before
    whole = left / (most * found.batch + found.validation)  # passes
    if whole >= most:
        num_epochs, per_epoch = int(whole), most
    else:  # of epochs that are not whole, the last one ends in time
        wanted = VALIDATING * left / found.validation, left / found.batch / FEWEST_BATCHES
        num_epochs = max(1, min(FEWEST_EPOCHS, *map(int, wanted)), math.ceil(whole))
        per_epoch = min(most, int((left / num_epochs - found.validation) / found.batch))
    if num_epochs * per_epoch < FEWEST_BATCHES:
        need = before + found.validation + FEWEST_BATCHES * found.batch
        raise InputError(
            f"{minutes:g} min is too short: neighbours, k-means and compiling take about "
            f"{before:.0f} seconds of it here; give at least {math.ceil(need / 6) / 10:g}"
        )
    return Schedule(minutes, num_epochs, per_epoch * batch_size)
