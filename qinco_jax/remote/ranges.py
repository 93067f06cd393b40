"""Parts of remote files, read by several requests at a time and ahead of who reads in order."""

import functools
import io
import os
import threading
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

from qinco_jax.remote import servers
from qinco_jax.remote.failures import (
    Changed,
    RemoteError,
    Transient,
    explained,
    retried,
)

PART_BYTES = 2**21  # of a request; if its connection breaks, it is made again
THREADS = 16  # requests at a time
AHEAD_BYTES = 2**24  # that are asked for while a file is read in order
STEP_BYTES = 2**26  # that a read waits for together
KEPT_BYTES = 2**27  # that are asked for but not yet read, of a file
STREAMS = 8  # places in a file where it is read in order, at the same time

Part = tuple[int, int, "Future[bytes]"]
"""The begin and end of bytes that are asked for."""


class Ranges:
    """The bytes of one version of a remote file; threads may share it, and it can be pickled.

    Attributes:
      url: of the file.
      size: its bytes.
      version: as in `servers.Info`.
    """

    def __init__(self, url: str, size: int, version: str | None) -> None:
        self.url, self.size, self.version = url, size, version
        self._lock = threading.Lock()
        self._asked: list[Part] = []  # the oldest first
        self._streams: dict[int, int] = {}  # what was read in order, up to a byte
        self._readers: list[servers.Read] = []  # that no thread uses

    def __reduce__(self) -> tuple[Any, ...]:
        return Ranges, (self.url, self.size, self.version)

    def read(self, begin: int, end: int) -> bytearray:
        """Bytes begin:end; where a file is read in order, those that follow are asked for ahead.

        Raises:
          InputError: the server does not send them, or sends another version of the file.
        """
        return self._read(begin, min(end, self.size), self.size)

    def _read(self, begin: int, end: int, until: int) -> bytearray:
        """Bytes begin:end; none after `until` are asked for."""
        found = bytearray(max(end - begin, 0))
        for first in range(begin, end, STEP_BYTES):
            last = min(first + STEP_BYTES, end)
            for at, stop, part in self._taken(first, last, until):
                low, high = max(at, first), min(stop, last)
                found[low - begin : high - begin] = memoryview(part.result())[low - at : high - at]
        return found

    def prefetch(self, begin: int, end: int) -> None:
        """Asks for bytes begin:end, which are to be read soon."""
        with self._lock:
            self._ask(begin, min(end, self.size))

    def blocks(self, begin: int, end: int) -> Iterator[bytearray]:
        """Bytes begin:end in order."""
        try:
            for first in range(begin, end, PART_BYTES):
                yield self._read(first, min(first + PART_BYTES, end), end)
        finally:
            with self._lock:
                for _, _, part in self._asked:
                    part.cancel()  # where it has not begun
                self._asked = []

    def _taken(self, begin: int, end: int, until: int) -> list[Part]:
        """The parts that hold bytes begin:end; they are read once."""
        with self._lock:
            parts = self._ask(begin, end)
            before = self._streams.pop(begin, 0)
            self._streams = dict([*self._streams.items()][1 - STREAMS :])
            self._streams[end] = before + end - begin
            if before:
                self._ask_ahead(end, min(end + min(AHEAD_BYTES, 2 * self._streams[end]), until))
            self._asked = [part for part in self._asked if not begin < part[1] <= end]
        return parts

    def _ask_ahead(self, begin: int, end: int) -> None:
        """Asks for the rest of bytes begin:end if that is half of them, so in large parts."""
        half, at = (begin + end) // 2, begin
        while part := self._part_at(at):
            at = part[1]
        if at < half:
            self._ask(at, end)

    def _part_at(self, begin: int) -> Part | None:
        return next((part for part in self._asked if part[0] <= begin < part[1]), None)

    @staticmethod
    def _has_failed(part: Part) -> bool:
        return part[2].done() and part[2].exception() is not None

    def _ask(self, begin: int, end: int) -> list[Part]:
        """The parts that hold bytes begin:end, in order; those that are missing are asked for."""
        parts = []
        self._asked = [part for part in self._asked if not self._has_failed(part)]
        while begin < end:
            part = self._part_at(begin)
            if part is None:
                known = [at for at, _, _ in self._asked if begin < at]
                stop = min(begin + PART_BYTES, end, *known)
                part = begin, stop, _threads(os.getpid()).submit(self._fetch, begin, stop)
                self._asked.append(part)
            parts.append(part)
            begin = part[1]
        while sum(stop - at for at, stop, _ in self._asked) > KEPT_BYTES:
            del self._asked[0]
        return parts

    def _fetch(self, begin: int, end: int) -> bytes:
        return retried(lambda: self._fetch_once(begin, end))

    def _fetch_once(self, begin: int, end: int) -> bytes:
        with explained(self.url):
            try:
                reader = self._readers.pop()
            except IndexError:
                reader = servers.reader(self.url)
            found, body = reader(begin, end)
        self._readers.append(reader)
        if not found.has_ranges:
            raise RemoteError(self.url, "no longer gives parts of a file", "copy the file first")
        other = None not in (self.version, found.version) and found.version != self.version
        if other or found.size not in (None, self.size):
            raise Changed(self.url)
        if len(body) != end - begin:
            raise Transient(
                self.url, f"sends {len(body)} bytes for bytes {begin} to {end}", "try again later"
            )
        return body


@functools.cache
def _threads(process: int) -> ThreadPoolExecutor:
    """The threads of a process; a fork of it has none of them."""
    return ThreadPoolExecutor(THREADS, "remote")


class RangesFile(io.RawIOBase):
    """A file that is read by ranges, for libraries that want one."""

    def __init__(self, ranges: Ranges) -> None:
        self._ranges, self._at = ranges, 0

    def readable(self) -> bool:
        """Yes."""
        return True

    def seekable(self) -> bool:
        """Yes."""
        return True

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        """Moves to an offset."""
        self._at = offset + {os.SEEK_CUR: self._at, os.SEEK_END: self._ranges.size}.get(whence, 0)
        return self._at

    def readinto(self, buffer: Any) -> int:
        """Fills a buffer, unless the file ends."""
        block = self._ranges.read(self._at, self._at + len(buffer))
        buffer[: len(block)] = block
        self._at += len(block)
        return len(block)
