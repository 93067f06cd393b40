"""What is served, loaded and warm: no request waits for compilation."""

import numpy as np

from qinco_jax.search import manifest
from qinco_jax.search.index import Index
from qinco_jax.search.searcher import QUERY_BLOCK, QUERY_SIZES, Searcher
from qinco_jax.serve.requests import Settings


def warm_up(index: Searcher) -> None:
    """Searches that compile everything."""
    x = np.zeros((QUERY_BLOCK, index.model.dim), np.float32)
    settings = Settings(k=min(Settings.k, len(index)))
    for size in QUERY_SIZES:
        settings.search(index, x[:size])


def warm_shard(folder: str, number: int, mmap: bool, compute_dtype: str | None) -> Index:
    """A shard of the manifest in a folder, warm; raises as `manifest.load`."""
    known = manifest.read(folder)
    found = manifest.load(known, known.shards[number], mmap=mmap, compute_dtype=compute_dtype)
    warm_up(found)
    return found
