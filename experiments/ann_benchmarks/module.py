"""The adapter for ann-benchmarks (ann-benchmarks.com).

Copy this folder to `ann_benchmarks/algorithms/qinco_jax` there, then

    python install.py --algorithm qinco_jax
    python run.py --algorithm qinco_jax --dataset sift-128-euclidean

`run.py` in this folder does the same without Docker, with one of its files.
"""

from ..base.module import BaseANN
from .searching import Searching


class QincoJax(Searching, BaseANN):
    """Vectors as codes in inverted lists; ids are row numbers."""

    def fit(self, X):
        """Trains on the vectors [N, D] and adds them."""
        self.build(X)
        self.index.add(X)

    def query(self, q, n):
        """Ids of the nearest vectors of a query [D], at most n."""
        return _found(self.search(q[None], n))[0]

    def batch_query(self, X, n):
        """Searches for all queries [Q, D] at once."""
        self.res = self.search(X, n)

    def get_batch_results(self):
        """Ids for each query of the batch, at most n."""
        return _found(self.res)


def _found(ids):
    return [row[row >= 0] for row in ids]
