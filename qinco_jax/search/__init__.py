"""Search over codes: from a query to its neighbours, by inverted lists, look-ups and the network.

An index (`build`, `Index`) finds neighbours in three stages: a query's nearest inverted lists; a
scan of their codes with an additive decoder, one table look-up a step; and the network's
reconstructions of the best. `sharded` searches several like one. Needs Faiss (the extra `search`).
"""

from qinco_jax.search.build import build
from qinco_jax.search.disk import load, save
from qinco_jax.search.index import Index
from qinco_jax.search.sharded import sharded

__all__ = ["Index", "build", "load", "save", "sharded"]
