"""What the speed experiments run: models of random weights, and their multiply-adds counted."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np

from qinco_jax.config import PRESETS, QincoConfig
from qinco_jax.quantizers.batching import block_rows
from qinco_jax.quantizers.chunks import CHUNK_BLOCKS, CHUNK_ROWS, THREADS
from qinco_jax.quantizers.rq import RQ
from qinco_jax.quantizers.untrained import init

MODELS = {
    "qinco L=2": QincoConfig(form="qinco", num_blocks=2),
    "qinco L=16": QincoConfig(form="qinco", num_blocks=16),
    **PRESETS,
}
EVALUATION_BYTES = 2**11  # of activations, about


def sized(name, dim=128, num_steps=8):
    """The config of a model of `MODELS` for vectors of `dim` dimensions."""
    return dataclasses.replace(MODELS[name], num_steps=num_steps).for_dim(dim)


def search(num_candidates, beam_size, joint=False):
    return {"num_candidates": num_candidates, "beam_size": beam_size, "joint": joint}


def row_counts(work_per_row):
    """A block of `qinco_jax.rows`, and the rows that give each of its threads a whole chunk."""
    start = block_rows(work_per_row, EVALUATION_BYTES * work_per_row)
    return {"start": start, "enough": THREADS * max(start, min(CHUNK_BLOCKS * start, CHUNK_ROWS))}


def search_counts(search):
    return row_counts(search["num_candidates"] * search["beam_size"])


def fields(name, dim=128, num_steps=8, *, search=None, dtype="float32"):
    """What is measured: a model's sizes, and the search instead of the one that it remembers."""
    sizes = dataclasses.asdict(sized(name, dim, num_steps))
    search = search or dict.fromkeys(("num_candidates", "beam_size", "joint"))
    return {"model": name, **sizes, **search, "dtype": dtype}


@functools.lru_cache(maxsize=1)
def vectors(dim):
    """More random vectors than any measurement needs, [N, D] float32."""
    num_values = 2**25 if jax.default_backend() == "cpu" else 2**27
    shape = num_values // dim, dim
    return np.random.default_rng(0).standard_normal(shape, np.float32)


def codes(config, num_rows=2**18):
    shape = num_rows, config.num_steps
    return np.random.default_rng(0).integers(config.codebook_size, size=shape, dtype=np.uint8)


def random_rq(dim, num_steps=8, codebook_size=256, seed=0):
    """Random codebooks, each half as long as the one before; mean 0 and scale 1."""
    books = jax.random.normal(jax.random.key(seed), (num_steps, codebook_size, dim))
    books *= _halving(num_steps)
    return RQ(books, jnp.zeros(dim), jnp.float32(1))


def random_model(config, seed=0):
    """A model whose steps change their codewords by an amount of the codewords' own size."""
    rq = random_rq(config.dim, config.num_steps, config.codebook_size, seed)
    model = init(jax.random.key(seed + 1), config, rq)
    keys = iter(jax.random.split(jax.random.key(seed + 2), 8))
    size = _halving(config.num_steps)[1:]

    def normal(matrix, factor):
        return factor * matrix.shape[-2] ** -0.5 * jax.random.normal(next(keys), matrix.shape)

    steps = dataclasses.replace(
        model.steps,
        concat=normal(model.steps.concat, 0.3 * size),
        bias=0.1 * size[..., 0] * jax.random.normal(next(keys), model.steps.bias.shape),
        up=normal(model.steps.up, 1.0),
        down=normal(model.steps.down, 0.3),
    )
    if steps.proj_out is not None:
        proj_out = normal(steps.proj_out, 0.3)
        steps = dataclasses.replace(steps, proj_out=proj_out)
    if steps.preselect is not None:
        noise = 0.1 * size * jax.random.normal(next(keys), steps.preselect.shape)
        steps = dataclasses.replace(steps, preselect=steps.codebook + noise)
    return dataclasses.replace(model, steps=steps)


def _halving(num_steps):
    return 0.5 ** jnp.arange(num_steps, dtype=jnp.float32)[:, None, None]


def encode_flops(config, num_candidates, beam_size):
    """FLOPs to encode a vector: two for each multiply-add of the network and the pre-selection.

    The network is counted in the form of tables, whatever computes it: what depends on the
    codeword alone is free.
    """
    size, dim = config.codebook_size, config.dim
    preselect = size * dim if num_candidates < size else 0
    total, entries = size * dim, min(beam_size, size)
    for _ in range(config.num_steps - 1):
        total += entries * (preselect + _context(config))
        total += entries * num_candidates * _candidate(config)
        entries = min(beam_size, entries * num_candidates)
    return 2 * total


def decode_flops(config):
    """FLOPs to decode a vector, counted in the same way."""
    return 2 * (config.num_steps - 1) * (_context(config) + _candidate(config))


def _context(config):
    return config.dim * config.embed_dim + config.embed_dim * config.hidden_dim


def _candidate(config):
    project = config.embed_dim * config.dim if config.has_projections else 0
    return (2 * config.num_blocks - 1) * config.embed_dim * config.hidden_dim + project


def rq_flops(rq, beam_size):
    num_steps, codebook_size, dim = rq.codebooks.shape
    return 2 * codebook_size * dim * (1 + (num_steps - 1) * min(beam_size, codebook_size))
