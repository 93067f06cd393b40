"""Numbers on the command line: 1e6 is an integer, and a wrong one is one sentence."""

from typing import Any

import click

from qinco_jax import numbers

MOST = 10**12  # of what is counted


class Integer(click.ParamType):  # type: ignore[type-arg]  # older clicks take none
    """An integer of a range, in any form such as 1e9."""

    name = "integer"

    def __init__(self, least: int = 0, most: int = MOST) -> None:
        self.least, self.most = least, most

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        """The integer; raises `InputError`."""
        return numbers.integer(numbers.parsed(value), _name(param), self.least, self.most)


class Number(click.ParamType):  # type: ignore[type-arg]  # older clicks take none
    """A finite number of a range."""

    name = "number"

    def __init__(self, least: float, most: float, *, above: bool = False) -> None:
        self.least, self.most, self.above = least, most, above

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> float:
        """The number; raises `InputError`."""
        found = numbers.parsed(value)
        return numbers.real(found, _name(param), self.least, self.most, above=self.above)


def _name(param: click.Parameter | None) -> str:
    return "the number" if param is None else param.opts[0]
