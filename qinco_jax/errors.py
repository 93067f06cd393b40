"""Exceptions whose message is all that the command line prints, and sentences for some."""

import difflib
import re
from collections.abc import Collection, Mapping
from typing import Any

HASHED = {
    "data": "training vectors", "train": "training vectors", "init": "weights to begin from (init)"
}  # fmt: skip
"""What stands in an identity as a hash, in words."""
FEWEST_LETTERS, MOST_SUGGESTED = 3, 3  # of what is looked for in names; of names at once
LONGEST_NAME = 60  # letters of what is looked for and shown; requests send names of any length
LIKENESS = 0.75  # of misspelt names, as difflib has it: "max" is 0.67 like "mix"


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
    near = [] if len(name) > LONGEST_NAME else _near(name, known)
    shown = repr(name) if len(name) <= LONGEST_NAME else f"{name[:LONGEST_NAME]!r}..."
    hint = f"did you mean {' or '.join(map(repr, near))}?" if near else f"known: {', '.join(known)}"
    return f"unknown {what} {shown}; {hint}"


def _near(name: str, known: Collection[str]) -> list[str]:
    """Names equal but for case and punctuation; else names that contain it or that it abbreviates.

    Else the closest in spelling that has the same digits.
    """
    plain, own = {other: _plain(other) for other in known}, _plain(name)
    long = len(own) >= FEWEST_LETTERS
    for near in (
        [other for other in known if plain[other] == own],
        [other for other in known if long and own in plain[other]],
        [other for other in known if long and re.match(".*".join(own), plain[other])],
    ):
        if 0 < len(near) <= MOST_SUGGESTED:
            return near
    alike = {letters: other for other, letters in plain.items() if _digits(letters) == _digits(own)}
    return [alike[near] for near in difflib.get_close_matches(own, alike, 1, LIKENESS)]


def _plain(name: str) -> str:
    return re.sub(r"[\W_]", "", name.lower())


def _digits(text: str) -> str:
    return re.sub(r"\D", "", text)


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
