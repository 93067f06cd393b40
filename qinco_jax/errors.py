"""Exceptions whose message is all that the command line prints, and sentences for some."""

import difflib
from collections.abc import Collection, Mapping
from typing import Any


class InputError(ValueError):
    """Invalid input; the message names it and says how to fix it.

    Raised for wrong shapes, dtypes and values, damaged files and impossible settings. The command
    line prints only the message and exits with code 2.
    """


class Diverged(RuntimeError):
    """The loss became NaN or Inf; the message names the last good checkpoint."""


def of_system(error: OSError) -> str:
    """A sentence for what the system refused."""
    reason = f"{error.filename or 'a file'}: {error.strerror or error}"
    return f"{reason}; check the path, its permissions and the free space"


def unknown(what: str, name: str, known: Collection[str]) -> str:
    """A message that suggests what is near in spelling, or lists all that there is."""
    near = difflib.get_close_matches(name, known, n=1)
    hint = f"did you mean {near[0]!r}?" if near else f"known: {', '.join(known)}"
    return f"unknown {what} {name!r}; {hint}"


def differences(there: Mapping[str, Any], here: Mapping[str, Any]) -> list[str]:
    """Where two trees of values differ, each in words."""
    there, here = _flat(there), _flat(here)
    return [
        f"{name} is {there.get(name)} there and {here.get(name)} here"
        for name in sorted(there.keys() | here.keys())
        if there.get(name) != here.get(name)
    ]


def _flat(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        if isinstance(value, Mapping):
            flat |= _flat(value, f"{prefix}{key}.")
        else:
            flat[prefix + key] = value
    return flat
