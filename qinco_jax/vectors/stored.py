"""Rows that are read when they are asked for: files, records or row groups as one array."""

import mmap
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Protocol

import jax
import numpy as np
import numpy.typing as npt

from qinco_jax.errors import InputError


class Part(Protocol):
    """[N, D] rows in one place; a NumPy array or a memory map is one too."""

    @property
    def shape(self) -> tuple[int, ...]:
        """(N, D)."""

    @property
    def dtype(self) -> np.dtype:
        """Of the numbers."""

    def __getitem__(self, rows: slice, /) -> Any:
        """Rows begin:end, [R, D], as a NumPy array."""


class Stored:
    """[N, D] rows in parts, one after another; it is indexed like a NumPy array and read-only.

    A slice of neighbouring rows is another `Stored` and reads nothing; any other index, and
    `np.asarray`, reads.

    Attributes:
      dtype: of the numbers.
      ndim: 2.
      block_rows: rows that the storage reads at once; to read fewer is no cheaper.
    """

    ndim = 2

    def __init__(self, parts: Sequence[Part], block_rows: int = 1) -> None:
        """Joins parts.

        Raises:
          InputError: no parts, or parts of different D or dtype.
        """
        kinds = {(part.shape[1], part.dtype) for part in parts}
        if len(kinds) != 1:
            found = " and ".join(sorted(f"{dtype} of {dim} dimensions" for dim, dtype in kinds))
            raise InputError(
                f"the parts of a set hold {found or 'nothing'}; expected one and the same, so "
                "convert or remove some"
            )
        self._parts, self.block_rows = tuple(parts), block_rows
        self._ends = np.cumsum([part.shape[0] for part in parts])
        self._begin, self._end = 0, int(self._ends[-1])
        ((self._dim, self.dtype),) = kinds

    @property
    def shape(self) -> tuple[int, int]:
        """(N, D)."""
        return len(self), self._dim

    def __len__(self) -> int:
        return self._end - self._begin

    def __getitem__(self, rows: Any) -> Any:
        if isinstance(rows, slice):
            begin, end, step = rows.indices(len(self))
            if step == 1:
                return self._window(begin, max(begin, end))
            rows = np.arange(begin, end, step)
        if isinstance(rows, int | np.integer):
            return self[np.array([rows])][0]
        rows = np.asarray(rows)
        if rows.ndim != 1 or rows.dtype.kind not in "biu":
            raise IndexError("rows are chosen by a number, a slice or a vector of integers")
        rows = np.flatnonzero(rows) if rows.dtype.kind == "b" else rows.astype(np.int64)
        rows = np.where(rows < 0, rows + len(self), rows)
        if rows.size and not 0 <= rows.min() <= rows.max() < len(self):
            raise IndexError(f"a row is out of range for {len(self)} rows")
        order = np.argsort(rows, kind="stable")
        out = np.empty((len(rows), self._dim), self.dtype)
        out[order] = self._chosen(rows[order] + self._begin)
        return out

    def __array__(self, dtype: npt.DTypeLike | None = None, copy: bool | None = None) -> np.ndarray:
        whole = np.empty(self.shape, self.dtype)
        for part, begin, end, place in self._overlaps():
            whole[place : place + end - begin] = part[begin:end]
        return whole.astype(dtype or self.dtype, copy=False)

    def _window(self, begin: int, end: int) -> "Stored":
        view = object.__new__(Stored)
        view.__dict__.update(self.__dict__)
        view._begin, view._end = self._begin + begin, self._begin + end
        return view

    def _overlaps(self) -> Iterator[tuple[Part, int, int, int]]:
        """Parts that the window touches: (part, its rows begin:end, their place in the window)."""
        first = int(np.searchsorted(self._ends, self._begin, side="right"))
        for part, stop in zip(self._parts[first:], self._ends[first:].tolist(), strict=True):
            start = stop - part.shape[0]
            if start >= self._end:
                return
            begin, end = max(self._begin, start), min(self._end, stop)
            if begin < end:
                yield part, begin - start, end - start, begin - self._begin

    def _chosen(self, rows: np.ndarray) -> np.ndarray:
        """Sorted rows, counted from the first part's first, read block by block."""
        found = [np.empty((0, self._dim), self.dtype)]
        owner = np.searchsorted(self._ends, rows, side="right")
        for number in np.unique(owner):
            part = self._parts[number]
            inside = rows[owner == number] - (self._ends[number] - part.shape[0])
            if isinstance(part, np.ndarray | Derived):
                found.append(part[inside])
                continue
            cuts = np.flatnonzero(np.diff(inside // self.block_rows)) + 1
            for piece in np.split(inside, cuts):
                found.append(part[int(piece[0]) : int(piece[-1]) + 1][piece - piece[0]])
        return np.concatenate(found)


class Derived:
    """Rows that are computed from others when they are asked for; a part of a `Stored`."""

    def __init__(self, x: "Rows", function: Callable[[np.ndarray], np.ndarray]) -> None:
        """Takes rows [N, D] and what maps some of them [R, D] to as many [R, D']."""
        self._x, self._function = x, function
        none = function(np.asarray(x[:0]))
        self.shape, self.dtype = (len(x), none.shape[1]), none.dtype

    def __getitem__(self, rows: slice | np.ndarray) -> np.ndarray:
        return self._function(np.asarray(self._x[rows]))


def derived(x: "Rows", function: Callable[[np.ndarray], np.ndarray]) -> Stored:
    """The rows that `function` makes of those of `x`, read when asked for."""
    return Stored([Derived(x, function)], getattr(x, "block_rows", 1))


Rows = np.ndarray | Stored
"""[N, D] in memory, mapped, or read when asked for."""
Vectors = jax.Array | Rows


def lazily(x: Vectors) -> Rows:
    """The same rows as NumPy's; what is read when asked for stays so."""
    return x if isinstance(x, Stored) else np.asarray(x)


def expect(x: Part, begin: int, end: int) -> None:
    """Has the system read rows begin:end of memory maps soon, and these alone.

    Else it would read them when they are touched, and often megabytes around each.
    """
    if isinstance(x, Stored):
        for part, first, last, _ in x[begin:end]._overlaps():
            expect(part, first, last)
        return
    mapping, first, last = mapped(x, begin, end)
    if mapping is not None and hasattr(mapping, "madvise"):
        first -= first % mmap.PAGESIZE
        mapping.madvise(mmap.MADV_WILLNEED, first, last - first)


def mapped(x: Part, begin: int, end: int) -> tuple[mmap.mmap | None, int, int]:
    """The memory map that `x` is a view of, if it is, and the bytes of it that its rows are in."""
    base: Any = x
    while isinstance(base, np.ndarray):
        base = base.base
    if not isinstance(base, mmap.mmap) or not isinstance(x, np.ndarray) or begin >= end:
        return None, 0, 0
    low, high = np.lib.array_utils.byte_bounds(x[begin:end])
    start, _ = np.lib.array_utils.byte_bounds(np.frombuffer(base, np.uint8))
    return base, low - start, high - start


def spans(num_rows: int, size: int) -> Iterator[slice]:
    """Slices of at most `size` rows that cover `num_rows`."""
    for begin in range(0, num_rows, size):
        yield slice(begin, min(begin + size, num_rows))
