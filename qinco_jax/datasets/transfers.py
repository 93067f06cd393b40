"""Resumable transfers of remote files into partial files.

`.NAME.partial` holds the first of the wanted bytes, `.NAME.partial.json` says where they come from.
"""

import contextlib
import dataclasses
import errno
import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from qinco_jax.datasets import transports
from qinco_jax.datasets.transports import Refused, StartOver, Stream, Transient
from qinco_jax.errors import InputError
from qinco_jax.files import replacing

Advance = Callable[[int, int | None], Any]
"""Called with the bytes done and their total, where known."""

FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


class Cut(NamedTuple):
    """Rows to take from a remote file of rows of equal size after a header shorter than a row.

    Attributes:
      first: rows to take at the start, with the header.
      last: rows to take at the end; in a short file no row is taken twice.
      row: bytes of a row.
      rows: in the remote file, where known.
    """

    first: int
    last: int
    row: int
    rows: int | None = None

    def pieces(self, total: int) -> tuple[tuple[int, int], tuple[int, int]]:
        """Start and end of the two pieces to take from a file of `total` bytes."""
        head = min(total % self.row + self.first * self.row, total)
        return (0, head), (max(head, total - self.last * self.row), total)


class Origin(NamedTuple):
    """The origin of the bytes of a partial file, as its note records it.

    Attributes:
      address: of the remote file.
      version: of the remote file, see `transports.Stream`.
      total: bytes of the whole remote file, where known.
      cut: the fields of its `Cut`, or `None` for the whole file.
    """

    address: str
    version: str | None
    total: int | None
    cut: list[int | None] | None


@dataclasses.dataclass
class Transfer:
    """A transfer from one address into one partial file.

    Attributes:
      address: http, https or ftp.
      partial: the file to write.
      cut: the rows to take, or `None` for all.
      total: bytes that the remote file must have, where known.
      joins: whether to continue a download from another address, as a checksum will verify it.
      extra_space: further bytes that the disk needs.
      digest: of the whole of `partial`, if this transfer began it.
      arrived: bytes that this transfer received.
      discarded: how often it had to start over.
    """

    address: str
    partial: Path
    cut: Cut | None = None
    total: int | None = None
    joins: bool = False
    extra_space: int = 0
    digest: "hashlib._Hash | None" = None
    arrived: int = 0
    discarded: int = 0

    def run(self, advance: Advance) -> None:
        """Completes `partial`, with retries.

        Raises:
          Transient: no byte came in several tries; a later call can resume.
          Refused: the address does not provide the file.
          InputError: `partial` cannot be written, or the disk has too little space.
        """
        while not transports.retried(lambda: self._attempt(advance), lambda: self.arrived):
            pass  # the first of two pieces is complete

    def find(self) -> int | None:
        """Asks for the bytes that are left to download; `None` if the server does not report them.

        Raises:
          Transient, Refused: as in `run`.
        """
        total = transports.retried(self._ask_total, lambda: 0)
        self._check_total(total)
        wanted = self._wanted(self.total if total is None else total)
        return None if wanted is None else wanted - self._kept()[1]

    def _ask_total(self) -> int | None:
        if self.cut is None:
            return transports.size(self.address)
        with transports.opened(self.address, 0, 1, None) as stream:  # fails without ranges
            return stream.total

    def _attempt(self, advance: Advance) -> bool:
        """Downloads the file, or the next of its two pieces; returns whether all is complete."""
        origin, kept = self._kept()
        if kept and kept == self._wanted(origin.total):
            return True
        begin, end = self._next(kept, origin.total)
        try:
            with transports.opened(self.address, begin, end, origin.version) as stream:
                have, total = self._start(stream, origin, begin, kept)
                return self._receive(stream.blocks, have, total, advance)
        except StartOver as error:
            if not kept:
                raise Refused(str(error)) from error
            self._discard()
            raise

    def _kept(self) -> tuple[Origin, int]:
        """What is known of the remote file, and how many bytes of `partial` can be kept."""
        cut = list(self.cut) if self.cut else None
        nothing = Origin(self.address, None, None, cut), 0
        origin, have = read_origin(self.partial), size(self.partial)
        if origin is None or origin.cut != cut or have == 0:
            return nothing
        if origin.address != self.address:
            if not self.joins:
                return nothing
            origin = origin._replace(address=self.address, version=None)
        wanted = self._wanted(origin.total)
        return nothing if wanted is not None and have > wanted else (origin, have)

    def _wanted(self, total: int | None) -> int | None:
        """Bytes of the complete `partial` for a remote file of `total` bytes."""
        if self.cut is None or total is None:
            return total
        return sum(end - begin for begin, end in self.cut.pieces(total))

    def _next(self, have: int, total: int | None) -> tuple[int, int | None]:
        """The offset in the remote file after `have` bytes, and the end of that piece."""
        if self.cut is None:
            return have, None
        if total is None:  # the answer has it; the header is shorter than a row
            return have, (self.cut.first + 1) * self.cut.row
        (_, head), (tail, end) = self.cut.pieces(total)
        return (have, head) if have < head else (tail + have - head, end)

    def _check_total(self, total: int | None) -> None:
        if None not in (total, self.total) and total != self.total:
            raise Refused(f"has {total} bytes, not {self.total}")
        if self.cut is None:
            return
        if total is None:
            raise Refused("does not send the length of the file, which ranges need")
        if self.cut.rows not in (None, total // self.cut.row):
            raise Refused(f"has {total // self.cut.row} rows, not {self.cut.rows}")

    def _start(
        self, stream: Stream, origin: Origin, begin: int, have: int
    ) -> tuple[int, int | None]:
        """Prepares `partial` and its note for a stream; returns the kept bytes and the total."""
        self._check_total(stream.total)
        total, version = stream.total, stream.version
        if stream.begin != begin:
            if self.cut is not None:
                raise StartOver("does not send the requested range")
            self._discard()
            have = 0
        elif have:
            if _differ(total, origin.total) or _differ(version, origin.version):
                raise StartOver("has a different version of the file than before")
            # The answer to a range request need not repeat them.
            total, version = total or origin.total, version or origin.version
        wanted = self._wanted(total)
        if wanted is not None:
            check_space(self.partial.parent, wanted - have + self.extra_space, self.address)
        if have == 0:
            self.partial.write_bytes(b"")
            self.digest = hashlib.sha256()
        with replacing(_note(self.partial)) as note:
            note.write_text(json.dumps(origin._replace(version=version, total=total)._asdict()))
        return have, total

    def _receive(
        self, blocks: Iterator[bytes], have: int, total: int | None, advance: Advance
    ) -> bool:
        wanted, (begin, end) = self._wanted(total), self._next(have, total)
        stop = wanted if end is None else have + end - begin
        with explained(self.partial, wanted), self.partial.open("ab") as file:
            for block in blocks:
                taken = block if stop is None else block[: stop - have]
                file.write(taken)
                if self.digest is not None:
                    self.digest.update(taken)
                have += len(taken)
                self.arrived += len(taken)
                advance(have, wanted)
                if have == stop:  # the server may send more
                    break
        if stop is not None and have < stop:
            raise Transient(f"ended after {have} of {wanted} bytes")
        return stop == wanted

    def _discard(self) -> None:
        self.discarded += size(self.partial) > 0
        remove(self.partial)
        if self.discarded > transports.TRIES:
            raise Refused("starts over whenever it is asked to resume")


def read_origin(partial: Path) -> Origin | None:
    """The note of a partial file; `None` if it is missing or unreadable."""
    try:
        return Origin(**json.loads(_note(partial).read_text()))
    except (FileNotFoundError, ValueError, TypeError):
        return None


def remove(partial: Path) -> None:
    """Removes a partial file and its note."""
    partial.unlink(missing_ok=True)
    _note(partial).unlink(missing_ok=True)


def size(path: Path) -> int:
    """Bytes of a file, 0 if it does not exist."""
    return path.stat().st_size if path.exists() else 0


def check_space(folder: Path, needed: int, what: str) -> None:
    """Raises `InputError` if the disk of a directory, which need not exist, is too full."""
    existing = next(path for path in (folder, *folder.parents) if path.exists())
    usage = shutil.disk_usage(existing)
    if usage.total and usage.free < needed:  # some network filesystems report 0 of 0
        raise InputError(
            f"{what} needs {needed:,} bytes more in {folder}, which has {usage.free:,} free; free "
            "some space there or choose another directory"
        )


@contextlib.contextmanager
def explained(path: Path, wanted: int | None) -> Iterator[None]:
    """Raises system errors of writing `path`, of `wanted` bytes, as `InputError`."""
    try:
        yield
    except OSError as error:
        if error.errno not in FULL:
            raise InputError(
                f"{path} cannot be written ({error.strerror}); fix that or choose another directory"
            ) from error
        needed = "more bytes" if wanted is None else f"{wanted - size(path):,} bytes more"
        free = shutil.disk_usage(path.parent).free
        raise InputError(
            f"{path} needs {needed} than fit ({os.strerror(error.errno)}; {free:,} are free); free "
            "some space and call again, which resumes the download"
        ) from error


def _note(partial: Path) -> Path:
    return partial.with_name(f"{partial.name}.json")


def _differ(now: object, before: object) -> bool:
    """Whether two answers differ; `None` is unknown."""
    return None not in (now, before) and now != before
