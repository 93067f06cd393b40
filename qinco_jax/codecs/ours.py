"""The library's own models and RQ as codecs, at full rate and at the rates of their prefixes."""

import dataclasses
import functools
from typing import Any

import jax

from qinco_jax.codecs.codec import Codec
from qinco_jax.quantizers import coding, rq
from qinco_jax.quantizers.coding import Model
from qinco_jax.quantizers.rq import RQ


def quarters(num_steps: int) -> list[int]:
    """Numbers of steps at a quarter, half, three quarters and all of the rate."""
    return sorted({max(1, round(num_steps * quarter / 4)) for quarter in (1, 2, 3, 4)})


def of_qinco(
    model: Model,
    num_steps: int,
    num_candidates: int | None = None,
    beam_size: int | None = None,
    joint: bool | None = None,
) -> Codec:
    """The codec of a model's first `num_steps` steps; `None` takes the search of its config."""
    model = coding.prefix(model, num_steps)
    config = model.config
    search = coding.search_of(model, num_candidates, beam_size, joint)
    kind = "PQ-" * (config.num_parts > 1) + "IVF-" * (config.num_centroids is not None)
    name = kind + {"qinco": "QINCo", "qinco-lr": "QINCo-LR", "qinco2": "QINCo2"}[config.form]
    return Codec(
        f"{name} A={search.num_candidates} B={search.beam_size}{' joint' * search.joint}"
        f"{' unit' * config.unit_norm}",
        config.bits,
        functools.partial(coding.encode, model, **dataclasses.asdict(search)),
        functools.partial(coding.decode, model),
        size(model),
        config.unit_norm,
        model.column_sizes,
    )


def of_rq(model: RQ, num_steps: int, bits_per_step: float, beam_size: int = 32) -> Codec:
    """The codec of a residual quantizer's first `num_steps` steps."""
    model = rq.prefix(model, num_steps)
    return Codec(
        f"RQ B={beam_size}{' unit' * model.unit_norm}",
        num_steps * bits_per_step,
        functools.partial(rq.encode, model, beam_size=beam_size),
        functools.partial(rq.decode, model),
        size(model),
        model.unit_norm,
    )


def size(model: Any) -> int:
    """Bytes of a pytree's arrays."""
    return sum(leaf.nbytes for leaf in jax.tree.leaves(model))
