"""Data sets: `load` opens a named set or your own files."""

from qinco_jax.datasets.dataset import Dataset, load

__all__ = ["Dataset", "load"]
