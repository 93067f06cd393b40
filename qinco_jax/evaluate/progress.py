"""How evaluations show their progress."""

import contextlib
from collections.abc import Callable, Iterator

from qinco_jax.evaluate.metrics import Progress
from qinco_jax.training.loop import Advance, unseen

Stage = Callable[[str], contextlib.AbstractContextManager[Advance]]
"""Shows the progress of one step: its title -> an `Advance`."""


@contextlib.contextmanager
def silent(title: str) -> Iterator[Advance]:
    """A `Stage` that shows nothing."""
    yield unseen


def counting(advance: Advance, total: int) -> Progress:
    """Progress that adds up the rows of each block and passes (done, total) to `advance`."""
    seen = 0
    advance(seen, total)

    def count(rows: int) -> None:
        nonlocal seen
        seen += rows
        advance(seen, total)

    return count
