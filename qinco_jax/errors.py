"""The exception for input that cannot be used, and the message for unknown names."""

import difflib
from collections.abc import Collection


class InputError(ValueError):
    """Invalid input; the message names it and says how to fix it.

    Raised for wrong shapes, dtypes and values, damaged files and impossible settings. The command
    line prints only the message and exits with code 2.
    """


def unknown(what: str, name: str, known: Collection[str]) -> str:
    """A message that suggests what is near in spelling, or lists all that there is."""
    near = difflib.get_close_matches(name, known, n=1)
    hint = f"did you mean {near[0]!r}?" if near else f"known: {', '.join(known)}"
    return f"unknown {what} {name!r}; {hint}"
