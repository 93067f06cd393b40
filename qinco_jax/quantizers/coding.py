"""Encode and decode for every kind of model, for any number of rows in bounded memory."""

import dataclasses
import functools
from types import ModuleType
from typing import TypeVar

import jax
import numpy as np

from qinco_jax.errors import InputError
from qinco_jax.quantizers import product, qinco
from qinco_jax.quantizers.batching import block_rows, map_rows
from qinco_jax.quantizers.product import Product
from qinco_jax.quantizers.qinco import Qinco, Search
from qinco_jax.vectors import checks
from qinco_jax.vectors.stored import Vectors

Array = jax.Array | np.ndarray
Model = Qinco | Product
M = TypeVar("M", bound=Model)


def encode(
    model: Model,
    x: Vectors,
    *,
    num_candidates: int | None = None,
    beam_size: int | None = None,
    joint: bool | None = None,
) -> jax.Array:
    """Codes of vectors, by beam search with pre-selection (QINCo2, Sec. 3).

    The model scales, centers and rotates the vectors itself, as it was trained to.

    Pure; works under `jit`, `vmap` and on batches sharded over a mesh. Outside `jit` any number of
    rows is encoded in bounded memory, without compiling again for another number.

    Args:
      model: of M steps and K codewords each.
      x: [N, D] or [D], numpy or jax or a `Stored`, any real dtype; N may be 0.
      num_candidates: A, 1 to K; K sends all codewords through the network. `None` means the
        model's own.
      beam_size: B, at least 1; 1 is greedy. `None` means the model's own.
      joint: whether a step's A B candidates are the best of all B K, instead of the paper's best A
        of each partial code; the error is smaller at the same A and B. `None` means the model's
        own.

    Returns:
      [N, M] or [M], uint8 for K <= 256, else uint16. With a coarse codebook [N, 1 + M] or [1 + M]
      uint32, the centroid's number first; the rest fits in the dtype above. A `Product` gives
      [N, P M] or [P M], the codes of the first part first.

    Raises:
      InputError: wrong shape, dtype, A or B; NaN or Inf (outside `jit`).
    """
    x = checks.vectors(x, model.dim)
    search = search_of(model, num_candidates, beam_size, joint)
    if x.ndim == 1:
        return encode(model, x[None], **dataclasses.asdict(search))[0]
    rows = block_rows(work(model, search))
    of = _room(model)
    return map_rows(
        of.prepare, of.encode_rows, model, x, rows=rows, options=(search,), check=checks.finite
    )


def decode(model: Model, codes: Array) -> jax.Array:
    """Reconstructions of codes or of their first columns.

    Args:
      model: of M steps and K codewords each.
      codes: [N, m] or [m] integers, 1 <= m <= M, numpy or jax; N may be 0. With a coarse codebook
        [N, 1 + m] or [1 + m], 0 <= m <= M; for a `Product` [N, P m] or [P m].

    Returns:
      [N, D] or [D] float32, x_hat_m in the space of the vectors. A model with `unit_norm`
      gives approximations of x / |x|: codes do not keep the lengths of vectors.

    Raises:
      InputError: wrong shape or dtype; codes outside 0..K-1 (outside `jit`).
    """
    codes = checks.codes(codes, len(model.column_sizes))
    if codes.ndim == 1:
        return decode(model, codes[None])[0]
    of = _room(model)
    model = of.first_columns(model, codes.shape[1])
    check = functools.partial(checks.codes_below, model.column_sizes)
    return map_rows(of.prepare, of.decode_rows, model, codes, rows=block_rows(2), check=check)


def prefix(model: M, num_steps: int) -> M:
    """The model of the first `num_steps` steps: a lower rate, 1 <= num_steps <= M.

    It decodes the first columns of the model's codes; of a `Product`'s codes [N, P M] it decodes
    `codes.reshape(N, P, M)[:, :, :num_steps].reshape(N, -1)`. Its own codes are those columns when
    B = 1; with a wider beam they may differ, and reconstruct better at this rate.

    Raises:
      InputError: `num_steps` out of range.
    """
    if not 1 <= num_steps <= model.num_steps:
        raise InputError(f"num_steps must be 1 to {model.num_steps}, got {num_steps}")
    per_step = len(model.parts) if isinstance(model, Product) else 1
    num_columns = len(model.column_sizes) - per_step * (model.num_steps - num_steps)
    return _room(model).first_columns(model, num_columns)


def work(model: Model, search: Search) -> int:
    """Network evaluations a row and step that encoding costs, for `block_rows`."""
    candidates = search.num_candidates * search.beam_size
    return max(candidates, search.beam_size * model.codebook_size // 64)


def search_of(
    model: Model, num_candidates: int | None, beam_size: int | None, joint: bool | None
) -> Search:
    """The search to encode with, where `None` means the model's own.

    Raises:
      InputError: A or B out of range, or pre-selection with a model that has none.
    """
    one = model.parts[0] if isinstance(model, Product) else model
    codebook_size = one.codebook_size
    if num_candidates is None:
        num_candidates = one.num_candidates or codebook_size
    if beam_size is None:
        beam_size = one.beam_size
    if not 1 <= num_candidates <= codebook_size:
        raise InputError(f"num_candidates must be 1 to {codebook_size}, got {num_candidates}")
    if num_candidates < codebook_size and one.steps.preselect is None:
        raise InputError(
            f"num_candidates = {num_candidates} needs a model trained with pre-selection; leave "
            f"it out for this one"
        )
    if beam_size < 1:
        raise InputError(f"beam_size must be at least 1, got {beam_size}")
    joint = one.joint if joint is None else joint
    return Search(num_candidates, beam_size, joint and num_candidates < codebook_size)


def _room(model: Model) -> ModuleType:
    """Where what is done with a block of rows stands for a kind of model."""
    return product if isinstance(model, Product) else qinco
