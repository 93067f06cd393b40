"""Named sets of vectors, and your own: `load` finds any of them."""

from qinco_jax.datasets.catalog import Dataset, load

__all__ = ["Dataset", "load"]
