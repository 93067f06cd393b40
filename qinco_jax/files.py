"""Paths that users give, and files that are written whole or not at all."""

import contextlib
import errno
import os
import shutil
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO


def path_of(text: str | os.PathLike[str]) -> Path:
    """The path that a user means, where `~` at the start is the home folder, as in a shell."""
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
