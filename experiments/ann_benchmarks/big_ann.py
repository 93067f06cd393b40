"""The adapter for big-ann-benchmarks (big-ann-benchmarks.com).

It is for track T1: everything in memory, so billions of vectors only as codes. Copy this folder to
`benchmark/algorithms/qinco_jax` there, then

    python run.py --nodocker --definitions benchmark/algorithms/qinco_jax/big_ann.yaml \
        --algorithm qinco_jax --dataset bigann-10M

Its images have a Python that is too old for JAX, so it runs without Docker.
"""

import shutil
from pathlib import Path

import qinco_jax as qj
from qinco_jax.search import disk

from ...datasets import DATASETS
from ..base import BaseANN
from .searching import Searching

BLOCK_ROWS = 2**20


class QincoJax(Searching, BaseANN):
    """Vectors as codes in inverted lists; ids are row numbers.

    Beside the parameters of `Searching`, `train_rows` says how many of the first vectors the model
    and the index are trained on. Range search is not supported.
    """

    def __init__(self, metric, index_params):
        params = dict(index_params)
        self.train_rows = params.pop("train_rows")
        super().__init__(metric, params)

    def track(self):
        """The track of indexes in memory."""
        return "T1"

    def fit(self, dataset):
        """Trains on the set's first vectors, adds all and saves the index."""
        source = DATASETS[dataset]()
        self.build(next(source.get_dataset_iterator(bs=self.train_rows)))
        for block in source.get_dataset_iterator(bs=BLOCK_ROWS):
            self.index.add(block)
        shutil.rmtree(self._folder(dataset), ignore_errors=True)
        disk.save(self.index, self._folder(dataset))

    def load_index(self, dataset):
        """Whether there is an index of the set, which is loaded then."""
        folder = self._folder(dataset)
        archive = Path(f"{folder}.tar")
        if not folder.exists() and archive.exists():
            shutil.unpack_archive(archive, folder)
        if folder.exists():
            self.index = qj.search.load(folder)
        return folder.exists()

    def index_files_to_store(self, dataset):
        """The folder, the name and the ending of the index as one file, for upload or download."""
        folder = self._folder(dataset)
        folder.parent.mkdir(parents=True, exist_ok=True)
        if folder.exists():
            shutil.make_archive(str(folder), "tar", folder)
        return str(folder.parent), folder.name, [".tar"]

    def query(self, X, k):
        """Searches for all queries [Q, D]; `get_results` gives the ids [Q, k]."""
        self.res = self.search(X, k)

    def _folder(self, dataset):
        name = self.name.replace("/", "_")
        return Path("data/indices/T1") / name / DATASETS[dataset]().short_name() / "index"
