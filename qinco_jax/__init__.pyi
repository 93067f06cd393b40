"""The public names, each imported at its first use."""

from . import datasets, search
from .cluster.encode import encode_files
from .config import PRESETS, QincoConfig
from .errors import InputError
from .evaluate.compare import compare
from .evaluate.metrics import mse, recall
from .models.disk import load, save
from .models.export import export
from .models.faiss import from_faiss, to_faiss
from .models.pytorch.load import load_pytorch
from .quantizers import rq
from .quantizers.coarse import train_centroids
from .quantizers.coding import decode, encode, prefix
from .quantizers.network import Step
from .quantizers.packing import pack, unpack
from .quantizers.preselector import fit_preselector
from .quantizers.product import Product
from .quantizers.qinco import Qinco
from .quantizers.transform import to_model_space
from .quantizers.untrained import init
from .training.recipe import RECIPES, Recipe
from .training.step import TrainState, end_epoch, init_state, loss, train_step
from .training.train import train
from .version import __version__ as __version__

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
