"""Writes files like `torch.save`, and files that no `torch.save` would write."""

import struct
import zipfile
from pathlib import Path
from typing import Any

import numpy as np

from qinco_jax.models.pytorch.safe_pickle import Record

STORAGES = {"f": "FloatStorage", "i": "LongStorage"}


class Raw(bytes):
    """Instructions of a pickle that leave one value on its stack."""


class Writer:
    """A pickle of protocol 2 in the making, and its storages."""

    def __init__(self) -> None:
        self.storages: list[bytes] = []
        self.memo: dict[int, int] = {}

    def value(self, value: Any) -> bytes:
        if isinstance(value, Raw):
            return value
        if value is None or isinstance(value, bool):
            return {None: b"N", True: b"\x88", False: b"\x89"}[value]
        if isinstance(value, int):
            return b"J" + struct.pack("<i", value)
        if isinstance(value, float):
            return b"G" + struct.pack(">d", value)
        if isinstance(value, str):
            text = value.encode()
            return b"X" + struct.pack("<I", len(text)) + text
        if isinstance(value, dict):
            items = b"".join(self.value(part) for item in value.items() for part in item)
            return b"}(" + items + b"u"
        if isinstance(value, list | tuple):
            end = b"l" if isinstance(value, list) else b"t"
            items = b"".join(map(self.value, value))
            return b"](" + items + b"e" if end == b"l" else b"(" + items + b"t"
        return self.record(value) if isinstance(value, Record) else self.tensor(value)

    def record(self, record: Record) -> bytes:
        if id(record) in self.memo:
            return b"j" + struct.pack("<I", self.memo[id(record)])
        place = self.memo[id(record)] = len(self.memo)
        new = name(record.name) + b")\x81" + b"r" + struct.pack("<I", place)
        return new + self.value(record.state) + b"b"

    def tensor(self, array: np.ndarray) -> bytes:
        array = np.array(array, {"f": "<f4", "i": "<i8"}[array.dtype.kind], order="C")
        strides = tuple(n // array.itemsize for n in array.strides)
        storage = self.storage(array.tobytes(), array.size, STORAGES[array.dtype.kind])
        return self.view(storage, 0, array.shape, strides)

    def storage(self, data: bytes, size: int, kind: str = "FloatStorage") -> Raw:
        self.storages.append(data)
        identity = ("storage", name(f"torch {kind}"), str(len(self.storages) - 1), "cpu", size)
        return Raw(self.value(identity) + b"Q")

    def view(self, storage: bytes, offset: int, shape: Any, strides: Any) -> Raw:
        rest = (offset, shape, strides, False, call("collections OrderedDict"))
        return call("torch._utils _rebuild_tensor_v2", Raw(storage), *rest, writer=self)


def name(text: str) -> Raw:
    return Raw(b"c" + text.replace(" ", "\n").encode() + b"\n")


def call(function: str, *arguments: Any, writer: Writer | None = None) -> Raw:
    return Raw(name(function) + (writer or Writer()).value(arguments) + b"R")


def save(path: Path, value: Any, writer: Writer | None = None) -> Path:
    """Writes a file with `value`; `writer` has the storages that are in it already."""
    writer = writer or Writer()
    pickle = b"\x80\x02" + writer.value(value) + b"."
    entries = {f"data/{i}": data for i, data in enumerate(writer.storages)}
    return archive(path, {"data.pkl": pickle, "version": b"3\n", **entries})


def archive(path: Path, entries: dict[str, bytes], compression: int = zipfile.ZIP_STORED) -> Path:
    with zipfile.ZipFile(path, "w", compression) as file:
        for entry, data in entries.items():
            file.writestr(f"x/{entry}", data)
    return path
