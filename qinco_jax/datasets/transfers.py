"""Resumable transfers of remote files into partial files.

`.NAME.partial` holds the first of the wanted bytes, `.NAME.partial.json` says where they come from.
"""

import contextlib
import dataclasses
import errno
import ftplib
import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import unquote

from qinco_jax.errors import InputError
from qinco_jax.files import replacing
from qinco_jax.remote import failures, servers
from qinco_jax.remote.failures import Changed, RemoteError, Transient, Unreachable
from qinco_jax.remote.ranges import Ranges
from qinco_jax.remote.servers import Info

Advance = Callable[[int, int | None], Any]
"""Called with the bytes done and their total, where known."""

TRIES = 6  # in a row that bring nothing new
BLOCK_BYTES = 2**18
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
      version: of the remote file, as in `servers.Info`.
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
      address: ftp, or a URL of fsspec.
      partial: the file to write.
      cut: the rows to take, or `None` for all.
      total: bytes that the remote file must have, where known.
      joins: whether to continue a download from another address, as a checksum will verify it.
      extra_space: further bytes that the disk needs.
      digest: of the whole of `partial`, if this transfer began it.
    """

    address: str
    partial: Path
    cut: Cut | None = None
    total: int | None = None
    joins: bool = False
    extra_space: int = 0
    digest: "hashlib._Hash | None" = None

    def run(self, advance: Advance) -> None:
        """Completes `partial`, with retries; each goes on where the last one stopped.

        Raises:
          Transient: several tries brought nothing new; a later call can resume.
          RemoteError: the address does not provide the file.
          InputError: `partial` cannot be written, or the disk has too little space.
        """
        tries, most = 0, size(self.partial)
        while not self._is_complete():
            try:
                return self._attempt(advance)
            except (Transient, Changed) as error:
                have = size(self.partial)
                tries, most = (0, have) if have > most else (tries + 1, most)
                if tries == TRIES or (isinstance(error, Unreachable) and not have):
                    raise
                if isinstance(error, Transient):
                    failures.wait(error, max(tries, 1))

    def find(self) -> int | None:
        """Asks for the bytes that are left to download; `None` if the server does not report them.

        Raises:
          RemoteError: the address does not provide the file.
        """
        found = failures.retried(self._ask)
        wanted = self._wanted(found.size or self.total)
        return None if wanted is None else wanted - self._kept(found.version, found.size)

    def _ask(self) -> Info:
        """What the server says of the file, which is refused if it is not the wanted one."""
        found = _ftp_info(self.address) if _is_ftp(self.address) else servers.info(self.address)
        if found is None:
            raise failures.missing(self.address)
        problem = None
        if None not in (found.size, self.total) and found.size != self.total:
            problem = f"has {found.size} bytes, not {self.total}"
        elif self.cut is None:
            return found
        elif found.size is None:
            problem = "does not send the length of the file, which ranges need"
        elif not found.has_ranges:
            problem = "does not support ranges, and the whole file is not wanted"
        elif self.cut.rows not in (None, found.size // self.cut.row):
            problem = f"has {found.size // self.cut.row} rows, not {self.cut.rows}"
        if problem is not None:
            raise RemoteError(self.address, problem, "take it from another place")
        return found

    def _attempt(self, advance: Advance) -> None:
        found = self._ask()
        have = self._kept(found.version, found.size) if found.has_ranges else 0
        wanted = self._wanted(found.size)
        check_space(self.partial.parent, (wanted or 0) - have + self.extra_space, self.address)
        with writing(self.partial, wanted):
            if have == 0:
                self.partial.write_bytes(b"")
                self.digest = hashlib.sha256()
            origin = Origin(self.address, found.version, found.size, self._fields)
            with replacing(_note(self.partial)) as note:
                note.write_text(json.dumps(origin._asdict()))
            with self.partial.open("ab") as file:
                for block in self._rest(found, have):
                    file.write(block)
                    if self.digest is not None:
                        self.digest.update(block)
                    have += len(block)
                    advance(have, wanted)
        if wanted is not None and have < wanted:
            raise Transient(self.address, f"ended after {have} of {wanted} bytes", "call again")

    def _rest(self, found: Info, have: int) -> Iterator[bytes | bytearray]:
        """What is wanted after the first `have` bytes."""
        if found.size is None:
            yield from _blocks(self.address, found, have, None)
            return
        for begin, end in ((0, found.size),) if self.cut is None else self.cut.pieces(found.size):
            at = min(begin + have, end)
            have -= at - begin
            if at < end:
                yield from _blocks(self.address, found, at, end)

    def _wanted(self, total: int | None) -> int | None:
        """Bytes of the complete `partial` for a remote file of `total` bytes."""
        if self.cut is None or total is None:
            return total
        return sum(end - begin for begin, end in self.cut.pieces(total))

    def _is_complete(self) -> bool:
        """Whether an earlier attempt got all."""
        note = read_origin(self.partial)
        wanted = None if note is None else self._wanted(note.total)
        if note is None or wanted is None or not self.partial.exists():
            return False
        return self._kept(note.version, note.total) == wanted

    def _kept(self, version: str | None, total: int | None) -> int:
        """How many bytes of `partial` belong to that version of the remote file."""
        note, have = read_origin(self.partial), size(self.partial)
        if note is None or note.cut != self._fields or _differ(note.total, total):
            return 0
        moved, wanted = note.address != self.address, self._wanted(total)
        other = not self.joins if moved else _differ(note.version, version)
        return 0 if other or (wanted is not None and have > wanted) else have

    @property
    def _fields(self) -> list[int | None] | None:
        return None if self.cut is None else list(self.cut)


def _blocks(address: str, found: Info, begin: int, end: int | None) -> Iterator[bytes | bytearray]:
    """The bytes of a file from `begin` on as they arrive, none after `end`."""
    if _is_ftp(address):
        for block in _ftp_blocks(address, begin):
            yield block if end is None else block[: end - begin]
            begin += len(block)
            if end is not None and begin >= end:
                return
    elif found.has_ranges and found.size is not None and end is not None:
        yield from Ranges(address, found.size, found.version).blocks(begin, end)
    else:
        yield from _stream(address)


def _stream(address: str) -> Iterator[bytes]:
    """All of a file from a web server that gives no parts of it."""
    fs, path = servers.filesystem(address)
    whole = {"block_size": 0, "size": 1}  # for fsspec, not to ask for the size again
    with failures.explained(address), fs.open(path, "rb", **whole) as file:
        headers = file.r.headers
        if not {"Content-Length", "Transfer-Encoding"} & headers.keys():
            problem = "does not send the length of the file, so it may be incomplete"
            raise RemoteError(address, problem, "take it from another place")
        while block := file.read(BLOCK_BYTES):
            yield block


def _is_ftp(address: str) -> bool:
    return servers.scheme_of(address) == "ftp"


@contextlib.contextmanager
def _ftp(address: str) -> Iterator[tuple[ftplib.FTP, str]]:
    """The connection that fsspec makes, and the path of the file.

    Its own reading ends each block by an abort, which many servers answer in their own way, and
    takes sizes from lists of the folder.
    """
    fs, path = servers.filesystem(address)
    with contextlib.closing(fs.ftp), failures.explained(address):
        fs.ftp.voidcmd("TYPE I")
        yield fs.ftp, unquote(path)


def _ftp_info(address: str) -> Info:
    with _ftp(address) as (connection, path):
        total = version = None
        has_ranges = True
        try:
            total = connection.size(path)
        except ftplib.error_perm as error:
            if str(error).startswith("550"):  # no such file; other codes: no SIZE
                raise
        with contextlib.suppress(ftplib.error_perm):
            version = connection.sendcmd(f"MDTM {path}")
        try:
            connection.sendcmd("REST 1")
        except ftplib.error_perm:
            has_ranges = False
        return Info(total, version, has_ranges=has_ranges)


def _ftp_blocks(address: str, begin: int) -> Iterator[bytes]:
    with _ftp(address) as (connection, path):
        with connection.transfercmd(f"RETR {path}", begin or None) as data:
            data.settimeout(servers.SILENT_SECONDS)
            while block := data.recv(BLOCK_BYTES):
                yield block
        connection.voidresp()


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
def writing(path: Path, wanted: int | None) -> Iterator[None]:
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
