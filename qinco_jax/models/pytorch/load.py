"""Imports checkpoints of the two published QINCo programs, without PyTorch and without them."""

import dataclasses
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from qinco_jax.errors import InputError
from qinco_jax.models.pytorch import pickled_modules, state_dicts, torch_zip
from qinco_jax.models.pytorch.safe_pickle import Record
from qinco_jax.models.pytorch.state_dicts import Sizes, listed, positive
from qinco_jax.quantizers import pairwise_decoder
from qinco_jax.quantizers.pairwise_decoder import PairwiseDecoder
from qinco_jax.quantizers.product import Product
from qinco_jax.quantizers.qinco import Qinco
from qinco_jax.vectors import checks, formats

FIRST_KEYS = {"epoch", "scheduler", "state_dict"}
SECOND_KEYS = {"model", "parameters", "data_dim"}
NOT_NEEDED = {"epoch", "optimizer", "scheduler", "logger"}
"""Keys of the second program's training state, which do not affect what the model computes."""
PARAMETERS = {"K", "M", "de", "dh", "L", "A", "B", "ivf_in_use", "ivf_K", "qinco1_mode"}
PAIRWISE_KEYS = ("ivf_code_map", "combine_mvals_m", "codebook_MKD")
SCHEDULERS = ("__main__ Scheduler", "train_qinco Scheduler")
EXPECTED = (
    "a module QINCo, QINCoLR, IVFQINCo or PQ_QINCo; or a dict with the keys "
    f"{', '.join(sorted(SECOND_KEYS))}, or {', '.join(sorted(FIRST_KEYS))}, or "
    f"{', '.join(PAIRWISE_KEYS)}"
)

Imported = Qinco | Product | PairwiseDecoder


def load_pytorch(
    path: str | os.PathLike[str],
    *,
    centroids: str | os.PathLike[str] | np.ndarray | None = None,
    db_scale: float | None = None,
    num_steps: int | None = None,
) -> Imported:
    """Imports a checkpoint of one of QINCo's published programs.

    PyTorch is not needed, and no code in the file is run. Every array and size in it is checked. It
    reads modules of the first program (QINCo, QINCo-LR, IVF-QINCo, PQ-QINCo), the state of its
    multi-GPU trainings, checkpoints of the second (QINCo2, IVF-QINCo2, QINCo), and its pairwise
    decoders.

    Args:
      path: the file.
      centroids: [K_ivf, D] numbers in the space of the vectors, or a file of them, for an
        IVF-QINCo2 that was saved without them.
      db_scale: what vectors are divided by, for a state of the first program's multi-GPU trainings,
        which lacks it. That program takes the largest number in its training set.
      num_steps: M of the model whose codes a pairwise decoder decodes, which its file does not
        say; `None` takes half its tables, since the published program fits two for each step.

    Returns:
      A model that encodes and decodes as the published one does, in float32; or a
      `PairwiseDecoder`.

    Raises:
      InputError: no such file, another format, damage, or unexpected content; `centroids`,
        `db_scale` or `num_steps` is missing, or not needed.
    """
    classes = (*pickled_modules.CLASSES, *SCHEDULERS)
    try:
        found = torch_zip.read(path, classes)
        kind = _kind(found)
        for name, value, needs_it in (
            ("db_scale", db_scale, "first state"),
            ("centroids", centroids, "second"),
            ("num_steps", num_steps, "pairwise"),
        ):
            if value is not None and kind != needs_it:
                raise InputError(f"it needs no {name}; leave it out")
        if kind == "first state":
            return _of_first_state(found, db_scale)
        if kind == "second":
            return _of_second(found, centroids)
        return _of_module(found) if kind == "module" else _pairwise(found, num_steps)
    except InputError as error:
        raise InputError(f"{Path(path)}: {error}") from error


def _kind(found: Any) -> str:
    if type(found) is Record and found.name in pickled_modules.MODELS:
        return "module"
    if type(found) is not dict:
        name = found.name if type(found) is Record else type(found).__name__
        raise InputError(f"it holds a {name}; expected {EXPECTED}")
    if found.keys() >= SECOND_KEYS and found.keys() <= SECOND_KEYS | NOT_NEEDED:
        return "second"
    if found.keys() == FIRST_KEYS:
        return "first state"
    if found.keys() == {*PAIRWISE_KEYS}:
        return "pairwise"
    raise InputError(f"it holds a dict with the keys {listed(found)}; expected {EXPECTED}")


def _of_module(root: Record) -> Qinco | Product:
    tree = pickled_modules.tree(root)
    if root.name != pickled_modules.PRODUCT:
        return _qinco(tree)
    children = tree.children()
    names = [f"sub_quantizer_{i}" for i in range(len(children))]
    if children.keys() != set(names) or not names:
        raise InputError(f"it has the modules {listed(children)}; expected sub_quantizer_0, ...")
    for name in names:
        kind = children[name].modules[""].name
        if kind != pickled_modules.QINCO:
            raise InputError(f"its {name} is a {kind}; expected a QINCo")
    parts = tuple(_qinco(children[name]) for name in names)
    rotation = _rotation(tree, sum(len(part.mean) for part in parts), names)
    if len(parts) == 1:  # it divides before it rotates, which gives the same
        config = dataclasses.replace(parts[0].config, rotate=rotation is not None)
        return dataclasses.replace(parts[0], rotation=rotation, config=config)
    product = Product(parts, rotation)
    _ = product.config  # raises if the parts differ in size
    return product


def _qinco(tree: pickled_modules.Tree) -> Qinco:
    """A QINCo, a QINCo-LR or an IVF-QINCo."""
    sizes, coarse = pickled_modules.sizes(tree)
    low_rank = tree.modules[""].name == pickled_modules.LOW_RANK
    scale = tree.plain.get("db_scale")
    model = state_dicts.first_program(tree.arrays, sizes, scale, low_rank=low_rank, coarse=coarse)
    pickled_modules.check(tree, sizes, coarse)
    return model


def _rotation(tree: pickled_modules.Tree, dim: int, names: list[str]) -> jax.Array | None:
    """The matrix R that rows are multiplied by, published transposed, or `None`."""
    own = {name: value for name, value in tree.arrays.items() if "." not in name}
    plain = {name: value for name, value in tree.plain.items() if "." not in name}
    rotated = "opq_matrix" in own
    pickled_modules.check_plain(
        tree._replace(plain=plain),
        {"db_scale": 1} if rotated else {"db_scale": 1, "opq_matrix": None},
        {"sub_quantizers": names},
        others=set(),
    )
    state_dicts.check(own, {"opq_matrix": (dim, dim)} if rotated else {})
    return jnp.asarray(state_dicts.floats(own, "opq_matrix").T) if rotated else None


def _of_first_state(found: Mapping[str, Any], db_scale: float | None) -> Qinco:
    arrays = _arrays(found["state_dict"])
    if db_scale is None:
        raise InputError(
            "it is the state of a multi-GPU training, which lacks db_scale, what vectors are "
            "divided by; pass db_scale=..., the largest number in the training vectors unless the "
            "training was given another"
        )
    sizes, low_rank, coarse = state_dicts.sizes_of_first_program(arrays)
    return state_dicts.first_program(arrays, sizes, db_scale, low_rank=low_rank, coarse=coarse)


def _of_second(
    found: Mapping[str, Any], centroids: str | os.PathLike[str] | np.ndarray | None
) -> Qinco:
    arrays, given = _arrays(found["model"]), _parameters(found["parameters"])
    dim = positive("data_dim", found["data_dim"])
    num_steps, num_candidates = positive("M", given.get("M")), given.get("A")
    if not (num_candidates is None or (type(num_candidates) is int and num_candidates == 0)):
        positive("A", num_candidates)
    embed_dim = positive("de", given.get("de", dim))
    ivf, first = given.get("ivf_in_use"), given.get("qinco1_mode")
    if first and embed_dim != dim:
        raise InputError(f"it is a QINCo with de = {embed_dim}; those have de = {dim}, as data_dim")
    coarse = _num_centroids(given.get("ivf_K")) if ivf else None
    if not ivf and (centroids is not None or "ivf_K" in given):
        raise InputError("it is not an IVF-QINCo2; leave out centroids and ivf_K")
    sizes = Sizes(
        dim, positive("K", given.get("K")), embed_dim, positive("dh", given.get("dh")),
        positive("L", given.get("L")), range(1, num_steps + 1 if ivf else num_steps),
    )  # fmt: skip
    return state_dicts.second_program(
        arrays,
        sizes,
        form="qinco" if first else "qinco2",
        num_candidates=num_candidates or None,
        beam_size=positive("B", given.get("B")),
        centroids=_centroids(arrays, centroids, coarse, dim) if coarse else None,
        coarse=coarse,
    )


def _parameters(given: Any) -> dict[str, Any]:
    """The settings of the second program that are not None."""
    if type(given) is not dict or not given.keys() <= PARAMETERS:
        names = listed(given) if type(given) is dict else type(given).__name__
        raise InputError(
            f"its parameters are {names}; expected some of {', '.join(sorted(PARAMETERS))}"
        )
    given = {name: value for name, value in given.items() if value is not None}
    for name in ("ivf_in_use", "qinco1_mode"):
        if type(given.get(name, False)) is not bool:
            raise InputError(f"its {name} is {type(given[name]).__name__}; expected true or false")
    return given


def _num_centroids(value: Any) -> int:
    if type(value) is not int or not 2 <= value <= 2**24:
        raise InputError("it states an IVF, but its ivf_K is not an integer from 2 to 2^24")
    return value


def _centroids(
    arrays: state_dicts.Arrays,
    centroids: str | os.PathLike[str] | np.ndarray | None,
    coarse: int,
    dim: int,
) -> np.ndarray | None:
    """Centroids [K_ivf, D] float32 if the file has none, or `None` if it has them."""
    inside = "steps.0.ivf_centroids.weight" in arrays
    if inside and centroids is not None:
        raise InputError("it has its own centroids; leave yours out")
    if centroids is None:
        if inside:
            return None
        raise InputError(
            f"it is an IVF-QINCo2 without its {coarse} centroids, which are in a separate "
            "file; pass centroids=..., its path"
        )
    given = formats.read(centroids) if isinstance(centroids, str | os.PathLike) else centroids
    given = np.asarray(checks.vectors(given, what="centroids"))
    if given.shape != (coarse, dim):
        raise InputError(f"the centroids have shape {given.shape}; expected {(coarse, dim)}")
    return checks.finite(given, what="the centroids").astype(np.float32)


def _pairwise(found: Mapping[str, Any], num_steps: int | None) -> PairwiseDecoder:
    arrays = _arrays(found)
    if num_steps is None:
        num_steps, odd = divmod(len(arrays["codebook_MKD"]), 2)
        if odd:
            raise InputError(
                "it is a pairwise decoder without two tables for each step; pass "
                "num_steps=..., M of the codes"
            )
    return pairwise_decoder.checked(*(arrays[name] for name in PAIRWISE_KEYS), num_steps=num_steps)


def _arrays(found: Any) -> state_dicts.Arrays:
    """A state dict."""
    if type(found) is not dict or not found:
        raise InputError(f"its state dict is a {type(found).__name__}; expected one of tensors")
    for name, value in found.items():
        if type(name) is not str or type(value) is not np.ndarray:
            kind = type(value).__name__
            raise InputError(f"its state dict has {name!a}, a {kind}; expected tensors by name")
    state_dicts.require_distinct(found)
    return found
