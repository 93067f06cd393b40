"""The scripts of `experiments/`, run at a tiny size."""

import importlib
import json
from pathlib import Path
from types import ModuleType

import pytest
from click.testing import CliRunner

import qinco_jax as qj

ROOT = Path(__file__).parents[2]
FEW = {"codebook_size": 16, "hidden_dim": 4, "num_candidates": 4, "beam_size": 4, "num_blocks": 1}
TINY = ["hidden_dim=4", "embed_dim=4", "num_blocks=1", "epoch_rows=512"]


def script(name: str, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(ROOT / "experiments")
    return importlib.import_module(name)


def small_workload(name: str, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """A script whose models are small."""
    module = script(name, monkeypatch)
    config = qj.QincoConfig(num_steps=3, dim=8, embed_dim=8, **FEW)
    monkeypatch.setattr(module.workload, "sized", lambda *asked: config)
    return module


def run(module: ModuleType, *arguments: object) -> str:
    ran = CliRunner().invoke(module.main, [str(argument) for argument in arguments])
    assert ran.exit_code == 0, ran.output
    return ran.output


def read(path: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in path.read_text().splitlines()]
