"""Neural residual quantization in JAX: QINCo and QINCo2.

A codec is a pair of pure functions over a pytree: `encode` turns vectors into codes, `decode` turns
codes, or their first columns, back into vectors. `train` makes the pytree.
"""

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
