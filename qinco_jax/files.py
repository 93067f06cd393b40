"""Paths that users give, and files written whole or not at all, by one process at a time."""

import contextlib
import errno
import json
import os
import shutil
import socket
import uuid
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO

from qinco_jax.errors import InputError


def text_of(path: str | os.PathLike[str]) -> str:
    """A path as text.

    Raises:
      InputError: it is something else, such as a model.
    """
    if not isinstance(path, str | os.PathLike):
        raise InputError(
            f"got an object of type {type(path).__name__} where a path belongs; give text or a "
            "pathlib.Path, and the arguments in their order"
        )
    return os.fspath(path)


def path_of(text: str | os.PathLike[str]) -> Path:
    """The path that a user means, where `~` at the start is the home folder, as in a shell.

    Raises:
      InputError: it is a URL, or no path.
    """
    if "://" in text_of(text):
        raise InputError(f"{text} must be on this machine here; give a local path and copy it")
    return Path(os.path.expanduser(text))


@contextlib.contextmanager
def replacing(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Yields a temporary path beside `path` to write to; renames it to `path` at the end.

    An exception in the block removes it.
    """
    target = path_of(path)
    partial = target.with_name(f".{uuid.uuid4().hex[:8]}-{target.name}")
    try:
        yield partial
        with partial.open("rb") as file:
            os.fsync(file.fileno())
        partial.replace(target)
    finally:
        partial.unlink(missing_ok=True)


def reserve(file: BinaryIO, folder: Path, size: int) -> None:
    """Reserves `size` bytes of disk space for an open file in `folder`.

    Writing to a memory map on a full disk would kill the process.

    Raises:
      OSError: there is too little space.
    """
    usage = shutil.disk_usage(folder)
    if usage.total and usage.free < size:  # some network filesystems report 0 of 0
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    file.truncate(size)
    if hasattr(os, "posix_fallocate"):  # not on macOS
        try:
            os.posix_fallocate(file.fileno(), 0, size)
        except OSError as error:
            if error.errno not in (errno.EOPNOTSUPP, errno.EINVAL, errno.ENOSYS):
                raise


def check_same_work(place: Path, begun: Mapping[str, Any], task: Mapping[str, Any]) -> None:
    """Refuses to go on with the unfinished work of another task, or to throw it away.

    Args:
      place: file or folder of the work; without it the task begins anew.
      begun: what told that work from other work, as json has it.
      task: the same of this one.

    Raises:
      InputError: they differ; names in what.
    """
    asked = json.loads(json.dumps(task))
    names = [name for name in {**begun, **asked} if begun.get(name) != asked.get(name)]
    if names:
        raise InputError(
            f"{place} holds the unfinished work of a command with another {' and '.join(names)}; "
            f"run that one again to finish it, or remove {place}"
        )


@contextlib.contextmanager
def locked(lock: Path, what: str) -> Iterator[None]:
    """Keeps other processes from work on the same files; the lock ends with its process.

    Args:
      lock: a file for it; `LOCK-holder` beside it says who holds it.
      what: what the holder does, for the message: "trains in runs/x".

    Raises:
      InputError: another process holds it; names it, and the file to remove if its host is gone,
        whose lock some network filesystems keep.
    """
    from filelock import FileLock, Timeout  # not at the top: slow to import

    holder = lock.with_name(f"{lock.name}-holder")
    held = FileLock(lock)
    try:
        held.acquire(timeout=0)
    except Timeout as error:
        who = holder.read_text() if holder.exists() else "another process"
        elsewhere = not who.endswith(f" on {socket.gethostname()}")
        by_force = f", or remove {lock} if it is gone with its host" * elsewhere
        raise InputError(
            f"{who} {what}; wait until it ends, or choose another place{by_force}"
        ) from error
    try:
        with replacing(holder) as partial:
            partial.write_text(f"process {os.getpid()} on {socket.gethostname()}")
        yield
    finally:
        holder.unlink(missing_ok=True)
        held.release()
