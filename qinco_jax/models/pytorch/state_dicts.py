"""Models from published state dicts: the names and shapes of arrays there and in our models.

Linear weights are published as [out, in]; ours are [in, out].
"""

import dataclasses
import numbers
import re
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from qinco_jax.errors import InputError
from qinco_jax.quantizers.network import Step
from qinco_jax.quantizers.qinco import Qinco

SHOWN_NAMES = 12
MAX_SIZE = 2**20
LEAST, GREATEST = float(np.finfo(np.float32).tiny), float(np.finfo(np.float32).max)
TABLES = ("codebook", "preselect")  # not linear weights

Arrays = Mapping[str, np.ndarray]
Layout = Mapping[str, tuple[str, tuple[int, ...]]]
"""Field of `Step` -> published name of step m and block l, and published shape."""


@dataclasses.dataclass(frozen=True)
class Sizes:
    """D, K, E, H, L of a published model, and the numbers m of its network steps.

    Raises:
      InputError: a size that is not an integer from 1 to 2^20.
    """

    dim: int
    codebook_size: int
    embed_dim: int
    hidden_dim: int
    num_blocks: int
    steps: range

    def __post_init__(self) -> None:
        for name in ("dim", "codebook_size", "embed_dim", "hidden_dim", "num_blocks"):
            positive(name, getattr(self, name))


def positive(name: str, value: Any) -> int:
    """Returns a size that a file states.

    Raises:
      InputError: it is not an integer from 1 to 2^20.
    """
    if type(value) is not int or not 1 <= value <= MAX_SIZE:
        raise InputError(f"its {name} is {ascii(value)[:20]}; expected 1 to {MAX_SIZE}")
    return value


def first_program(
    arrays: Arrays, sizes: Sizes, scale: Any, *, low_rank: bool = False, coarse: int | None = None
) -> Qinco:
    """The model of the state dict of a QINCo, a QINCo-LR or an IVF-QINCo.

    Args:
      arrays: the published state dict.
      sizes: as published.
      scale: the `db_scale` that vectors are divided by; may be anything.
      low_rank: whether W is the product of two matrices (QINCo-LR).
      coarse: K_ivf of an IVF-QINCo.

    Raises:
      InputError: names what is missing, unknown or of another shape; or `scale` is not a positive
        number that float32 holds.
    """
    dim, hidden_dim = sizes.dim, sizes.hidden_dim
    layout: dict[str, tuple[str, tuple[int, ...]]] = {
        "codebook": ("step{m}.codebook.weight", (sizes.codebook_size, dim)),
        "up": ("step{m}.residual_block{l}.0.weight", (hidden_dim, dim)),
        "down": ("step{m}.residual_block{l}.2.weight", (dim, hidden_dim)),
    }
    if low_rank:
        layout["concat"] = ("step{m}.MLPconcat.0.weight", (hidden_dim, 2 * dim))
        layout["concat_out"] = ("step{m}.MLPconcat.1.weight", (dim, hidden_dim))
    else:
        layout["concat"] = ("step{m}.MLPconcat.weight", (dim, 2 * dim))
        layout["bias"] = ("step{m}.MLPconcat.bias", (dim,))
    _check_count(arrays, sizes)
    check(arrays, {
        "codebook0.weight": (coarse or sizes.codebook_size, dim), **_shapes(layout, sizes)
    })  # fmt: skip
    real = isinstance(scale, numbers.Real) and not isinstance(scale, bool)
    if not (real and LEAST <= scale <= GREATEST):
        raise InputError(
            f"its db_scale is not a number from {LEAST:.3g} to {GREATEST:.3g}; a negative one, as "
            "of a training set without positive numbers, is not supported: train on other vectors"
        )
    return Qinco.of_arrays(
        mean=jnp.zeros(dim, jnp.float32),
        scale=jnp.float32(scale),
        codebook=jnp.asarray(floats(arrays, "codebook0.weight")),
        steps=_steps(arrays, layout, sizes),
        form="qinco-lr" if low_rank else "qinco",
        center=False,
        ivf=coarse is not None,
    )


def sizes_of_first_program(arrays: Arrays) -> tuple[Sizes, bool, int | None]:
    """Sizes, and `low_rank` and `coarse` of `first_program`, from the names and shapes.

    Raises:
      InputError: they do not determine it.
    """
    coarse = "step0.codebook.weight" in arrays
    first = 0 if coarse else 1
    low_rank = f"step{first}.MLPconcat.0.weight" in arrays
    numbers = _numbers(arrays, r"step(\d+)\.codebook\.weight")
    blocks = _numbers(arrays, rf"step{first}\.residual_block(\d+)\.0\.weight")
    if not numbers or not blocks:
        raise InputError(
            f"it has the arrays {listed(arrays)}; expected step{first}.codebook.weight, "
            f"step{first}.residual_block0.0.weight and the other arrays of a QINCo"
        )
    shapes = [
        arrays[name].shape
        for name in ("codebook0.weight", f"step{first}.codebook.weight",
                     f"step{first}.residual_block0.0.weight")
        if name in arrays
    ]  # fmt: skip
    if [len(shape) for shape in shapes] != [2, 2, 2]:
        raise InputError("its codebook0.weight is missing, or its weights are not matrices")
    (num_centroids, _), (codebook_size, dim), (hidden_dim, _) = shapes
    steps = range(first, max(numbers) + 1)
    sizes = Sizes(dim, codebook_size, dim, hidden_dim, max(blocks) + 1, steps)
    return sizes, low_rank, num_centroids if coarse else None


def second_program(
    arrays: Arrays,
    sizes: Sizes,
    *,
    form: str,
    num_candidates: int | None,
    beam_size: int,
    centroids: np.ndarray | None = None,
    coarse: int | None = None,
) -> Qinco:
    """The model of the state dict of a QINCo2 or IVF-QINCo2, or of a QINCo of the second program.

    Args:
      arrays: the published state dict.
      sizes: as published.
      form: "qinco" or "qinco2".
      num_candidates: A; `None` if there are no pre-selection codebooks.
      beam_size: B.
      centroids: [K_ivf, D] in the space of the vectors, if the state dict has none.
      coarse: K_ivf of an IVF-QINCo2.

    Raises:
      InputError: names what is missing, unknown or of another shape.
    """
    dim, table = sizes.dim, (sizes.codebook_size, sizes.dim)
    layout = _second_layout(sizes, preselect=num_candidates is not None)
    first = "steps.0.codebook.weight" if coarse is None else "steps.0.ivf_centroids.weight"
    expected: dict[str, tuple[int, ...]] = {"data_mean": (dim,), "data_std": ()}
    if centroids is None:
        expected[first] = table if coarse is None else (coarse, dim)
    _check_count(arrays, sizes)
    coded = sizes.steps if coarse is not None else range(sizes.steps.stop)
    statistics = {
        f"steps.{m}.xtarget_{kind}": (dim,) for m in coded for kind in ("mean", "var")
    }  # of the residuals, for unused codewords; only training needs them
    check(arrays, {**expected, **_shapes(layout, sizes)}, optional=statistics)
    mean, scale = floats(arrays, "data_mean"), floats(arrays, "data_std")
    if not scale > 0:
        raise InputError(f"its data_std is {scale}; expected a positive number")
    codebook = floats(arrays, first) if centroids is None else (centroids - mean[None]) / scale
    return Qinco.of_arrays(
        mean=jnp.asarray(mean),
        scale=jnp.asarray(scale),
        codebook=jnp.asarray(codebook),
        steps=_steps(arrays, layout, sizes),
        form=form,
        num_candidates=num_candidates,
        beam_size=beam_size,
        ivf=coarse is not None,
    )


def _second_layout(sizes: Sizes, preselect: bool) -> Layout:
    dim, embed_dim, hidden_dim = sizes.dim, sizes.embed_dim, sizes.hidden_dim
    table = (sizes.codebook_size, dim)
    block = "steps.{m}.residual_blocks.{l}."
    layout: dict[str, tuple[str, tuple[int, ...]]] = {
        "codebook": ("steps.{m}.codebook.weight", table),
        "concat": ("steps.{m}.concat.mlp.weight", (embed_dim, embed_dim + dim)),
        "bias": ("steps.{m}.concat.mlp.bias", (embed_dim,)),
        "up": (block + "up_proj.weight", (hidden_dim, embed_dim)),
        "down": (block + "down_proj.weight", (embed_dim, hidden_dim)),
    }
    if preselect:
        layout["preselect"] = ("steps.{m}.substep.codebook.weight", table)
    if embed_dim != dim:
        layout["proj_in"] = ("steps.{m}.in_proj.weight", (embed_dim, dim))
        layout["proj_out"] = ("steps.{m}.out_proj.weight", (dim, embed_dim))
    return layout


def check(
    found: Mapping[str, Any],
    expected: Mapping[str, tuple[int, ...]],
    optional: Mapping[str, tuple[int, ...]] | None = None,
) -> None:
    """Raises InputError unless `found` has exactly the expected arrays, with their shapes."""
    optional = optional or {}
    unknown = [name for name in found if name not in expected and name not in optional]
    if unknown:
        raise InputError(f"it has {listed(unknown)}, unknown in a model of its kind and sizes")
    missing = [name for name in expected if name not in found]
    if missing:
        raise InputError(f"it lacks {listed(missing)}, needed in a model of its kind and sizes")
    for name, array in found.items():
        shape = expected[name] if name in expected else optional[name]
        if type(array) is not np.ndarray:
            raise InputError(f"its {name} is a {type(array).__name__}; expected a tensor")
        if array.shape != shape:
            raise InputError(f"its {name} has shape {array.shape}; expected {shape}")


def require_distinct(arrays: Mapping[str, Any]) -> None:
    """Raises InputError if an array has two names: copied for each, it could fill memory."""
    if len({id(array) for array in arrays.values()}) < len(arrays):
        raise InputError("it has a tensor under several names, as no published model does")


def floats(arrays: Arrays, name: str) -> np.ndarray:
    """An array as float32.

    Raises:
      InputError: it is not of floats, or has NaN or Inf.
    """
    array = arrays[name]
    if not jnp.issubdtype(array.dtype, jnp.floating):
        raise InputError(f"its {name} has dtype {array.dtype}; expected floats")
    with np.errstate(over="ignore"):
        array = array.astype(np.float32)
    if not np.isfinite(array).all():
        raise InputError(f"its {name} holds NaN or Inf; the training diverged")
    return array


def _check_count(arrays: Arrays, sizes: Sizes) -> None:
    """Checks that there can be an array for each block, before their names are built."""
    if len(sizes.steps) * sizes.num_blocks > len(arrays):
        raise InputError(
            f"it states {len(sizes.steps)} network steps of {sizes.num_blocks} blocks, "
            f"but holds {len(arrays)} arrays"
        )


def _shapes(layout: Layout, sizes: Sizes) -> dict[str, tuple[int, ...]]:
    """The published names of all steps and blocks, with their shapes."""
    return {
        name.format(m=m, l=block): shape
        for m in sizes.steps
        for name, shape in layout.values()
        for block in range(sizes.num_blocks if "{l}" in name else 1)
    }


def _steps(arrays: Arrays, layout: Layout, sizes: Sizes) -> Step:
    fields: dict[str, Any] = {field.name: None for field in dataclasses.fields(Step)}
    stacked = {field: _stacked(arrays, field, layout, sizes) for field in layout}
    return Step(**(fields | stacked))


def _stacked(arrays: Arrays, field: str, layout: Layout, sizes: Sizes) -> jax.Array:
    """The arrays of a field of all steps, and of all blocks if it has blocks, in our layout."""
    name, shape = layout[field]
    turned = len(shape) == 2 and field not in TABLES
    shape = shape[::-1] if turned else shape
    blocks: Sequence[int] = range(sizes.num_blocks) if "{l}" in name else ()
    all_shape = (len(sizes.steps), *((len(blocks),) if blocks else ()), *shape)
    result = np.empty(all_shape, np.float32)
    for i, m in enumerate(sizes.steps):
        for block in blocks or (None,):
            array = floats(arrays, name.format(m=m, l=block))
            place = i if block is None else (i, block)
            result[place] = array.T if turned else array
    return jnp.asarray(result)


def _numbers(names: Collection[str], pattern: str) -> list[int]:
    """The numbers in names that match a pattern."""
    matches = (re.fullmatch(pattern, name, re.ASCII) for name in names)
    return [int(match[1]) for match in matches if match and len(match[1]) < 4]


def listed(names: Collection[str]) -> str:
    """The first few names, for a message."""
    shown = ", ".join(ascii(name)[:80] for name in list(names)[:SHOWN_NAMES]) or "nothing"
    return f"{shown} and {len(names) - SHOWN_NAMES} more" if len(names) > SHOWN_NAMES else shown
