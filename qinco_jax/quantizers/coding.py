"""Encode and decode for every kind of model, for any number of rows in bounded memory."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, Literal, TypeVar, cast, get_args

import jax
import jax.numpy as jnp
import numpy as np

from qinco_jax import numbers
from qinco_jax.config import MAX_BEAM
from qinco_jax.errors import InputError
from qinco_jax.quantizers import packing, precision
from qinco_jax.quantizers.batching import block_rows, is_traced, map_rows, of_one
from qinco_jax.quantizers.product import PreparedProduct, Product
from qinco_jax.quantizers.qinco import Prepared, Qinco, Search
from qinco_jax.quantizers.transform import reach
from qinco_jax.vectors import checks
from qinco_jax.vectors.stored import Vectors

Array = jax.Array | np.ndarray
Model = Qinco | Product
M = TypeVar("M", bound=Model)

Output = Literal["codes", "errors", "beams"]
OUTPUTS = get_args(Output)


def encode(
    model: Model,
    x: Vectors,
    *,
    num_candidates: int | None = None,
    beam_size: int | None = None,
    joint: bool | None = None,
    output: Output = "codes",
    compute_dtype: str | None = None,
) -> Any:
    """Codes of vectors, by beam search with pre-selection (QINCo2, Sec. 3).

    The model scales, centers and rotates the vectors itself, as it was trained to.

    Pure; works under `jit`, `vmap` and on batches sharded over a mesh. Outside `jit` any number of
    rows is encoded in bounded memory, with a program for each of a few sizes.

    Args:
      model: of M steps and K codewords each.
      x: [N, D] or [D], numpy or jax or a `Stored`, any real dtype; N may be 0.
      num_candidates: A, 1 to K; K sends all codewords through the network. `None` means the
        model's own.
      beam_size: B, 1 to 16,384; 1 is greedy. `None` means the model's own.
      joint: whether a step's A B candidates are the best of all B K, instead of the paper's best A
        of each partial code; the error is smaller at the same A and B. `None` means the model's
        own.
      output: "codes"; "errors" for a pair of the codes and their squared errors; or "beams" for
        the whole final beams, best first, and theirs. Of a `Product` the n-th best codes of all
        parts make up the n-th entry.
      compute_dtype: "float32" or "bfloat16", of the products that propose candidates and compute
        their codewords, and of the activations between; errors are float32 always. In bfloat16 some
        codes differ, and the mean squared error by less than 0.1 %. `None` is float32 on CPUs, and
        what multiplies faster on accelerators (`precision.resolve`).

    Returns:
      [N, M] or [M], uint8 for K <= 256, else uint16. With a coarse codebook [N, 1 + M] or [1 + M]
      uint32, the centroid's number first; the rest fits in the dtype above. A `Product` gives
      [N, P M] or [P M], the codes of the first part first. With `output="errors"` also float32
      [N] or [], |x - x_hat|^2 in the space of the vectors (of x / |x| for a model with
      `unit_norm`). With "beams" codes [N, B, M] or [B, M] and errors [N, B] or [B]; an error of
      inf marks an entry that does not exist, where there are fewer codes than B.

    Raises:
      InputError: wrong shape, dtype, A, B, output or compute_dtype; outside `jit` also NaN, Inf or
        numbers so large that float32 tells no codewords apart (`transform.reach`).
    """
    require_model(model, "encode(model, x)")
    x = checks.vectors(x, model.dim)
    search = search_of(model, num_candidates, beam_size, joint)
    if output not in OUTPUTS:
        raise InputError(f"output must be {', '.join(OUTPUTS)}, got {output!r}")
    compute_dtype = precision.resolve(compute_dtype)
    if x.ndim == 1:
        of_rows = functools.partial(
            encode, model, **dataclasses.asdict(search), output=output, compute_dtype=compute_dtype
        )
        return of_one(of_rows, x)
    return map_rows(
        _encoded, model, x,
        rows=rows_together(model, search, compute_dtype), options=(search, output),
        prepare=_preparing(compute_dtype),
        check=functools.partial(checks.finite, limit=_limit(model)),
    )  # fmt: skip


def require_model(model: object, call: str) -> None:
    """Refuses what is no model; `call` is how the function is called."""
    if not isinstance(model, Model):
        raise InputError(
            f"the first argument is of type {type(model).__name__}, not a model; call {call}"
        )


def _limit(model: Model) -> float:
    """The greatest magnitude of numbers that the model can encode.

    Where one part of a product reaches farther than another, vectors of their kind may too.
    """
    if is_traced(model) or model.config.unit_norm:
        return checks.FLOAT32_MAX
    parts = model.parts if isinstance(model, Product) else (model,)
    farthest = max(reach(part.transform) for part in parts)
    return min(farthest, checks.SQUARED_MAX * min(float(part.scale) for part in parts))


@functools.cache
def _preparing(compute_dtype: str) -> Callable[[Model], Prepared | PreparedProduct]:
    """How to prepare a model; the same function each time, by which `map_rows` knows it."""
    return lambda model: model.prepare(compute_dtype)


def _encoded(
    prepared: Prepared | PreparedProduct, rows: jax.Array, search: Search, output: Output
) -> jax.Array | tuple[jax.Array, jax.Array]:
    codes, errors = prepared.encode(rows, search)
    if output == "beams":
        return codes, errors
    return codes[:, 0] if output == "codes" else (codes[:, 0], errors[:, 0])


def _decoded(prepared: Prepared | PreparedProduct, codes: jax.Array) -> jax.Array:
    return prepared.decode(codes)


def decode(model: Model, codes: Array, *, compute_dtype: str | None = None) -> jax.Array:
    """Reconstructions of codes or of their first columns.

    Args:
      model: of M steps and K codewords each.
      codes: [N, m] or [m] integers, 1 <= m <= M, numpy or jax; N may be 0. With a coarse codebook
        [N, 1 + m] or [1 + m], 0 <= m <= M; for a `Product` [N, P m] or [P m].
      compute_dtype: "float32" or "bfloat16", of the network's products and the activations between;
        sums are float32. In bfloat16 the mean squared error changes by less than 0.1 %. `None` is
        float32 on CPUs, and what multiplies faster on accelerators (`precision.resolve`).

    Returns:
      [N, D] or [D] float32, x_hat_m in the space of the vectors. A model with `unit_norm`
      gives approximations of x / |x|: codes do not keep the lengths of vectors.

    Raises:
      InputError: wrong shape, dtype or compute_dtype; codes outside 0..K-1 (outside `jit`).
    """
    require_model(model, "decode(model, codes)")
    codes = packing.checked(codes, len(model.column_sizes))
    compute_dtype = precision.resolve(compute_dtype)
    if codes.ndim == 1:
        return of_one(functools.partial(decode, model, compute_dtype=compute_dtype), codes)
    model = model.first_columns(codes.shape[1])
    check = functools.partial(packing.check_range, model.column_sizes)
    rows = block_rows(2, memory(model, Search(1, 1, joint=False), compute_dtype))
    return map_rows(
        _decoded, model, codes, rows=rows, prepare=_preparing(compute_dtype), check=check
    )


def prefix(model: M, num_steps: int) -> M:
    """The model of the first `num_steps` steps: a lower rate, 1 <= num_steps <= M.

    It decodes the first columns of the model's codes; of a `Product`'s codes [N, P M] it decodes
    `codes.reshape(N, P, M)[:, :, :num_steps].reshape(N, -1)`. Its own codes are those columns when
    B = 1; with a wider beam they may differ, and reconstruct better at this rate.

    Raises:
      InputError: `num_steps` out of range.
    """
    require_model(model, "prefix(model, num_steps)")
    num_steps = numbers.integer(num_steps, "num_steps", 1, model.num_steps)
    per_step = len(model.parts) if isinstance(model, Product) else 1
    num_columns = len(model.column_sizes) - per_step * (model.num_steps - num_steps)
    return cast(M, model.first_columns(num_columns))


def rows_together(model: Model, search: Search, compute_dtype: str) -> int:
    """Rows that `encode` computes at once on this device, a power of two."""
    return block_rows(work(model, search), memory(model, search, compute_dtype))


def work(model: Model, search: Search) -> int:
    """Network evaluations a row and step that encoding costs, for `block_rows`."""
    candidates = search.num_candidates * search.beam_size
    return max(candidates, search.beam_size * model.codebook_size // 64)


def memory(model: Model, search: Search, compute_dtype: str) -> int:
    """Bytes of a row's activations in a step, for `block_rows`."""
    one = model.parts[0] if isinstance(model, Product) else model
    embed_dim, hidden_dim = one.config.embed_dim, one.config.hidden_dim
    assert embed_dim is not None
    candidate = 4 * (embed_dim + one.dim) + jnp.dtype(compute_dtype).itemsize * hidden_dim
    scores = 4 * one.codebook_size
    return search.beam_size * (search.num_candidates * candidate + scores)


def search_of(
    model: Model, num_candidates: int | None, beam_size: int | None, joint: bool | None
) -> Search:
    """The search to encode with, where `None` means the model's own.

    Raises:
      InputError: A, B or joint of another kind or out of range, or pre-selection with a model that
        has none.
    """
    one = model.parts[0] if isinstance(model, Product) else model
    codebook_size = one.codebook_size
    if num_candidates is None:
        num_candidates = one.config.num_candidates or codebook_size
    if beam_size is None:
        beam_size = one.config.beam_size
    num_candidates = numbers.integer(num_candidates, "num_candidates", 1, codebook_size)
    beam_size = numbers.integer(beam_size, "beam_size", 1, MAX_BEAM)
    if num_candidates < codebook_size and one.steps.preselect is None:
        raise InputError(
            f"num_candidates = {num_candidates} needs a model trained with pre-selection; leave "
            f"it out for this one"
        )
    joint = one.config.joint if joint is None else numbers.truth(joint, "joint")
    return Search(num_candidates, beam_size, joint and num_candidates < codebook_size)
