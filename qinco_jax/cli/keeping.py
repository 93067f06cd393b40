"""What a command has kept when Ctrl-C ends it, for the message that says so."""

from collections.abc import Callable

import click

KEY, NOTHING = "qinco_jax.kept", "nothing was kept"
AGAIN = "run the same command again to resume"


def keeps(kept: Callable[[], str]) -> None:
    """From here on `kept` is called after Ctrl-C, to say what the command has kept."""
    click.get_current_context().meta[KEY] = kept


def kept(context: click.Context) -> str:
    """What the command at hand has kept: nothing, unless it says otherwise."""
    return context.meta.get(KEY, lambda: NOTHING)()
