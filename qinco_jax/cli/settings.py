"""`qinco settings`: what `--set NAME=VALUE` may name, from the docstrings of both dataclasses."""

import dataclasses
import inspect
import re
import textwrap
from typing import Any

import click

from qinco_jax.config import PRESETS, QincoConfig, named
from qinco_jax.training.recipe import Recipe, of_preset

TITLES = {QincoConfig: "Sizes of the model", Recipe: "Recipe of the training"}


def meanings(kind: type[Any]) -> dict[str, str]:
    """What the docstring of a dataclass says of each of its fields."""
    text = inspect.getdoc(kind) or ""
    entries = re.findall(r"^  (\w+): ((?:.+\n?)(?:   +.+\n?)*)", text, re.MULTILINE)
    return {name: " ".join(meaning.split()) for name, meaning in entries}


@click.command()
@click.argument("preset", default="small")
def settings(preset: str) -> None:
    """Lists what --set NAME=VALUE may change, with the values of PRESET, which is small by default.

    For example, a smaller network, trained for about five minutes (--minutes, and not num_epochs
    and epoch_rows, which it chooses):

        qinco train --minutes 5 --set hidden_dim=64 --set num_blocks=1
    """
    values: dict[type[Any], Any] = {
        QincoConfig: named(PRESETS, preset, "preset"),
        Recipe: of_preset(preset),
    }
    for kind, title in TITLES.items():
        click.echo(f"{title}:")
        known = meanings(kind)
        for field in dataclasses.fields(kind):
            text = f"{known[field.name]} [{getattr(values[kind], field.name)}]"
            click.echo(textwrap.fill(
                f"{field.name:18} {text}", 100, initial_indent="  ", subsequent_indent=" " * 21
            ))  # fmt: skip
