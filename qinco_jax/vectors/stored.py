"""Rows that are read on demand: several files, records or row groups as one array."""

import hashlib
import mmap
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Protocol

import jax
import numpy as np
import numpy.typing as npt

from qinco_jax.errors import InputError


class Segment(Protocol):
    """[N, D] rows in one place, for example a NumPy array or a memory map."""

    @property
    def shape(self) -> tuple[int, ...]:
        """(N, D)."""

    @property
    def dtype(self) -> np.dtype:
        """Of the numbers."""

    def __getitem__(self, rows: slice, /) -> Any:
        """Rows begin:end, [R, D], as a NumPy array."""


class Stored:
    """[N, D] rows in consecutive segments; read-only and indexed like a NumPy array.

    A slice of step 1 gives another `Stored` and reads nothing. Any other index, and `np.asarray`,
    reads the rows.

    Attributes:
      dtype: of the numbers.
      ndim: 2.
      block_rows: rows that the storage reads at once; reading fewer is not cheaper.
    """

    ndim = 2

    def __init__(self, segments: Sequence[Segment], block_rows: int = 1) -> None:
        """Joins segments.

        Raises:
          InputError: there are no segments, or their D or dtype differ.
        """
        kinds = {(segment.shape[1], segment.dtype) for segment in segments}
        if len(kinds) != 1:
            found = " and ".join(sorted(f"{dtype} of {dim} dimensions" for dim, dtype in kinds))
            raise InputError(
                f"the vectors to join are {found or 'missing'}; they must all have the same "
                "dtype and dimensions, so convert or remove some"
            )
        self._segments, self.block_rows = tuple(segments), block_rows
        self._ends = np.cumsum([segment.shape[0] for segment in segments])
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
            raise IndexError("index rows with an integer, a slice or a vector of integers")
        rows = np.flatnonzero(rows) if rows.dtype.kind == "b" else rows.astype(np.int64)
        rows = np.where(rows < 0, rows + len(self), rows)
        if rows.size and not 0 <= rows.min() <= rows.max() < len(self):
            raise IndexError(f"a row index is out of range for {len(self)} rows")
        order = np.argsort(rows, kind="stable")
        out = np.empty((len(rows), self._dim), self.dtype)
        out[order] = self._chosen(rows[order] + self._begin)
        return out

    def __array__(self, dtype: npt.DTypeLike | None = None, copy: bool | None = None) -> np.ndarray:
        whole = np.empty(self.shape, self.dtype)
        for segment, begin, end, place in self._overlaps():
            whole[place : place + end - begin] = segment[begin:end]
        return whole.astype(dtype or self.dtype, copy=False)

    def _window(self, begin: int, end: int) -> "Stored":
        view = object.__new__(Stored)
        view.__dict__.update(self.__dict__)
        view._begin, view._end = self._begin + begin, self._begin + end
        return view

    def _overlaps(self) -> Iterator[tuple[Segment, int, int, int]]:
        """Each segment in the window, its rows begin:end there, and their place in the window."""
        first = int(np.searchsorted(self._ends, self._begin, side="right"))
        stops = self._ends[first:].tolist()
        for segment, stop in zip(self._segments[first:], stops, strict=True):
            start = stop - segment.shape[0]
            if start >= self._end:
                return
            begin, end = max(self._begin, start), min(self._end, stop)
            if begin < end:
                yield segment, begin - start, end - start, begin - self._begin

    def _chosen(self, rows: np.ndarray) -> np.ndarray:
        """Reads rows block by block; `rows` are sorted and count from the first segment's start."""
        found = [np.empty((0, self._dim), self.dtype)]
        owner = np.searchsorted(self._ends, rows, side="right")
        for number in np.unique(owner):
            segment = self._segments[number]
            inside = rows[owner == number] - (self._ends[number] - segment.shape[0])
            if isinstance(segment, np.ndarray | Derived):
                found.append(segment[inside])
                continue
            cuts = np.flatnonzero(np.diff(inside // self.block_rows)) + 1
            pieces = np.split(inside, cuts)
            for piece in pieces:
                prefetch(segment, int(piece[0]), int(piece[-1]) + 1)
            for piece in pieces:
                found.append(segment[int(piece[0]) : int(piece[-1]) + 1][piece - piece[0]])
        return np.concatenate(found)


class Derived:
    """A segment of rows that are computed from other rows on demand."""

    def __init__(self, x: "Rows", function: Callable[[np.ndarray], np.ndarray]) -> None:
        """Takes rows [N, D] and a function that maps any of them, [R, D], to [R, D']."""
        self.source, self._function = x, function
        none = function(np.asarray(x[:0]))
        self.shape, self.dtype = (len(x), none.shape[1]), none.dtype

    def __getitem__(self, rows: slice | np.ndarray) -> np.ndarray:
        return self._function(np.asarray(self.source[rows]))


def derived(x: "Rows", function: Callable[[np.ndarray], np.ndarray]) -> Stored:
    """The rows of `x` mapped by `function` [R, D] -> [R, D'] on demand."""
    return Stored([Derived(x, function)], getattr(x, "block_rows", 1))


Rows = np.ndarray | Stored
"""[N, D] in memory, memory-mapped, or read on demand."""
Vectors = jax.Array | Rows


def lazily(x: Vectors) -> Rows:
    """The rows as a NumPy array; a `Stored` stays as it is, unread."""
    return x if isinstance(x, Stored) else np.asarray(x)


def prefetch(x: Segment, begin: int, end: int) -> None:
    """Asks for rows begin:end of memory maps and remote files, to be read soon, and only for those.

    Otherwise the system reads a map on first access, often with megabytes around each row.
    """
    if isinstance(x, Stored):
        for segment, first, last, _ in x[begin:end]._overlaps():
            prefetch(segment, first, last)
        return
    if isinstance(x, Derived):
        prefetch(x.source, begin, end)
        return
    if ask := getattr(x, "prefetch", None):
        ask(begin, end)
        return
    mapping, first, last = mapped(x, begin, end)
    if mapping is not None and hasattr(mapping, "madvise"):
        first -= first % mmap.PAGESIZE
        mapping.madvise(mmap.MADV_WILLNEED, first, last - first)


def mapped(x: Segment, begin: int, end: int) -> tuple[mmap.mmap | None, int, int]:
    """The memory map behind `x`, or `None`, and the byte range of rows begin:end in it.

    Rows that lie all over the map, as in Fortran order, have no range, so the map is `None` too.
    """
    base: Any = x
    while isinstance(base, np.ndarray):
        base = base.base
    if not isinstance(base, mmap.mmap) or not isinstance(x, np.ndarray) or begin >= end:
        return None, 0, 0
    if abs(x.strides[0]) < abs(x.strides[-1]):
        return None, 0, 0
    low, high = np.lib.array_utils.byte_bounds(x[begin:end])
    start, _ = np.lib.array_utils.byte_bounds(np.frombuffer(base, np.uint8))
    return base, low - start, high - start


def spans(num_rows: int, size: int) -> Iterator[slice]:
    """Slices of at most `size` rows that cover `num_rows`."""
    for begin in range(0, num_rows, size):
        yield slice(begin, min(begin + size, num_rows))


def fingerprint(x: Rows) -> dict[str, Any]:
    """What tells vectors [N, D] from others: shape, dtype and a hash of about 1,000 rows."""
    sample = np.ascontiguousarray(np.asarray(x[:: max(1, len(x) // 1000)]))
    return {
        "shape": list(x.shape),
        "dtype": str(x.dtype),
        "sha256_of_sample": hashlib.sha256(sample.tobytes()).hexdigest(),
    }
