"""Exceptions whose message is all that the command line prints, and sentences for some."""

import difflib
import re
from collections.abc import Collection, Mapping
from typing import Any

HASHED = {
    "data": "training vectors", "train": "training vectors", "init": "weights to begin from (init)"
}  # fmt: skip
"""What stands in an identity as a hash, in words."""


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
        _difference(name, there.get(name), here.get(name))
        for name in sorted(there.keys() | here.keys())
        if there.get(name) != here.get(name)
    ]


def _difference(name: str, there: Any, here: Any) -> str:
    if not (_is_hashed(there) or _is_hashed(here)):
        return f"{name} is {there} there and {here} here"
    what = HASHED.get(name, name)
    if there is None or here is None:
        begin, end = ("no ", "is") if there is None else ("", "is not")
        return f"it was given {begin}{what}, and this one {end}"
    shapes = [
        " x ".join(f"{size:,}" for size in found["shape"]) if isinstance(found, Mapping) else ""
        for found in (there, here)
    ]
    sizes = "" if shapes[0] == shapes[1] else f" ({shapes[0]} there and {shapes[1]} here)"
    return f"it was given other {what}{sizes}"


def _is_hashed(value: Any) -> bool:
    """Whether a value says nothing to a reader: a fingerprint of vectors, or SHA-256 in hex."""
    if isinstance(value, Mapping):
        return any(name.startswith("sha256") for name in value)
    return isinstance(value, str) and re.fullmatch("[0-9a-f]{64}", value) is not None


def _flat(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        if isinstance(value, Mapping) and not _is_hashed(value):
            flat |= _flat(value, f"{prefix}{key}.")
        else:
            flat[prefix + key] = value
    return flat
