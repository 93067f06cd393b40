"""Files of data sets from the network: resumed where they stopped, checked, named when whole.

What has come of NAME so far is beside it in `.NAME.partial` (see `transfers`); the sum of a whole
file is in `NAME.sha256`, as the program `sha256sum` writes and checks it.
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
    Advance,
    Cut,
    Transfer,
    check_room,
    explained,
    read_origin,
    remove,
    size,
)
from qinco_jax.datasets.transports import BLOCK_BYTES, Passing, Refused
from qinco_jax.errors import InputError
from qinco_jax.files import replacing

UNPACKED_MOST = 100  # times the size of a .gz of vectors; more is an accident or a trap
WAIT_SECONDS = 0.5  # between looks at a file that another process fetches


class Remote(NamedTuple):
    """A file to have.

    Attributes:
      name: its path below the folder of downloads.
      addresses: http, https or ftp, tried in this order. What ends in `.gz` while `name` does not
        is decompressed.
      size: bytes that the file must have in the end, where known.
      sha256: of the file in the end, where known.
      cut: the only rows of the remote file to take; all are of one version of it.
      finish: runs on the complete file before it is checked and gets its name, for instance to
        mend a header. If that is cut short, a later call runs it on its own result.
    """

    name: str
    addresses: tuple[str, ...]
    size: int | None = None
    sha256: str | None = None
    cut: Cut | None = None
    finish: Callable[[Path], None] | None = None


class Missing(NamedTuple):
    """A file that is not there yet.

    Attributes:
      remote: the file.
      size: bytes that are still to be downloaded, where known; decompressed they can be more.
      address: from where.
    """

    remote: Remote
    size: int | None
    address: str


class _Bad(InputError):
    """The bytes that came are not those of the file."""


def fetch(remote: Remote, folder: Path, advance: Advance) -> Path:
    """Downloads a file unless it is there, going on from where an earlier call stopped.

    Connections that break are tried again; addresses that do not give the file are passed over.
    Of two processes that want the same file the second waits for the first. Where an address ends
    in `.gz`, a `NAME.gz` that was placed by hand is taken instead of a download.

    Args:
      remote: the file.
      folder: of downloads; made where it is missing.
      advance: told the bytes as they arrive, and after them those decompressed and summed up,
        where that takes a pass of its own.

    Returns:
      Where the file is, `folder / remote.name`.

    Raises:
      InputError: no address gives the file, there is no room for it, it cannot be written, or it
        is damaged or has another size or sum than it must. Except then, a later call goes on.
    """
    target = Path(folder) / remote.name
    if not _is_there(remote, target):
        with explained(target, None):
            target.parent.mkdir(parents=True, exist_ok=True)
            with _locked(target, advance):
                if not _is_there(remote, target):  # now that no other process is at it
                    _obtain(remote, target, advance)
    return target


def plan(remotes: Iterable[Remote], folder: Path) -> list[Missing]:
    """Finds out what `fetch` would download, and that there is room for it.

    Args:
      remotes: the files.
      folder: of downloads; nothing in it is changed.

    Raises:
      InputError: in the place of a file is one of another size, no address has a file, or there is
        too little room for all of them.
    """
    missing, room = [], 0
    for remote in remotes:
        target = Path(folder) / remote.name
        if _is_there(remote, target):
            continue
        if _is_placed(remote, target):
            room += remote.size or 0
            continue
        found = _find(remote, target)
        missing.append(found)
        room += (found.size or 0) + _transfer(remote, found.address, target).room
    check_room(Path(folder), room, "what is missing")
    return missing


def verify(remote: Remote, folder: Path) -> str:
    """Reads a file and compares its SHA-256 with the given and with the recorded one.

    Returns:
      The sum in hexadecimal.

    Raises:
      InputError: the file is not there, or has another size or sum.
    """
    target = Path(folder) / remote.name
    if not _is_there(remote, target):
        raise InputError(f"there is no file {target}; fetch it first")
    found = _sum(target, lambda done, total: None)
    for expected in (remote.sha256, _recorded(target)):
        if expected is not None and expected.lower() != found:
            raise InputError(
                f"{target} has the SHA-256 {found} instead of {expected}; remove it, and its "
                f"{_record(target).name} if it is meant to be another file now, and fetch it again"
            )
    return found


def _is_there(remote: Remote, target: Path) -> bool:
    if target.is_dir():
        raise InputError(f"{target} is a folder; a file of that name belongs there, so move it")
    if target.exists() and remote.size not in (None, target.stat().st_size):
        raise InputError(
            f"{target} has {target.stat().st_size} bytes instead of {remote.size}; remove it and "
            "fetch it again"
        )
    return target.exists()


@contextlib.contextmanager
def _locked(target: Path, advance: Advance) -> Iterator[None]:
    """Waits until no other process fetches the file, showing how far that one is."""
    lock = FileLock(target.with_name(f".{target.name}.lock"))
    while not lock.is_locked:
        try:
            lock.acquire(timeout=WAIT_SECONDS)
        except Timeout:
            if come := max(size(_partial(target)), size(_partial(_packed(target)))):
                advance(come, None)
    try:
        yield
    finally:
        lock.release()


def _obtain(remote: Remote, target: Path, advance: Advance) -> None:
    """Takes the file from the first place that gives it."""
    if _is_placed(remote, target):
        _complete(remote, target, _packed(target), None, advance)
        return
    problems = []
    for address in _ordered(remote, target):
        transfer = _transfer(remote, address, target)
        try:
            transfer.run(advance)
        except (Passing, Refused) as problem:
            problems.append(f"{address} {problem}")
            kept = size(transfer.partial) and not transfer.joins
            if kept and isinstance(problem, Passing):
                problems.append(f"to begin anew at another address, remove {transfer.partial}")
                break
            continue
        digest = transfer.digest.hexdigest() if transfer.digest else None
        _complete(remote, target, transfer.partial, digest, advance)
        return
    raise _nowhere(remote, target, problems)


def _find(remote: Remote, target: Path) -> Missing:
    problems = []
    for address in _ordered(remote, target):
        try:
            return Missing(remote, _transfer(remote, address, target).find(), address)
        except (Passing, Refused) as problem:
            problems.append(f"{address} {problem}")
    raise _nowhere(remote, target, problems)


def _ordered(remote: Remote, target: Path) -> list[str]:
    """The addresses, first the one that a download was begun from."""

    def is_new(address: str) -> bool:
        origin = read_origin(_transfer(remote, address, target).partial)
        return origin is None or origin.address != address

    return sorted(remote.addresses, key=is_new)


def _transfer(remote: Remote, address: str, target: Path) -> Transfer:
    joins = remote.sha256 is not None
    if _unpacks(remote, address):
        partial, room = _partial(_packed(target)), remote.size or 0
        return Transfer(address, partial, joins=joins, room=room)
    total = remote.size if remote.cut is None and remote.finish is None else None
    return Transfer(address, _partial(target), remote.cut, total, joins)


def _complete(
    remote: Remote, target: Path, source: Path, digest: str | None, advance: Advance
) -> None:
    """Makes the file of what came, or of a `.gz` placed by hand; removes what came if it is bad."""
    partial, by_hand = _partial(target), source == _packed(target)
    remedy = f"place another {source.name}" if by_hand else "it was removed, so fetch it again"
    try:
        if source != partial:
            digest = _unpack(source, partial, remote.size, remedy, advance)
        _settle(remote, target, digest, remedy, advance)
    except _Bad:
        remove(partial)
        if not by_hand:
            remove(source)
        raise
    if not by_hand:
        remove(source)


def _unpack(source: Path, partial: Path, wanted: int | None, remedy: str, advance: Advance) -> str:
    """Decompresses into `partial`; returns the sum of what is written there."""
    remove(partial)  # with its note, since nobody can go on with what is written now
    most = UNPACKED_MOST * size(source) if wanted is None else wanted
    check_room(partial.parent, wanted or 0, source.name)
    digest, done = hashlib.sha256(), 0
    with explained(partial, wanted), partial.open("wb") as file:
        for block in _unpacked(source, remedy):
            done += len(block)
            if done > most:
                raise _Bad(f"{source} decompresses to more than {most:,} bytes; {remedy}")
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
        raise _Bad(f"{source} is damaged or cut off ({error}); {remedy}") from error


def _settle(
    remote: Remote, target: Path, digest: str | None, remedy: str, advance: Advance
) -> None:
    """Finishes and checks the complete partial file, and gives it its name."""
    partial = _partial(target)
    if remote.finish is not None:
        try:
            remote.finish(partial)
        except InputError as error:
            raise _Bad(str(error)) from error
        digest = None
    if remote.size not in (None, size(partial)):
        raise _Bad(f"{target} would have {size(partial)} bytes instead of {remote.size}; {remedy}")
    found, recorded = digest or _sum(partial, advance), _recorded(target)
    expected = remote.sha256 or recorded
    if expected is not None and expected.lower() != found:
        changed = f" (if the file is meant to be another now, remove {_record(target).name} first)"
        raise _Bad(
            f"{target} would have the SHA-256 {found} instead of {expected}; {remedy}"
            f"{'' if remote.sha256 else changed}"
        )
    if recorded != found:
        with replacing(_record(target)) as file:
            file.write_text(f"{found}  {target.name}\n")
    with partial.open("rb") as whole:
        os.fsync(whole.fileno())
    partial.rename(target)


def _sum(path: Path, advance: Advance) -> str:
    digest, done, total = hashlib.sha256(), 0, size(path)
    with path.open("rb") as file:
        while block := file.read(BLOCK_BYTES):
            digest.update(block)
            done += len(block)
            advance(done, total)
    return digest.hexdigest()


def _recorded(target: Path) -> str | None:
    """The sum in the record of an earlier download, if there is one."""
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
    """Whether the file is there by hand, still compressed."""
    return any(_unpacks(remote, address) for address in remote.addresses) and (
        _packed(target).is_file()
    )


def _nowhere(remote: Remote, target: Path, problems: list[str]) -> InputError:
    packed = any(_unpacks(remote, address) for address in remote.addresses)
    place = f"{target} or, compressed, {_packed(target)}" if packed else f"{target}"
    return InputError(
        f"{remote.name} cannot be fetched: {'; '.join(problems)}; call again when that may have "
        f"changed, which goes on where this stopped, or place the file yourself as {place}"
    )
