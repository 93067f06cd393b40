"""Downloads that resume, are verified, and get their name when complete.

An incomplete NAME is in `.NAME.partial` beside it (see `transfers`); the checksum of a complete
file is in `NAME.sha256`, in the format of the program `sha256sum`.
"""

import contextlib
import gzip
import hashlib
import os
import re
import zlib
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import NamedTuple
from urllib.parse import urlsplit

from filelock import FileLock, Timeout

from qinco_jax.datasets.transfers import (
    BLOCK_BYTES,
    Advance,
    Cut,
    Transfer,
    check_space,
    read_origin,
    remove,
    size,
    writing,
)
from qinco_jax.errors import InputError
from qinco_jax.files import replacing
from qinco_jax.remote.failures import RemoteError, Transient

MAX_EXPANSION = 100  # times the size of a .gz of vectors; more means damage
WAIT_SECONDS = 0.5  # between checks of a file that another process downloads


class Remote(NamedTuple):
    """A remote file.

    Attributes:
      name: its path below the download directory.
      addresses: https, ftp or other URLs of fsspec, tried in this order. A file is decompressed if
        its address ends in `.gz` and `name` does not.
      size: bytes of the final file, where known.
      sha256: of the final file, where known.
      cut: the rows to take if not all, from a single version of the remote file.
      finish: runs on the complete file before it is checked and renamed, for example to fix a
        header. It must be idempotent: it runs again if it was interrupted.
    """

    name: str
    addresses: tuple[str, ...]
    size: int | None = None
    sha256: str | None = None
    cut: Cut | None = None
    finish: Callable[[Path], None] | None = None


class Missing(NamedTuple):
    """A file to download.

    Attributes:
      remote: the file.
      size: bytes left to download, where known, before decompression.
      address: its source.
    """

    remote: Remote
    size: int | None
    address: str


class _Damaged(InputError):
    """The downloaded bytes are wrong."""


def fetch(remote: Remote, folder: Path, advance: Advance) -> Path:
    """Downloads a file unless it exists; resumes where an earlier call stopped.

    Broken connections are retried, and addresses that fail are skipped. If two processes want the
    same file, the second waits for the first. If an address ends in `.gz`, a `NAME.gz` placed by
    hand is used instead of a download.

    Args:
      remote: the file.
      folder: the download directory; created if missing.
      advance: called with the bytes that arrived, and then with those decompressed and hashed where
        this takes a separate pass.

    Returns:
      The path of the file, `folder / remote.name`.

    Raises:
      InputError: no address provides the file, the disk has too little space, the file cannot be
        written, or its bytes, size or checksum are wrong. Only wrong bytes are removed; otherwise a
        later call resumes.
    """
    target = Path(folder) / remote.name
    if not _exists(remote, target):
        with writing(target, None):
            target.parent.mkdir(parents=True, exist_ok=True)
            with _locked(target, advance):
                if not _exists(remote, target):  # another process may have completed it
                    _obtain(remote, target, advance)
    return target


def plan(remotes: Iterable[Remote], folder: Path) -> list[Missing]:
    """Finds what `fetch` would download, and checks that the disk has space for it.

    Args:
      remotes: the files.
      folder: the download directory; it is not changed.

    Raises:
      InputError: an existing file has the wrong size, no address provides a file, or the disk has
        too little space for all of them.
    """
    missing, space = [], 0
    for remote in remotes:
        target = Path(folder) / remote.name
        if _exists(remote, target):
            continue
        if _is_placed(remote, target):
            space += remote.size or 0
            continue
        found = _find(remote, target)
        missing.append(found)
        space += (found.size or 0) + _transfer(remote, found.address, target).extra_space
    check_space(Path(folder), space, "the download")
    return missing


def verify(remote: Remote, folder: Path) -> str:
    """Reads a file and compares its SHA-256 with the published and the recorded one.

    Returns:
      The checksum in hexadecimal.

    Raises:
      InputError: the file is missing, or its size or checksum is wrong.
    """
    target = Path(folder) / remote.name
    if not _exists(remote, target):
        raise InputError(f"there is no file {target}; fetch it first")
    found = _checksum(target, lambda done, total: None)
    for expected in (remote.sha256, _recorded(target)):
        if expected is not None and expected.lower() != found:
            raise InputError(
                f"{target} has the SHA-256 {found} instead of {expected}; remove it, and "
                f"{_record(target).name} if the published file changed, and fetch it again"
            )
    return found


def _exists(remote: Remote, target: Path) -> bool:
    if target.is_dir():
        raise InputError(f"{target} is a directory where a file is expected; move or remove it")
    if target.exists() and remote.size not in (None, target.stat().st_size):
        raise InputError(
            f"{target} has {target.stat().st_size} bytes instead of {remote.size}; remove it and "
            "fetch it again"
        )
    return target.exists()


@contextlib.contextmanager
def _locked(target: Path, advance: Advance) -> Iterator[None]:
    """Waits until no other process downloads the file, reporting the progress of that process."""
    lock = FileLock(target.with_name(f".{target.name}.lock"))
    while not lock.is_locked:
        try:
            lock.acquire(timeout=WAIT_SECONDS)
        except Timeout:
            if done := max(size(_partial(target)), size(_partial(_packed(target)))):
                advance(done, None)
    try:
        yield
    finally:
        lock.release()


def _obtain(remote: Remote, target: Path, advance: Advance) -> None:
    """Gets the file from the first source that provides it."""
    if _is_placed(remote, target):
        _complete(remote, target, _packed(target), None, advance)
        return
    problems = []
    for address in _ordered(remote, target):
        transfer = _transfer(remote, address, target)
        try:
            transfer.run(advance)
        except RemoteError as error:
            problems.append(f"{address} {error.problem}")
            kept = size(transfer.partial) and not transfer.joins
            if kept and isinstance(error, Transient):
                problems.append(f"to start over from another address, remove {transfer.partial}")
                break
            continue
        digest = transfer.digest.hexdigest() if transfer.digest else None
        _complete(remote, target, transfer.partial, digest, advance)
        return
    raise _unavailable(remote, target, problems)


def _find(remote: Remote, target: Path) -> Missing:
    problems = []
    for address in _ordered(remote, target):
        try:
            return Missing(remote, _transfer(remote, address, target).find(), address)
        except RemoteError as error:
            problems.append(f"{address} {error.problem}")
    raise _unavailable(remote, target, problems)


def _ordered(remote: Remote, target: Path) -> list[str]:
    """The addresses, the one of a partial download first."""

    def is_new(address: str) -> bool:
        origin = read_origin(_transfer(remote, address, target).partial)
        return origin is None or origin.address != address

    return sorted(remote.addresses, key=is_new)


def _transfer(remote: Remote, address: str, target: Path) -> Transfer:
    joins = remote.sha256 is not None
    if _unpacks(remote, address):
        partial, space = _partial(_packed(target)), remote.size or 0
        return Transfer(address, partial, joins=joins, extra_space=space)
    total = remote.size if remote.cut is None and remote.finish is None else None
    return Transfer(address, _partial(target), remote.cut, total, joins)


def _complete(
    remote: Remote, target: Path, source: Path, digest: str | None, advance: Advance
) -> None:
    """Makes the file from a download or a `.gz` placed by hand; removes a damaged download."""
    partial, by_hand = _partial(target), source == _packed(target)
    remedy = f"replace {source.name}" if by_hand else "it was removed, so fetch it again"
    try:
        if source != partial:
            digest = _unpack(source, partial, remote.size, remedy, advance)
        _settle(remote, target, digest, remedy, advance)
    except _Damaged:
        remove(partial)
        if not by_hand:
            remove(source)
        raise
    if not by_hand:
        remove(source)


def _unpack(source: Path, partial: Path, wanted: int | None, remedy: str, advance: Advance) -> str:
    """Decompresses into `partial`; returns the checksum of the result."""
    remove(partial)  # and its note, as decompression cannot resume
    most = MAX_EXPANSION * size(source) if wanted is None else wanted
    check_space(partial.parent, wanted or 0, source.name)
    digest, done = hashlib.sha256(), 0
    with writing(partial, wanted), partial.open("wb") as file:
        for block in _unpacked(source, remedy):
            done += len(block)
            if done > most:
                raise _Damaged(f"{source} decompresses to more than {most:,} bytes; {remedy}")
            file.write(block)
            digest.update(block)
            advance(done, wanted)
    return digest.hexdigest()


def _unpacked(source: Path, remedy: str) -> Iterator[bytes]:
    try:
        with gzip.open(source) as file:
            while block := file.read(BLOCK_BYTES):
                yield block
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise _Damaged(f"{source} is damaged or truncated ({error}); {remedy}") from error


def _settle(
    remote: Remote, target: Path, digest: str | None, remedy: str, advance: Advance
) -> None:
    """Finishes, checks and renames the complete partial file."""
    partial = _partial(target)
    if remote.finish is not None:
        try:
            remote.finish(partial)
        except InputError as error:
            raise _Damaged(str(error)) from error
        digest = None
    if remote.size not in (None, size(partial)):
        raise _Damaged(f"{target} would have {size(partial)} bytes, not {remote.size}; {remedy}")
    found, recorded = digest or _checksum(partial, advance), _recorded(target)
    expected = remote.sha256 or recorded
    if expected is not None and expected.lower() != found:
        changed = f" (if the published file changed, remove {_record(target).name} first)"
        raise _Damaged(
            f"{target} would have the SHA-256 {found} instead of {expected}; {remedy}"
            f"{'' if remote.sha256 else changed}"
        )
    if recorded != found:
        with replacing(_record(target)) as file:
            file.write_text(f"{found}  {target.name}\n")
    with partial.open("rb") as whole:
        os.fsync(whole.fileno())
    partial.rename(target)


def _checksum(path: Path, advance: Advance) -> str:
    digest, done, total = hashlib.sha256(), 0, size(path)
    with path.open("rb") as file:
        while block := file.read(BLOCK_BYTES):
            digest.update(block)
            done += len(block)
            advance(done, total)
    return digest.hexdigest()


def _recorded(target: Path) -> str | None:
    """The checksum that an earlier download recorded, if any."""
    if not _record(target).exists():
        return None
    found = re.match(r"[0-9a-f]{64}\b", _record(target).read_text())
    if found is None:
        raise InputError(f"{_record(target)} holds no SHA-256; remove it")
    return found[0]


def _record(target: Path) -> Path:
    return target.with_name(f"{target.name}.sha256")


def _partial(target: Path) -> Path:
    return target.with_name(f".{target.name}.partial")


def _packed(target: Path) -> Path:
    return target.with_name(f"{target.name}.gz")


def _unpacks(remote: Remote, address: str) -> bool:
    return urlsplit(address).path.endswith(".gz") and not remote.name.endswith(".gz")


def _is_placed(remote: Remote, target: Path) -> bool:
    """Whether a compressed file was placed by hand."""
    return any(_unpacks(remote, address) for address in remote.addresses) and (
        _packed(target).is_file()
    )


def _unavailable(remote: Remote, target: Path, problems: list[str]) -> InputError:
    packed = any(_unpacks(remote, address) for address in remote.addresses)
    place = f"{target} or, compressed, {_packed(target)}" if packed else f"{target}"
    return InputError(
        f"{remote.name} cannot be fetched: {'; '.join(problems)}; call again later, which resumes "
        f"the download, or place the file yourself as {place}"
    )
