"""Pickled modules of the first published program: their arrays and sizes.

A module is a `Record` whose state holds its parameters, its modules, and plain attributes. All are
compared with what a module of its class and sizes has.
"""

from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import numpy as np

from qinco_jax.errors import InputError
from qinco_jax.models.pytorch.safe_pickle import Record
from qinco_jax.models.pytorch.state_dicts import Sizes, listed, positive, require_distinct

QINCO, LOW_RANK, IVF, PRODUCT = MODELS = tuple(
    f"model_qinco {name}" for name in ("QINCo", "QINCoLR", "IVFQINCo", "PQ_QINCo")
)
STEP = "model_qinco QINCoStep"
LINEAR = "torch.nn.modules.linear Linear"
EMBEDDING = "torch.nn.modules.sparse Embedding"
SEQUENTIAL = "torch.nn.modules.container Sequential"
RELU = "torch.nn.modules.activation ReLU"
CLASSES = (*MODELS, STEP, LINEAR, EMBEDDING, SEQUENTIAL, RELU)

MAX_MODULES = 10**5
MAX_PATH = 100
TRAINING = {
    "": ("training",),
    RELU: ("inplace",),
    EMBEDDING: ("norm_type", "scale_grad_by_freq", "sparse"),
}
"""Attributes by class, "" for all, which do not affect what a trained module computes."""


class Tree(NamedTuple):
    """All modules below one of them, by dotted path; "" is the root.

    Attributes:
      modules: the modules.
      arrays: their parameters, by path and name.
      plain: their other attributes, by path and name.
    """

    modules: dict[str, Record]
    arrays: dict[str, np.ndarray]
    plain: dict[str, Any]

    def children(self) -> dict[str, "Tree"]:
        """The tree below each module of the root."""
        found: dict[str, Tree] = {}
        parts: tuple[dict[str, Any], ...] = (self.modules, self.arrays, self.plain)
        for i, part in enumerate(parts):
            for path, value in part.items():
                head, dot, rest = path.partition(".")
                if head in self.modules and (dot or part is self.modules):
                    found.setdefault(head, Tree({}, {}, {}))[i][rest] = value
        return {name: tree for name, tree in found.items() if name}


def tree(root: Record) -> Tree:
    """The modules below `root`, which may be anything that a pickle describes.

    Raises:
      InputError: it is not a tree of modules, a module has hooks or buffers, or two share a
        parameter.
    """
    found = Tree({}, {}, {})
    waiting, seen = [("", root)], set()
    while waiting:
        path, module = waiting.pop()
        start = f"{path}." if path else ""
        if type(module) is not Record or id(module) in seen or len(start) > MAX_PATH:
            raise InputError(f"its module {path!a} is not a module, or is there twice")
        seen.add(id(module))
        found.modules[path] = module
        for name, value in _named(module.state):
            if name == "_modules":
                waiting += [(start + key, below) for key, below in _named(value)]
            elif name == "_parameters":
                found.arrays.update({start + key: a for key, a in _named(value) if a is not None})
            elif not name.startswith("_"):
                found.plain[start + name] = value
            elif not (value is None or type(value) is bool or _is_empty(value)):
                raise InputError(
                    f"its module {path!a} has {name!a}; hooks and buffers cannot be imported"
                )
    require_distinct(found.arrays)
    return found


def sizes(tree: Tree) -> tuple[Sizes, int | None]:
    """The sizes that a QINCo, a QINCo-LR or an IVF-QINCo states, and K_ivf.

    Raises:
      InputError: a size is missing or invalid.
    """
    dim, codebook_size, hidden_dim, num_blocks, num_steps = (
        positive(name, tree.plain.get(name)) for name in ("d", "K", "h", "L", "M")
    )
    ivf = tree.modules[""].name == IVF
    if (num_steps * num_blocks) > MAX_MODULES:
        raise InputError(
            f"it states {num_steps} steps of {num_blocks} blocks, more than {MAX_MODULES}"
        )
    steps = range(num_steps) if ivf else range(1, num_steps)
    coarse = positive("K_IVF", tree.plain.get("K_IVF")) if ivf else None
    return Sizes(dim, codebook_size, dim, hidden_dim, num_blocks, steps), coarse


def check(tree: Tree, sizes: Sizes, coarse: int | None) -> None:
    """Checks the modules, and their attributes, against a model of its class and sizes.

    Raises:
      InputError: names what differs.
    """
    kind = tree.modules[""].name
    classes, lists = _expected(kind, sizes)
    for path in {**classes, **tree.modules}:
        found = tree.modules[path].name if path in tree.modules else "missing"
        if found != classes.get(path):
            raise InputError(
                f"its module {path!a} is {found!a}; expected {classes.get(path, 'none')!a}"
            )
    own = {"d": sizes.dim, "K": sizes.codebook_size, "L": sizes.num_blocks, "h": sizes.hidden_dim}
    of_model = {**own, "M": len(sizes.steps) + (coarse is None)}
    expected = of_model if coarse is None else {**of_model, "K_IVF": coarse}
    for path, name in classes.items():
        start = f"{path}." if path else ""
        if name == STEP:
            expected |= {start + attribute: size for attribute, size in own.items()}
        elif name in (LINEAR, EMBEDDING) and f"{start}weight" in tree.arrays:
            expected |= _attributes(start, name, tree.arrays[f"{start}weight"])
    check_plain(tree, expected, lists, others={"db_scale"})


def check_plain(
    tree: Tree, expected: Mapping[str, Any], lists: Mapping[str, list[str]], others: set[str]
) -> None:
    """Checks that plain attributes are `expected`, `lists` of modules, `others`, or for training.

    Raises:
      InputError: names what differs.
    """
    for name, value in tree.plain.items():
        path, _, attribute = name.rpartition(".")
        if name in lists:
            modules = [tree.modules[other] for other in lists[name]]
            if type(value) is not list or [id(m) for m in value] != [id(m) for m in modules]:
                raise InputError(f"its {name} is not the list of {listed(lists[name])}")
        elif name in expected:
            if type(value) is not type(expected[name]) or value != expected[name]:
                raise InputError(
                    f"its {name} is {_shown(value)}; expected {expected[name]}, as its arrays have"
                )
        elif name not in others and attribute not in (
            *TRAINING[""], *TRAINING.get(tree.modules[path].name, ())
        ):  # fmt: skip
            raise InputError(f"it has {name!a}, unknown in a {tree.modules[path].name}")
    missing = [name for name in (*expected, *lists) if name not in tree.plain]
    if missing:
        raise InputError(f"it lacks {listed(missing)}")


def _expected(kind: str, sizes: Sizes) -> tuple[dict[str, str], dict[str, list[str]]]:
    """Classes of a model's modules by path, and paths of the modules in its lists."""
    classes, lists = {"": kind, "codebook0": EMBEDDING}, {}
    lists["steps"] = [f"step{m}" for m in sizes.steps]
    for step in lists["steps"]:
        classes |= {step: STEP, f"{step}.codebook": EMBEDDING}
        concat = f"{step}.MLPconcat"
        classes[concat] = SEQUENTIAL if kind == LOW_RANK else LINEAR
        if kind == LOW_RANK:
            classes |= {f"{concat}.0": LINEAR, f"{concat}.1": LINEAR}
        blocks = [f"{step}.residual_block{block}" for block in range(sizes.num_blocks)]
        lists[f"{step}.residual_blocks"] = blocks
        for block in blocks:
            classes |= {
                block: SEQUENTIAL, f"{block}.0": LINEAR, f"{block}.1": RELU, f"{block}.2": LINEAR
            }  # fmt: skip
    return classes, lists


def _attributes(start: str, kind: str, weight: Any) -> dict[str, Any]:
    """The attributes of a linear map or a table with this weight."""
    if type(weight) is not np.ndarray or weight.ndim != 2:
        raise InputError(f"its {start}weight is not a matrix")
    rows, columns = weight.shape
    if kind == LINEAR:
        return {f"{start}in_features": columns, f"{start}out_features": rows}
    return {
        f"{start}num_embeddings": rows,
        f"{start}embedding_dim": columns,
        f"{start}padding_idx": None,
        f"{start}max_norm": None,
    }


def _named(value: Any) -> Iterable[tuple[str, Any]]:
    """The items of a dict whose keys can be parts of a path."""
    if type(value) is not dict or not all(
        type(key) is str and len(key) < MAX_PATH and "." not in key for key in value
    ):
        raise InputError("it has a module without attributes, or with invalid names")
    return value.items()


def _is_empty(value: Any) -> bool:
    return type(value) in (dict, list, tuple) and not value


def _shown(value: Any) -> str:
    """Any value, for a message."""
    return repr(value) if type(value) in (int, float, bool, type(None)) else type(value).__name__
