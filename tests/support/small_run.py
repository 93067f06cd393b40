"""The command line, called in this process, and the settings of a run that takes seconds."""

from click.testing import CliRunner, Result

from qinco_jax.cli import main as cli

DECIDING = ["--bytes", "2", "--set", "codebook_size=16", "--set", "hidden_dim=16", "--set",
            "num_epochs=2"]  # fmt: skip
"""Held-back rows decide whether rows are moved, as in users' runs."""
SMALL = [*DECIDING[:2], "--set", "mix=0", *DECIDING[2:]]


def qinco(*arguments: object) -> Result:
    return CliRunner().invoke(cli.main, [str(argument) for argument in arguments])
