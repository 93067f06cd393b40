"""A remote file on its way into a partial one, which any later call can go on with.

`.NAME.partial` holds the first bytes of what is wanted of the remote file, and nothing else;
`.NAME.partial.json` says where they come from.
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
from qinco_jax.datasets.transports import Passing, Refused, StartOver, Stream
from qinco_jax.errors import InputError
from qinco_jax.files import replacing

Advance = Callable[[int, int | None], Any]
"""Told the bytes that are done, of how many, where that is known."""

FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


class Cut(NamedTuple):
    """The rows to take of a remote file of equal rows, behind a header that is shorter than a row.

    Attributes:
      first: from the head on, with the header.
      last: up to the end; of a file that has not so many, none is taken twice.
      row: bytes of each.
      rows: of the remote file, where known.
    """

    first: int
    last: int
    row: int
    rows: int | None = None

    def pieces(self, total: int) -> tuple[tuple[int, int], tuple[int, int]]:
        """Begin and end of the two pieces to take of a file of `total` bytes."""
        head = min(total % self.row + self.first * self.row, total)
        return (0, head), (max(head, total - self.last * self.row), total)


class Origin(NamedTuple):
    """Where the bytes of a partial file come from, as its note says.

    Attributes:
      address: of the remote file.
      version: of it, see `transports.Stream`.
      total: bytes of the whole of it, where known.
      cut: the fields of what is taken of it, or `None` for all.
    """

    address: str
    version: str | None
    total: int | None
    cut: list[int | None] | None


@dataclasses.dataclass
class Transfer:
    """The way from one address into one partial file.

    Attributes:
      address: http, https or ftp.
      partial: the file to write.
      cut: what alone is taken, or `None` for all.
      total: bytes that the remote file must have, where known.
      joins: whether to go on with bytes from another address, since a sum will tell.
      room: bytes that the disk needs besides.
      digest: of all of `partial`, if its first byte came with this transfer.
      arrived: bytes that this transfer brought.
      discarded: how often it had to begin anew.
    """

    address: str
    partial: Path
    cut: Cut | None = None
    total: int | None = None
    joins: bool = False
    room: int = 0
    digest: "hashlib._Hash | None" = None
    arrived: int = 0
    discarded: int = 0

    def run(self, advance: Advance) -> None:
        """Completes `partial`, through whatever passes.

        Raises:
          Passing: no byte came in several tries; a later call can go on.
          Refused: the address does not give the file.
          InputError: there is no room, or no right to write.
        """
        while not transports.patiently(lambda: self._attempt(advance), lambda: self.arrived):
            pass  # the head is there, the end is to come

    def find(self) -> int | None:
        """Asks for the bytes that are still to come, `None` if the server does not tell.

        Raises:
          Passing, Refused: as `run` does.
        """
        total = transports.patiently(self._ask_total, lambda: 0)
        self._check_total(total)
        wanted = self._wanted(self.total if total is None else total)
        return None if wanted is None else wanted - self._kept()[1]

    def _ask_total(self) -> int | None:
        if self.cut is None:
            return transports.size(self.address)
        with transports.opened(self.address, 0, 1, None) as stream:  # refused where none can be cut
            return stream.total

    def _attempt(self, advance: Advance) -> bool:
        """Takes all, or the one of two pieces that is to come; says whether all is there."""
        origin, kept = self._kept()
        if kept and kept == self._wanted(origin.total):
            return True
        begin, end = self._next(kept, origin.total)
        try:
            with transports.opened(self.address, begin, end, origin.version) as stream:
                have, total = self._fit(stream, origin, begin, kept)
                return self._receive(stream.blocks, have, total, advance)
        except StartOver as trouble:
            if not kept:
                raise Refused(str(trouble)) from trouble
            self._discard()
            raise

    def _kept(self) -> tuple[Origin, int]:
        """What is known of the remote file, and how many bytes of `partial` are of use."""
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
        """Bytes of the complete `partial`, for a remote file of `total` bytes."""
        if self.cut is None or total is None:
            return total
        return sum(end - begin for begin, end in self.cut.pieces(total))

    def _next(self, have: int, total: int | None) -> tuple[int, int | None]:
        """Where the byte after `have` lies in the remote file, and where its piece ends."""
        if self.cut is None:
            return have, None
        if total is None:  # the server will tell it; the header is shorter than a row
            return have, (self.cut.first + 1) * self.cut.row
        (_, head), (tail, end) = self.cut.pieces(total)
        return (have, head) if have < head else (tail + have - head, end)

    def _check_total(self, total: int | None) -> None:
        if None not in (total, self.total) and total != self.total:
            raise Refused(f"has {total} bytes, not {self.total}")
        if self.cut is None:
            return
        if total is None:
            raise Refused("does not tell how long the file is, of which only parts are wanted")
        if self.cut.rows not in (None, total // self.cut.row):
            raise Refused(f"has {total // self.cut.row} rows, not {self.cut.rows}")

    def _fit(self, stream: Stream, origin: Origin, begin: int, have: int) -> tuple[int, int | None]:
        """Makes `partial` and its note fit a stream; returns the bytes that stay, and the total."""
        self._check_total(stream.total)
        total, version = stream.total, stream.version
        if stream.begin != begin:
            if self.cut is not None:
                raise StartOver("does not send the part of the file that it was asked for")
            self._discard()
            have = 0
        elif have:
            if _differ(total, origin.total) or _differ(version, origin.version):
                raise StartOver("has another version of the file than before")
            # The answer to a request for the rest need not repeat them.
            total, version = total or origin.total, version or origin.version
        wanted = self._wanted(total)
        if wanted is not None:
            check_room(self.partial.parent, wanted - have + self.room, self.address)
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
                part = block if stop is None else block[: stop - have]
                file.write(part)
                if self.digest is not None:
                    self.digest.update(part)
                have += len(part)
                self.arrived += len(part)
                advance(have, wanted)
                if have == stop:  # where a piece ends, more could come
                    break
        if stop is not None and have < stop:
            raise Passing(f"ended after {have} of {wanted} bytes")
        return stop == wanted

    def _discard(self) -> None:
        self.discarded += size(self.partial) > 0
        remove(self.partial)
        if self.discarded > transports.TRIES:
            raise Refused("begins anew whenever it is asked to go on")


def read_origin(partial: Path) -> Origin | None:
    """The note of a partial file; `None` where there is none that can be read."""
    try:
        return Origin(**json.loads(_note(partial).read_text()))
    except (FileNotFoundError, ValueError, TypeError):
        return None


def remove(partial: Path) -> None:
    """Removes a partial file and its note."""
    partial.unlink(missing_ok=True)
    _note(partial).unlink(missing_ok=True)


def size(path: Path) -> int:
    """Bytes of a file, 0 if there is none."""
    return path.stat().st_size if path.exists() else 0


def check_room(folder: Path, needed: int, what: str) -> None:
    """Raises `InputError` if the disk of a folder, there or to be made, has too little space."""
    there = next(place for place in (folder, *folder.parents) if place.exists())
    usage = shutil.disk_usage(there)
    if usage.total and usage.free < needed:  # some network filesystems say 0 of 0
        raise InputError(
            f"{what} needs {needed:,} bytes more in {folder}, which has {usage.free:,} free; make "
            "room there or choose another folder"
        )


@contextlib.contextmanager
def explained(path: Path, wanted: int | None) -> Iterator[None]:
    """Turns what the system says about writing `path`, of `wanted` bytes, into a sentence."""
    try:
        yield
    except OSError as error:
        if error.errno not in FULL:
            raise InputError(
                f"{path} cannot be written ({error.strerror}); mend that or choose another folder"
            ) from error
        needed = "more bytes" if wanted is None else f"{wanted - size(path):,} bytes more"
        free = shutil.disk_usage(path.parent).free
        raise InputError(
            f"{path} needs {needed} than fit ({os.strerror(error.errno)}; {free:,} are free); make "
            "room and call again, which goes on where this stopped"
        ) from error


def _note(partial: Path) -> Path:
    return partial.with_name(f"{partial.name}.json")


def _differ(now: object, before: object) -> bool:
    """Whether two servers' answers differ, where both say something."""
    return None not in (now, before) and now != before
