"""The command line, called in this process, and the settings of a run that takes seconds."""

from click.testing import CliRunner, Result

from qinco_jax.cli import main as cli

SMALL = ["--bytes", "2", "--set", "codebook_size=16", "--set", "hidden_dim=16", "--set", "mix=0",
         "--set", "num_epochs=2"]  # fmt: skip


def qinco(*arguments: object) -> Result:
    return CliRunner().invoke(cli.main, [str(argument) for argument in arguments])
