"""Pytrees in one `.safetensors` file, which every language reads.

Knows no model. A tensor's name is its place in the tree, such as `steps.codebook` or
`parts.0.mean`; where the tree has `None` there is none. The file's metadata has one entry,
`qinco_jax`: JSON with the version, the config, and `sha256`, the hex digest over

    json.dumps(the other entries, sort_keys=True)
    for each tensor in the order of names: f"{name} {shape} {dtype}", then its bytes

with shape and dtype as NumPy prints them. Read it without JAX:

    file = safetensors.safe_open("model.safetensors", framework="numpy")
    config = json.loads(file.metadata()["qinco_jax"])["config"]
    codebooks = file.get_tensor("steps.codebook")
"""

import contextlib
import hashlib
import json
import os
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from qinco_jax.errors import InputError
from qinco_jax.files import replacing

ENDING, KEY = ".safetensors", "qinco_jax"
SHOWN_FAULTS = 5
DTYPES = {
    "F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16", "BOOL": "bool",
    **{f"I{8 * size}": f"int{8 * size}" for size in (1, 2, 4, 8)},
    **{f"U{8 * size}": f"uint{8 * size}" for size in (1, 2, 4, 8)},
}  # fmt: skip


def write_tree(path: str | os.PathLike[str], tree: Any, metadata: Mapping[str, Any]) -> None:
    """Writes a pytree of arrays and `metadata` as the new file `path`.

    Raises:
      InputError: `path` exists.
      OSError: it cannot be written; then nothing is left behind.
    """
    from safetensors.numpy import save

    target = Path(path).absolute()
    if target.exists():
        raise InputError(f"{target} exists; choose another place or remove it first")
    tensors = {name: np.array(leaf, order="C") for name, leaf in _named(tree).items()}
    content = {**metadata, "sha256": _digest(metadata, sorted(tensors), tensors.__getitem__)}
    target.parent.mkdir(parents=True, exist_ok=True)
    with replacing(target) as partial:
        partial.write_bytes(save(tensors, {KEY: json.dumps(content)}))


def read_metadata(path: str | os.PathLike[str]) -> dict[str, Any]:
    """The metadata that `write_tree` put into a file, after checking every byte of it.

    Raises:
      InputError: no such file, no file of `write_tree`, or damage.
    """
    path = Path(path)
    with _opened(path) as file:
        text = (file.metadata() or {}).get(KEY)
        if text is None:
            raise InputError(
                f"{path} holds tensors, but no metadata {KEY!r}, so it is no model that qinco_jax "
                "saved; to read vectors from it, give it as a file of vectors"
            )
        content = json.loads(text)
        expected = content.pop("sha256")
        if _digest(content, sorted(file.offset_keys()), file.get_tensor) != expected:
            raise ValueError("its sha256 is another")
        return dict(content)


def read_tree(path: str | os.PathLike[str], abstract: Any) -> Any:
    """The arrays that `write_tree` wrote, on the default device.

    Args:
      path: the file, checked by `read_metadata`.
      abstract: pytree of `jax.ShapeDtypeStruct` as they must be.

    Raises:
      InputError: tensors are missing, unknown, or of another shape or dtype; names them.
    """
    path = Path(path)
    wanted = {name: f"{leaf.dtype} {leaf.shape}" for name, leaf in _named(abstract).items()}
    with _opened(path) as file:
        found = {name: _described(file.get_slice(name)) for name in file.offset_keys()}
        _compare(path, found, wanted)
        arrays = {name: jnp.asarray(file.get_tensor(name)) for name in wanted}
    return jax.tree_util.tree_map_with_path(lambda place, _: arrays[_name(place)], abstract)


def _compare(path: Path, found: Mapping[str, str], wanted: Mapping[str, str]) -> None:
    faults = [f"{name} is missing" for name in wanted if name not in found]
    faults += [f"{name} is unknown" for name in found if name not in wanted]
    faults += [
        f"{name} is {found[name]} instead of {wanted[name]}"
        for name in wanted
        if name in found and found[name] != wanted[name]
    ]
    if faults:
        more = f" and {len(faults) - SHOWN_FAULTS} more" if len(faults) > SHOWN_FAULTS else ""
        raise InputError(
            f"{path} does not hold the tensors of its config: "
            f"{', '.join(faults[:SHOWN_FAULTS])}{more}; write it again from the model"
        )


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[Any]:
    """A file whose header is sound and whose tensors fill the rest of it."""
    from safetensors import SafetensorError, safe_open

    if not path.is_file():
        raise InputError(f"{path} is no saved model: there is no such file")
    try:
        with safe_open(path, framework="numpy") as file:
            yield file
    except InputError:
        raise
    except (
        SafetensorError, OSError, ValueError, TypeError, LookupError, AttributeError, RecursionError
    ) as error:  # fmt: skip
        reason = (str(error).splitlines() or [type(error).__name__])[0][:200]
        raise InputError(
            f"{path} is damaged ({reason}); take the model from a backup or train it again"
        ) from error


def _digest(
    metadata: Mapping[str, Any], names: list[str], tensor: Callable[[str], np.ndarray]
) -> str:
    result = hashlib.sha256(json.dumps(metadata, sort_keys=True).encode())
    for name in names:
        array = tensor(name)
        result.update(f"{name} {array.shape} {array.dtype}".encode())
        result.update(array.tobytes())
    return result.hexdigest()


def _described(tensor: Any) -> str:
    return f"{DTYPES.get(tensor.get_dtype(), tensor.get_dtype())} {tuple(tensor.get_shape())}"


def _named(tree: Any) -> dict[str, Any]:
    return {_name(place): leaf for place, leaf in jax.tree_util.tree_leaves_with_path(tree)}


def _name(place: Any) -> str:
    return jax.tree_util.keystr(place, simple=True, separator=".")
