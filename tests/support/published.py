"""Published checkpoints, what is in them, and how models are compared."""

import functools
from pathlib import Path
from typing import Any

import golden
import jax
import numpy as np

from qinco_jax.models.pytorch import pickled_modules, torch_zip
from qinco_jax.models.pytorch.safe_pickle import Record

CHECKPOINTS = Path(__file__).parents[1] / "checkpoints"
load = functools.cache(golden.load)

NAMES = sorted(path.stem.removesuffix("_golden") for path in CHECKPOINTS.glob("*_golden.pt"))
QINCO, QINCO2 = "v1_qinco_M4_K16_D16", "v2_A4_B8_de24_M4_K16_D16"
IVF, OPQ = "v2_ivf32_A4_B8_de24_M4_K16_D16", "v1_pqqinco_opq"
PAIRWISE = "v2_pairwise_decoder_ivf32_M4_K16_D16"


def checkpoint(name: str) -> Path:
    return CHECKPOINTS / f"{name}_golden.pt"


def contents(name: str) -> Any:
    """What is in a checkpoint, to be changed and written again."""
    return torch_zip.read(checkpoint(name), pickled_modules.CLASSES)


def weights(name: str) -> dict[str, np.ndarray]:
    """The published state dict of a golden file."""
    arrays = load(name).arrays.items()
    return {key.removeprefix("weight/"): a for key, a in arrays if key.startswith("weight/")}


def assert_same(model: Any, other: Any) -> None:
    assert jax.tree.structure(model) == jax.tree.structure(other)
    jax.tree.map(np.testing.assert_array_equal, model, other)


def below(module: Record, *path: str) -> dict[str, Any]:
    """The state of a module's module."""
    for step in path:
        module = module.state["_modules"][step]
    return module.state
