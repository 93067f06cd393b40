"""Folders on a disk or in object storage, where each file is there whole or not at all."""

import contextlib
import dataclasses
import os
import shutil
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from qinco_jax.errors import InputError
from qinco_jax.files import path_of, replacing
from qinco_jax.remote import servers
from qinco_jax.remote.failures import explained
from qinco_jax.remote.paths import is_remote


class Unusable(InputError):
    """A folder cannot be read or written; `errno` is the system's number of the error, if any."""

    errno: int | None = None


@dataclasses.dataclass(frozen=True)
class Folder:
    """The files of one folder by their names.

    On a disk a file is written under a hidden name and renamed; object storage shows what is
    uploaded when all of it is there.

    Attributes:
      path: of the folder, absolute, or its URL.
    """

    path: str

    @classmethod
    def at(cls, path: str | os.PathLike[str]) -> "Folder":
        """The folder that a user's path names, which need not be there."""
        if is_remote(path):
            return cls(os.fspath(path).rstrip("/"))
        return cls(os.path.abspath(path_of(path)))

    @property
    def _local(self) -> Path | None:
        return None if is_remote(self.path) else Path(self.path)

    def place_of(self, name: str) -> str:
        """The path of a file."""
        return f"{self.path}/{name}"

    def sizes(self) -> dict[str, int]:
        """Bytes of each file; empty where there is no folder."""
        with self._explained("read"):
            try:
                if self._local is not None:
                    return {
                        entry.name: entry.stat().st_size
                        for entry in os.scandir(self._local)
                        if entry.is_file()
                    }
                system, root = self._remote()
                found = system.ls(root, detail=True)
            except FileNotFoundError:
                return {}
            return {
                entry["name"].rpartition("/")[2]: entry["size"]
                for entry in found
                if entry["type"] == "file"
            }

    def read(self, name: str) -> bytes | None:
        """The bytes of a file, `None` if there is none."""
        with self._explained("read"):
            try:
                if self._local is not None:
                    return (self._local / name).read_bytes()
                system, root = self._remote()
                return bytes(system.cat_file(f"{root}/{name}"))
            except FileNotFoundError:
                return None

    def write(self, name: str, content: bytes) -> None:
        """Writes a file, in place of the one that is there."""
        with self._explained("written"):
            if self._local is not None:
                with replacing(self._local / name) as partial:
                    partial.write_bytes(content)
                return
            system, root = self._remote()
            system.pipe_file(f"{root}/{name}", content)

    def remove(self, name: str) -> None:
        """Removes a file, if it is there."""
        with self._explained("written"), contextlib.suppress(FileNotFoundError):
            if self._local is not None:
                (self._local / name).unlink()
                return
            system, root = self._remote()
            system.rm_file(f"{root}/{name}")

    def prepare(self, size: int) -> None:
        """Makes the folder and writes to it, to know that it takes files of `size` bytes in all.

        Raises:
          InputError: it does not.
        """
        with self._explained("written"):
            if self._local is not None:
                if not self._local.parent.is_dir():
                    raise InputError(
                        f"there is no directory {self._local.parent} for {self._local.name}; "
                        "create it first"
                    )
                self._local.mkdir(exist_ok=True)
                usage = shutil.disk_usage(self._local)
                if usage.total and usage.free < size:  # some network filesystems report 0 of 0
                    raise InputError(
                        f"{self.path} needs {size:,} bytes more, and its disk has {usage.free:,}; "
                        "free some or choose another place"
                    )
        trial = f".{uuid.uuid4().hex[:8]}.trial"
        self.write(trial, b"can be written")
        self.remove(trial)

    def _remote(self) -> tuple[Any, str]:
        """The file system, and the path of the folder in it."""
        return servers.filesystem(self.path)

    @contextlib.contextmanager
    def _explained(self, done: str) -> Iterator[None]:
        """Raises the errors of file systems, each of which has kinds of its own, as `Unusable`."""
        if self._local is None:
            with explained(self.path):
                yield
            return
        try:
            yield
        except InputError:
            raise
        except OSError as error:
            reason = error.strerror or str(error) or type(error).__name__
            failure = Unusable(
                f"{self.path} cannot be {done} ({reason.splitlines()[0]}); check the path, its "
                "permissions and the free space"
            )
            failure.errno = error.errno
            raise failure from error
