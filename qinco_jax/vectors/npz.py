"""Matrices in `.npz` files: mapped where they are stored as they are, else read into memory."""

import functools
import io
import zipfile
import zlib

import numpy as np

from qinco_jax.errors import InputError
from qinco_jax.remote.paths import AnyPath, source
from qinco_jax.vectors import formats
from qinco_jax.vectors.located import array_at
from qinco_jax.vectors.npy import Header, read_header
from qinco_jax.vectors.stored import Rows
from qinco_jax.vectors.tables import Table, explained

ENDINGS = (".npz",)
MEMBER = ".npy"
ERRORS = (
    zipfile.BadZipFile, zlib.error, RuntimeError, ValueError, KeyError, EOFError, OverflowError,
    MemoryError,
)  # fmt: skip
HEADER_BYTES = 2**16
PIECE_BYTES = 2**20
MAX_RATIO = 1100  # Deflate reaches 1032: what claims more is damaged
LOCAL_HEADER = 30  # bytes before the name of a member, which end in the lengths of what follows


def tables(path: AnyPath) -> dict[str, Table]:
    """The arrays in a file by name; raises as `containers.tables` does."""
    with explained(path, *ERRORS), zipfile.ZipFile(source(path)) as archive:
        return {
            info.filename.removesuffix(MEMBER): _table(path, archive, info)
            for info in archive.infolist()
        }


def _table(path: AnyPath, archive: zipfile.ZipFile, info: zipfile.ZipInfo) -> Table:
    if not info.filename.endswith(MEMBER):
        return Table("no array", None)
    with archive.open(info) as member:
        header = read_header(io.BytesIO(member.read(HEADER_BYTES)), f"{info.filename} in {path}")
    what = f"{header.dtype} {header.shape}"
    if len(header.shape) != 2 or not formats.is_vector_dtype(header.dtype):
        return Table(what, None)
    return Table(what, functools.partial(_rows, path, info, header))


def _rows(path: AnyPath, info: zipfile.ZipInfo, header: Header) -> Rows:
    formats.check_shape(path, header.shape[0], header.shape[1])
    compressed = info.compress_type != zipfile.ZIP_STORED
    if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        raise InputError(
            f"{info.filename} in {path} is not compressed as NumPy does it; write it again with "
            "np.savez"
        )
    most = info.compress_size * (MAX_RATIO if compressed else 1)
    if info.file_size != header.size or info.file_size > most:
        raise InputError(
            f"{info.filename} in {path} has {info.file_size} bytes, {info.compress_size} in the "
            f"file, but its header claims {header.shape[0]} rows of {header.shape[1]} columns; it "
            "is damaged, so fetch or write it again"
        )
    with explained(path, *ERRORS):
        if compressed:
            return header.rows(_read(path, info, header))
        return array_at(path, header, _begin(path, info) + header.offset)


def _begin(path: AnyPath, info: zipfile.ZipInfo) -> int:
    """The place of a member that is not compressed."""
    with path.open("rb") as file:
        file.seek(info.header_offset)
        start = file.read(LOCAL_HEADER)
    lengths = np.frombuffer(start, "<u2", offset=LOCAL_HEADER - 4).tolist()
    return int(info.header_offset + LOCAL_HEADER + sum(lengths))


def _read(path: AnyPath, info: zipfile.ZipInfo, header: Header) -> np.ndarray:
    """The numbers of a compressed member, as bytes; their checksum is checked at its end."""
    numbers = np.empty(header.size - header.offset, np.uint8)
    with zipfile.ZipFile(source(path)) as archive, archive.open(info) as member:
        member.read(header.offset)
        done = 0
        while piece := member.read(PIECE_BYTES):
            numbers[done : done + len(piece)] = np.frombuffer(piece, np.uint8)
            done += len(piece)
    if done < len(numbers):
        raise InputError(f"{info.filename} in {path} is incomplete; fetch or write it again")
    numbers.flags.writeable = False
    return numbers
