"""The papers' algorithms, from distances to encode and decode: arrays in, arrays out."""

from qinco_jax.quantizers import rq as rq  # public, as qinco_jax.rq
