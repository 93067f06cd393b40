"""Codes: their dtype, and their packing into bytes.

Packed codes are a matrix of uint8, one row a vector, so a file of them is a plain `.npy`.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from qinco_jax.config import MAX_CODEBOOK, QincoConfig
from qinco_jax.errors import InputError
from qinco_jax.numbers import integer
from qinco_jax.vectors import checks

Array = jax.Array | np.ndarray


def code_dtype(codebook_size: int) -> jnp.dtype:
    """uint8 for K <= 256, else uint16.

    Raises:
      InputError: K is greater than 65,536.
    """
    check_size(codebook_size)
    return jnp.dtype(jnp.uint8 if codebook_size <= 256 else jnp.uint16)


def check_size(codebook_size: int) -> None:
    """Raises `InputError` if there are more codewords than codes."""
    if codebook_size > MAX_CODEBOOK:
        raise InputError(f"codebook_size must be at most {MAX_CODEBOOK:,}, got {codebook_size:,}")


def code_bytes(num_steps: int, codebook_size: int) -> int:
    """Bytes of one vector's packed codes: ceil(M * log2(K) / 8).

    Raises:
      InputError: K is not a power of two from 2 to 65536.
    """
    return -(-num_steps * _code_bits(codebook_size) // 8)


def pack(codes: np.ndarray, codebook_size: int) -> np.ndarray:
    """Puts the bits of every row's codes one after the other.

    Code 0 comes first, and of each code the least significant bit; the last byte is filled up with
    zeros. That is Faiss's layout: of `pack_bitstrings`, of `IndexQINCo` and of its additive
    quantizers. Those that keep norms put their bits behind the codes, in front of the zeros; of
    such bytes `faiss.unpack_bitstrings` takes the codes.

    Args:
      codes: [N, M] integers from 0 to K - 1, with M >= 1.
      codebook_size: K, a power of two from 2 to 65536.

    Returns:
      [N, ceil(M * log2(K) / 8)] uint8. May share the memory of `codes`.

    Raises:
      InputError: K is no integer or not such a power of two, or `codes` are not codes of it.
    """
    bits = _code_bits(codebook_size)
    codes = np.asarray(checks.array(codes, "codes"))
    if codes.ndim != 2 or codes.shape[1] < 1 or codes.dtype.kind not in "iu":
        raise InputError(
            f"codes have shape {codes.shape} and dtype {codes.dtype}; pass integers [N, M]"
        )
    check_range(codebook_size, codes)
    codes = np.ascontiguousarray(codes, _stored_dtype(codebook_size))
    if bits in (8, 16):
        return codes.view(np.uint8)
    each = codes[..., None].view(np.uint8)
    code_bits = np.unpackbits(each, axis=2, count=bits, bitorder="little")
    row_bits = code_bits.reshape(len(codes), codes.shape[1] * bits)
    return np.packbits(row_bits, axis=1, bitorder="little")


def unpack(packed: np.ndarray, num_steps: int, codebook_size: int) -> np.ndarray:
    """The codes that `pack` was given.

    Args:
      packed: [N, ceil(M * log2(K) / 8)] uint8; a map of a file will do.
      num_steps: M.
      codebook_size: K, a power of two from 2 to 65536.

    Returns:
      [N, M] uint8 for K <= 256, else uint16. May share the memory of `packed`.

    Raises:
      InputError: K is not such a power of two, or `packed` has another shape or dtype, or bits
        after the last code.
    """
    num_steps = integer(num_steps, "num_steps")
    bits, width = _code_bits(codebook_size), code_bytes(num_steps, codebook_size)
    packed = np.asarray(checks.array(packed, "packed codes"))
    if packed.ndim != 2 or packed.shape[1] != width or packed.dtype != np.uint8:
        raise InputError(
            f"packed codes have shape {packed.shape} and dtype {packed.dtype}, but {num_steps} "
            f"steps with {codebook_size} codewords take uint8 [N, {width}]; they belong to "
            "another model"
        )
    packed = np.ascontiguousarray(packed)
    if bits not in (8, 16):
        row_bits = np.unpackbits(packed, axis=1, bitorder="little")
        used = num_steps * bits
        if row_bits[:, used:].any():
            raise InputError(
                "packed codes have bits set behind their last code; they are damaged or belong to "
                "another model"
            )
        code_bits = row_bits[:, :used].reshape(len(packed), num_steps, bits)
        packed = np.packbits(code_bits, axis=2, bitorder="little")
    codes = packed.view(_stored_dtype(codebook_size)).reshape(len(packed), num_steps)
    return codes.astype(code_dtype(codebook_size), copy=False)


def to_rows(codes: np.ndarray, config: QincoConfig) -> np.ndarray:
    """A model's codes as a file keeps them: packed where K is a power of two, else as they are.

    Packed rows begin with the coarse index, if there is one, in whole bytes, the least significant
    first.

    Raises:
      InputError: a code is out of its range.
    """
    coarse_sizes = () if config.num_centroids is None else (config.num_centroids,)
    columns = config.num_parts * config.num_steps
    check_range((*coarse_sizes, *columns * (config.codebook_size,)), codes)
    if not _is_power(config.codebook_size):
        return codes.astype(row_shape(config)[1])
    if config.num_centroids is None:
        return pack(codes, config.codebook_size)
    coarse = np.ascontiguousarray(codes[:, :1], "<u4").view(np.uint8)[:, : config.coarse_bits // 8]
    return np.concatenate([coarse, pack(codes[:, 1:], config.codebook_size)], axis=1)


def row_shape(config: QincoConfig) -> tuple[int, np.dtype]:
    """Width and dtype of the rows that `to_rows` makes."""
    columns, coarse = config.num_parts * config.num_steps, config.num_centroids is not None
    if _is_power(config.codebook_size):
        width = config.coarse_bits // 8 + code_bytes(columns, config.codebook_size)
        return width, np.dtype(np.uint8)
    return columns + coarse, np.dtype(np.uint32 if coarse else code_dtype(config.codebook_size))


def from_rows(rows: np.ndarray, config: QincoConfig) -> np.ndarray:
    """The codes [N, m] of rows that `to_rows` made for a model, or of its prefix.

    Raises:
      InputError: the rows are not codes of such a model.
    """
    columns, coarse = config.num_parts * config.num_steps, config.num_centroids is not None
    if not _is_power(config.codebook_size):
        return np.asarray(checked(rows, columns + coarse))
    rows, first = np.asarray(rows), config.coarse_bits // 8
    if rows.ndim != 2:
        raise InputError(f"packed codes have shape {rows.shape}; expected [N, bytes]")
    width = rows.shape[1] - first
    num_steps = num_packed_steps(width, columns, config.codebook_size, config.num_parts)
    codes = unpack(rows[:, first:], num_steps, config.codebook_size)
    if not coarse:
        return codes
    index = np.zeros((len(rows), 4), np.uint8)
    index[:, :first] = rows[:, :first]
    return np.concatenate([index.view("<u4"), codes.astype(np.uint32)], axis=1)


def num_packed_steps(width: int, num_steps: int, codebook_size: int, num_parts: int = 1) -> int:
    """How many of a model's M steps packed rows of `width` bytes hold: all, or a prefix.

    Of P parts, `num_steps` is P M, and a prefix has as many steps of each.

    Raises:
      InputError: no number of steps takes that many bytes, or several do.
    """
    if width == code_bytes(num_steps, codebook_size):
        return num_steps
    fewer = range(num_parts, num_steps, num_parts)
    steps = [m for m in fewer if code_bytes(m, codebook_size) == width]
    if len(steps) != 1:
        raise InputError(
            f"codes of {width} bytes a vector are not the model's, whose {num_steps} steps of "
            f"{codebook_size} codewords take {code_bytes(num_steps, codebook_size)}"
        )
    return steps[0]


def _stored_dtype(codebook_size: int) -> np.dtype:
    return np.dtype(code_dtype(codebook_size)).newbyteorder("<")


def _is_power(codebook_size: int) -> bool:
    return codebook_size & (codebook_size - 1) == 0


def _code_bits(codebook_size: int) -> int:
    codebook_size = integer(codebook_size, "codebook_size", 2, MAX_CODEBOOK)
    if not _is_power(codebook_size):
        raise InputError(
            f"codes for {codebook_size} codewords cannot be packed; that takes a power of two from "
            "2 to 65536, so store the codes themselves"
        )
    return codebook_size.bit_length() - 1


def checked(values: Any, num_columns: int) -> Array:
    """Returns `values` as an array, checked to be codes [N, m] or [m], 1 <= m <= `num_columns`.

    Raises:
      InputError: not integers, another rank, no columns or more than the model's codes have.
    """
    if isinstance(values, list | tuple) and not len(values):
        raise InputError("codes are an empty list; give integers [N, m], where N may be 0")
    values = checks.array(values, "codes")
    if not jnp.issubdtype(values.dtype, jnp.integer):
        raise InputError(f"codes have dtype {values.dtype}; they must be integers")
    if values.ndim not in (1, 2):
        raise InputError(f"codes have shape {values.shape}; expected [N, m] or one code [m]")
    if not 1 <= values.shape[-1] <= num_columns:
        raise InputError(
            f"codes have {values.shape[-1]} columns; the model's have {num_columns}, so 1 to "
            f"{num_columns} can be decoded"
        )
    return values


def check_range(
    codebook_size: int | tuple[int, ...], part: np.ndarray, offset: int = 0
) -> np.ndarray:
    """Returns codes [N, m] as int32, checked to be in 0..K-1; row `offset` is the first.

    Args:
      codebook_size: K, or that of each column.
      part: the codes.
      offset: their first row's number, for the message.

    Raises:
      InputError: names the first bad row and its code.
    """
    sizes = np.broadcast_to(np.atleast_1d(codebook_size)[: part.shape[1]], part.shape)
    bad = (part < 0) | (part >= sizes)
    if bad.any():
        row, column = np.argwhere(bad)[0]
        raise InputError(
            f"code {part[row, column]} in row {offset + row}, column {column} is outside "
            f"0..{sizes[row, column] - 1}; these codes belong to another model"
        )
    return part.astype(np.int32)
