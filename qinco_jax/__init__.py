"""Neural residual quantization in JAX: QINCo and QINCo2.

A codec is a pair of pure functions over a pytree: `encode` turns vectors into codes, `decode` turns
codes, or their first columns, back into vectors. `train` makes the pytree.
"""

from qinco_jax import rq
from qinco_jax.centroids import train_centroids
from qinco_jax.coding import decode, encode, prefix
from qinco_jax.compare import compare
from qinco_jax.config import PRESETS, QincoConfig
from qinco_jax.data import catalog as datasets
from qinco_jax.errors import InputError
from qinco_jax.fit import train
from qinco_jax.interop.faiss_models import from_faiss, to_faiss
from qinco_jax.interop.programs import export
from qinco_jax.interop.pytorch import load_pytorch
from qinco_jax.models import load, save
from qinco_jax.network import Step
from qinco_jax.preselector import fit_preselector
from qinco_jax.product import Product
from qinco_jax.qinco import Qinco, init
from qinco_jax.training import RECIPES, Recipe
from qinco_jax.version import __version__

__all__ = [
    "PRESETS",
    "RECIPES",
    "InputError",
    "Product",
    "Qinco",
    "QincoConfig",
    "Recipe",
    "Step",
    "__version__",
    "compare",
    "datasets",
    "decode",
    "encode",
    "export",
    "fit_preselector",
    "from_faiss",
    "init",
    "load",
    "load_pytorch",
    "prefix",
    "rq",
    "save",
    "to_faiss",
    "train",
    "train_centroids",
]
