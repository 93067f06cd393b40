"""Neural residual quantization in JAX: QINCo and QINCo2.

A codec is a pair of pure functions over a pytree: `encode` turns vectors into codes, `decode` turns
codes, or their first columns, back into vectors. `train` makes the pytree.
"""

import importlib
from typing import TYPE_CHECKING, Any

from qinco_jax.version import __version__

if TYPE_CHECKING:
    from qinco_jax import datasets, search
    from qinco_jax.cluster.encode import encode_files
    from qinco_jax.config import PRESETS, QincoConfig
    from qinco_jax.errors import InputError
    from qinco_jax.evaluate.compare import compare
    from qinco_jax.evaluate.metrics import mse, recall
    from qinco_jax.models.disk import load, save
    from qinco_jax.models.export import export
    from qinco_jax.models.faiss import from_faiss, to_faiss
    from qinco_jax.models.pytorch.load import load_pytorch
    from qinco_jax.quantizers import rq
    from qinco_jax.quantizers.coarse import train_centroids
    from qinco_jax.quantizers.coding import decode, encode, prefix
    from qinco_jax.quantizers.network import Step
    from qinco_jax.quantizers.packing import pack, unpack
    from qinco_jax.quantizers.preselector import fit_preselector
    from qinco_jax.quantizers.product import Product
    from qinco_jax.quantizers.qinco import Qinco
    from qinco_jax.quantizers.transform import to_model_space
    from qinco_jax.quantizers.untrained import init
    from qinco_jax.training.recipe import RECIPES, Recipe
    from qinco_jax.training.step import TrainState, end_epoch, init_state, loss, train_step
    from qinco_jax.training.train import train

__all__ = [
    "PRESETS",
    "RECIPES",
    "InputError",
    "Product",
    "Qinco",
    "QincoConfig",
    "Recipe",
    "Step",
    "TrainState",
    "__version__",
    "compare",
    "datasets",
    "decode",
    "encode",
    "encode_files",
    "end_epoch",
    "export",
    "fit_preselector",
    "from_faiss",
    "init",
    "init_state",
    "load",
    "load_pytorch",
    "loss",
    "mse",
    "pack",
    "prefix",
    "recall",
    "rq",
    "save",
    "search",
    "to_faiss",
    "to_model_space",
    "train",
    "train_centroids",
    "train_step",
    "unpack",
]

# A name is imported when it is first used, for the program must mind Ctrl-C before slow imports.
_MODULES = {"datasets": "datasets", "rq": "quantizers.rq", "search": "search"}
_PLACES = {
    "cluster.encode": "encode_files",
    "config": "PRESETS QincoConfig",
    "errors": "InputError",
    "evaluate.compare": "compare",
    "evaluate.metrics": "mse recall",
    "models.disk": "load save",
    "models.export": "export",
    "models.faiss": "from_faiss to_faiss",
    "models.pytorch.load": "load_pytorch",
    "quantizers.coarse": "train_centroids",
    "quantizers.coding": "decode encode prefix",
    "quantizers.network": "Step",
    "quantizers.packing": "pack unpack",
    "quantizers.preselector": "fit_preselector",
    "quantizers.product": "Product",
    "quantizers.qinco": "Qinco",
    "quantizers.transform": "to_model_space",
    "quantizers.untrained": "init",
    "training.recipe": "RECIPES Recipe",
    "training.step": "TrainState end_epoch init_state loss train_step",
    "training.train": "train",
}


def __getattr__(name: str) -> Any:
    """A public name, at its first use."""
    if name in _MODULES:
        return importlib.import_module(f"{__name__}.{_MODULES[name]}")
    for place, names in _PLACES.items():
        if name in names.split():
            found = getattr(importlib.import_module(f"{__name__}.{place}"), name)
            globals()[name] = found
            return found
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
