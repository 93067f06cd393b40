"""The library's own models and RQ as codecs, at full rate and at the rates of their prefixes."""

import dataclasses
import functools
from collections.abc import Sequence

import numpy as np

from qinco_jax.codecs.codec import Codec
from qinco_jax.codecs.size import size
from qinco_jax.quantizers import coding, precision, rq
from qinco_jax.quantizers.coding import Model
from qinco_jax.quantizers.qinco import Search
from qinco_jax.quantizers.rq import RQ
from qinco_jax.quantizers.transform import approximated
from qinco_jax.training.loop import Advance, unseen
from qinco_jax.vectors import checks
from qinco_jax.vectors.stored import Rows, Vectors

CHOICE_ROWS = 10_000
MEASURED_BEAM = 32  # of the search that quantizers are chosen and shown by


def quarters(num_steps: int) -> list[int]:
    """Numbers of steps at a quarter, half, three quarters and all of the rate."""
    return sorted({max(1, round(num_steps * quarter / 4)) for quarter in (1, 2, 3, 4)})


def of_qinco(
    model: Model,
    num_steps: int,
    num_candidates: int | None = None,
    beam_size: int | None = None,
    joint: bool | None = None,
    compute_dtype: str | None = None,
) -> Codec:
    """The codec of a model's first `num_steps` steps.

    `None` takes the search of its config, and the `compute_dtype` of this device.
    """
    compute_dtype = precision.resolve(compute_dtype)
    model = coding.prefix(model, num_steps)
    config = model.config
    search = coding.search_of(model, num_candidates, beam_size, joint)
    kind = "PQ-" * (config.num_parts > 1) + "IVF-" * (config.num_centroids is not None)
    name = kind + {"qinco": "QINCo", "qinco-lr": "QINCo-LR", "qinco2": "QINCo2"}[config.form]
    half = " bfloat16" * (compute_dtype == "bfloat16")
    return Codec(
        f"{name} {search_text(search)}{' unit' * config.unit_norm}{half}",
        config.bits,
        functools.partial(
            coding.encode, model, **dataclasses.asdict(search), compute_dtype=compute_dtype
        ),
        functools.partial(coding.decode, model, compute_dtype=compute_dtype),
        size(model),
        config.unit_norm,
        model.column_sizes,
    )


def search_text(search: Search) -> str:
    """How codecs name a search, such as "A=2 B=32 joint"."""
    return f"A={search.num_candidates} B={search.beam_size}{' joint' * search.joint}"


def of_rq(model: RQ, num_steps: int, bits_per_step: float, beam_size: int = MEASURED_BEAM) -> Codec:
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


def best_rq(
    x: Vectors,
    x_val: Rows,
    num_steps: int,
    codebook_size: int,
    *,
    seed: int,
    max_rows: int | None = None,
    others: Sequence[RQ] = (),
    advance: Advance = unseen,
    **transform: bool,
) -> RQ:
    """The best of two residual quantizers, trained greedily and for a beam, and of others.

    Which one is depends on the vectors, so all encode vectors that were held back.

    Args:
      x: [N, D] training vectors.
      x_val: [V, D] held-back vectors, of which at most `CHOICE_ROWS` are used.
      num_steps: M.
      codebook_size: K.
      seed: of the sample and the k-means.
      max_rows: as of `rq.train`.
      others: that are trained already, of as many bytes.
      advance: called with the number of steps done, of both.
      **transform: `unit_norm`, `center` and `rotate` as of `rq.train`.
    """
    rows = checks.finite(x_val[:CHOICE_ROWS])
    goal = approximated(rows, transform.get("unit_norm", False))
    found = list(others)

    def tell(before: int, done: int, total: int) -> None:
        advance(before + done, 2 * total)

    for before, beam_size in (0, 1), (num_steps, 5):
        model = rq.train(
            x, num_steps, codebook_size,
            seed=seed, beam_size=beam_size, num_iters=25, max_rows=max_rows,
            advance=functools.partial(tell, before), **transform,
        )  # fmt: skip
        found.append(model)

    def error(model: RQ) -> np.float64:
        x_hat = np.asarray(rq.decode(model, rq.encode(model, rows, beam_size=MEASURED_BEAM)))
        return np.square(goal - x_hat, dtype=np.float64).sum()

    return min(found, key=error)
