"""Reads the zip archives of `torch.save`, without PyTorch and without running code from them.

They are uncompressed: a pickle, and the numbers of its tensors in `data/0`, `data/1`, ..., which
the pickle refers to.
"""

import dataclasses
import math
import os
import struct
import zipfile
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from qinco_jax.errors import InputError
from qinco_jax.files import path_of
from qinco_jax.models.pytorch import safe_pickle
from qinco_jax.models.pytorch.safe_pickle import Name, Record, of

ZIP, LEGACY = b"PK\x03\x04", b"\x80\x02\x8a\x0a\x6c\xfc\x9c\x46"
LOCAL_HEADER = 30  # bytes, before the name
MAX_ENTRIES = 10**5
MAX_RANK = 8
MAX_SIZE = 2**48
DAMAGE = (
    zipfile.BadZipFile, struct.error, ValueError, EOFError, RuntimeError, OverflowError
)  # fmt: skip
KNOWN = {
    "data.pkl", "version", "byteorder", ".format_version", ".storage_alignment",
    ".data/serialization_id",
}  # fmt: skip
VERSIONS = (b"2\n", b"3\n")
DTYPES = {
    "torch HalfStorage": np.dtype("<f2"),
    "torch BFloat16Storage": np.dtype(ml_dtypes.bfloat16),
    "torch FloatStorage": np.dtype("<f4"),
    "torch DoubleStorage": np.dtype("<f8"),
    "torch CharStorage": np.dtype("i1"),
    "torch ByteStorage": np.dtype("u1"),
    "torch ShortStorage": np.dtype("<i2"),
    "torch IntStorage": np.dtype("<i4"),
    "torch LongStorage": np.dtype("<i8"),
}
NUMPY_DTYPES = ("f2", "f4", "f8", "i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8", "b1")


def read(path: str | os.PathLike[str], classes: Collection[str] = ()) -> Any:
    """The value that `torch.save` wrote, with NumPy arrays instead of tensors.

    Args:
      path: a file of PyTorch 1.6 or newer.
      classes: names such as "torch.nn.modules.linear Linear", whose objects are read as `Record`.

    Returns:
      As `safe_pickle.read`; arrays are read-only, and may share memory.

    Raises:
      InputError: no such file, another format, damage, or a pickle that asks for any other class.
    """
    path = path_of(path)
    if not path.is_file():
        raise InputError("there is no such file; check its name and folder")
    try:
        _check_beginning(path)
        with zipfile.ZipFile(path) as archive:
            return _read(_Entries(archive, path.stat().st_size), classes)
    except InputError:
        raise
    except OSError as error:
        raise InputError(f"it cannot be read ({error.strerror}); fix that first") from error
    except DAMAGE as error:
        reason = ascii(str(error))[1:-1][:80]
        raise InputError(f"it is damaged ({reason}); download it again") from error


def _check_beginning(path: Path) -> None:
    with path.open("rb") as file:
        beginning = file.read(512)
    if beginning.startswith(ZIP):
        return
    if beginning.startswith(LEGACY) or beginning[257:262] == b"ustar":
        raise InputError(
            "it is in the format of PyTorch before its version 1.6, which is not supported; if you "
            "trust it, load and save it with a newer PyTorch"
        )
    raise InputError(
        f"it begins with {beginning[:8]!r}; expected the zip archive that torch.save writes"
    )


class _Entries:
    """The entries of an archive by name in its one folder, and which of them are unread."""

    def __init__(self, archive: zipfile.ZipFile, size: int) -> None:
        infos = archive.infolist()
        if len(infos) > MAX_ENTRIES:
            raise InputError(f"it has {len(infos)} entries, more than the {MAX_ENTRIES} allowed")
        _check_places(infos, size)
        folders = {info.filename.partition("/")[0] for info in infos}
        self.archive = archive
        self.infos = {info.filename.partition("/")[2]: info for info in infos}
        if len(folders) != 1 or len(self.infos) != len(infos) or "data.pkl" not in self.infos:
            raise InputError(
                "it is a zip archive but not one of torch.save, which has one folder with a "
                "data.pkl and no name twice"
            )
        self.unread = set(self.infos)

    def __contains__(self, name: str) -> bool:
        return name in self.infos

    def read(self, name: str) -> bytes:
        self.unread.discard(name)
        return self.archive.read(self.infos[name])


def _check_places(infos: list[zipfile.ZipInfo], size: int) -> None:
    """Checks that entries are uncompressed and do not overlap, so that all fit into memory."""
    end = 0
    for info in sorted(infos, key=lambda info: info.header_offset):
        if info.compress_type != zipfile.ZIP_STORED or info.file_size != info.compress_size:
            raise InputError(
                f"its entry {info.filename!a} is compressed, which torch.save never does"
            )
        if info.header_offset < end:
            raise InputError(f"its entry {info.filename!a} overlaps another")
        end = info.header_offset + LOCAL_HEADER + info.file_size
    if end > size:
        raise InputError("it is cut off; download it again")


def _read(entries: _Entries, classes: Collection[str]) -> Any:
    version = entries.read("version") if "version" in entries else b""
    if version not in VERSIONS:
        raise InputError(f"it has the version {version[:8]!r} of torch.save; expected 2 or 3")
    byteorder = entries.read("byteorder") if "byteorder" in entries else b"little"
    if byteorder != b"little":
        raise InputError(
            f"its numbers are {byteorder[:8]!r}-endian; only little-endian is supported"
        )
    vocabulary = safe_pickle.Vocabulary(FUNCTIONS, classes, DTYPES, _storages(entries))
    value = safe_pickle.read(entries.read("data.pkl"), vocabulary)
    entries.unread -= KNOWN
    if entries.unread:
        names = ", ".join(ascii(name) for name in sorted(entries.unread)[:4])
        raise InputError(f"it has {len(entries.unread)} entries that nothing refers to: {names}")
    return value


@dataclasses.dataclass(eq=False)
class _Storage:
    """The numbers [n] of tensors, and how many of them no tensor has taken yet.

    Copied, tensors that share numbers could make a small file fill memory.
    """

    numbers: np.ndarray
    left: int


def _storages(entries: _Entries) -> Callable[[Any], _Storage]:
    """A function from persistent ids to storages, each read once."""
    known: dict[str, _Storage] = {}

    def storage(identity: Any) -> _Storage:
        kind, name, key, _, size = of(tuple, identity)
        if of(str, kind) != "storage" or of(Name, name).text not in DTYPES:
            raise ValueError("a persistent id that is not a storage")
        dtype = DTYPES[name.text]
        if of(str, key) not in known:
            if not key.isdecimal() or f"data/{key}" not in entries:
                raise ValueError("a storage that is not in the archive")
            data = entries.read(f"data/{key}")
            if len(data) != of(int, size) * dtype.itemsize:
                raise ValueError(f"a storage of {len(data)} bytes where its size says otherwise")
            known[key] = _Storage(np.frombuffer(data, dtype) if data else np.empty(0, dtype), size)
        if known[key].numbers.dtype != dtype or known[key].numbers.size != of(int, size):
            raise ValueError("a storage of two kinds")
        return known[key]

    return storage


def _tensor(
    storage: _Storage, offset: int, shape: Any, strides: Any, _: object, hooks: Any
) -> np.ndarray:
    """A tensor as a view of its storage; no two of its numbers may share a place."""
    numbers = of(_Storage, storage).numbers
    _of_length(0, of(dict, hooks))
    shape, strides = _sizes(shape), _sizes(strides)
    if len(shape) != len(strides) or len(shape) > MAX_RANK:
        raise ValueError(f"a tensor of {len(shape)} dimensions with {len(strides)} strides")
    last = _sizes((offset,))[0]
    if math.prod(shape) == 0:
        return np.empty(shape, numbers.dtype)
    for stride, size in sorted(zip(strides, shape, strict=True)):
        if size > 1:
            if stride <= last - offset:
                raise ValueError("a tensor that has numbers twice")
            last += stride * (size - 1)
    if last >= numbers.size:
        raise ValueError("a tensor that does not lie in its storage")
    storage.left -= math.prod(shape)
    if storage.left < 0:
        raise ValueError("tensors that share numbers")
    steps = [numbers.itemsize * stride for stride in strides]
    return np.lib.stride_tricks.as_strided(numbers[offset:], shape, steps, writeable=False)


def _sizes(sizes: Any) -> tuple[int, ...]:
    if not all(0 <= of(int, size) < MAX_SIZE for size in of(tuple, sizes)):
        raise ValueError("an invalid shape, stride or offset")
    return sizes


def _parameter(tensor: np.ndarray, _: object, hooks: Any) -> np.ndarray:
    _of_length(0, of(dict, hooks))
    return of(np.ndarray, tensor)


def _ordered_dict() -> dict[str, Any]:
    return {}


def _set(items: Any) -> tuple[str, ...]:
    return tuple(of(str, item) for item in of(list, items))


def _encode(text: Any, encoding: Any) -> bytes:
    """The bytes that a pickle of protocol 2 writes as text."""
    if of(str, encoding) != "latin1":
        raise ValueError("bytes that are not latin1")
    return of(str, text).encode(encoding)


def _numpy_dtype(code: Any, *_: object) -> Record:
    if of(str, code) not in NUMPY_DTYPES:
        raise ValueError("a NumPy dtype that is not a number")
    return Record(code)


def _numpy_scalar(dtype: Any, data: Any) -> float | int | bool:
    """A NumPy number; the state of its dtype is (version, byte order, ...)."""
    code, order = of(Record, dtype).name, of(str, of(tuple, dtype.state)[1])
    if code not in NUMPY_DTYPES or order not in ("<", "|"):
        raise ValueError("a NumPy number that is not little-endian")
    _of_length(np.dtype(code).itemsize, of(bytes, data))
    return np.frombuffer(data, "<" + code)[0].item()


def _of_length(length: int, value: Any) -> None:
    if len(value) != length:
        raise ValueError(f"{len(value)} in a {type(value).__name__} instead of {length}")


FUNCTIONS: dict[str, Callable[..., Any]] = {
    "torch._utils _rebuild_tensor_v2": _tensor,
    "torch._utils _rebuild_parameter": _parameter,
    "collections OrderedDict": _ordered_dict,
    "__builtin__ set": _set,
    "_codecs encode": _encode,
    "numpy dtype": _numpy_dtype,
    "numpy.core.multiarray scalar": _numpy_scalar,
    "numpy._core.multiarray scalar": _numpy_scalar,
}
