"""Paths that may be remote."""

import functools
import io
import os
import re
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO
from urllib.parse import urlsplit

from qinco_jax.errors import InputError
from qinco_jax.files import text_of
from qinco_jax.remote import servers
from qinco_jax.remote.failures import RemoteError, explained, missing, retried
from qinco_jax.remote.ranges import Ranges, RangesFile
from qinco_jax.remote.servers import Info

BUFFER_BYTES = 2**16


def is_remote(path: str | os.PathLike[str]) -> bool:
    """Whether a path is a URL, such as `s3://bucket/x.npy`."""
    return re.match(r"[A-Za-z][A-Za-z0-9+.-]+://", text_of(path)) is not None


class RemotePath(os.PathLike[str]):
    """A URL with that part of `pathlib.Path` which readers need.

    What is there is asked for once: a new object notices a new file.

    Attributes:
      url: as text.
      name, stem, suffix: of its last part, as in `pathlib.Path`.
    """

    def __init__(self, url: str, info: Info | None = None) -> None:
        self.url = url
        last = PurePosixPath(urlsplit(url).path if servers.is_http(url) else url)
        self.name, self.stem, self.suffix = last.name, last.stem, last.suffix
        if info is not None:
            self._info = info

    @functools.cached_property
    def _info(self) -> Info | None:
        return retried(lambda: servers.info(self.url))

    def __fspath__(self) -> str:
        return self.url

    def __str__(self) -> str:
        return self.url

    def __truediv__(self, name: str) -> "RemotePath":
        return RemotePath(f"{self.url.rstrip('/')}/{name}")

    def with_name(self, name: str) -> "RemotePath":
        """Another name in the same folder."""
        return self.parent / name

    @property
    def parent(self) -> "RemotePath":
        """The folder that holds it."""
        return RemotePath(self.url.rstrip("/").rpartition("/")[0])

    def absolute(self) -> "RemotePath":
        """Itself."""
        return self

    def exists(self) -> bool:
        """Whether a file or folder is there."""
        return self._info is not None

    def is_file(self) -> bool:
        """Whether a file is there."""
        return self._info is not None and not self._info.is_dir

    def is_dir(self) -> bool:
        """Whether a folder is there; a web server has none."""
        return self._info is not None and self._info.is_dir

    def version(self) -> tuple[str, int | None, str | None]:
        """What tells the file that is there from another."""
        return self.url, *(self._info or (None, None))[:2]

    def iterdir(self) -> Iterator["RemotePath"]:
        """What is in the folder."""
        return iter(self._listed("ls"))

    def files(self) -> list["RemotePath"]:
        """The files in the folder and in those below, or this file."""
        return [self] if self.is_file() else self._listed("find")

    def glob(self) -> list["RemotePath"]:
        """The files that this pattern matches."""
        return [path for path in self._listed("glob") if not path.is_dir()]

    def _listed(self, how: str) -> list["RemotePath"]:
        fs, path = servers.filesystem(self.url)
        with explained(self.url):
            found = getattr(fs, how)(path, detail=True)
            entries: list[dict[str, Any]] = found if how == "ls" else list(found.values())
        is_http = servers.is_http(self.url)  # whose lists say nothing but names
        return [
            RemotePath(
                fs.unstrip_protocol(entry["name"]), None if is_http else servers.described(entry)
            )
            for entry in entries
        ]

    def ranges(self) -> Ranges:
        """The bytes of the file.

        Raises:
          InputError: there is no file, or its server gives no parts of it.
        """
        if self._info is None:
            raise missing(self.url)
        size, version, _, has_ranges = self._info
        if size is None or not has_ranges:
            raise RemoteError(self.url, "is on a server without byte ranges", "copy it first")
        return Ranges(self.url, size, version)

    def open(self, mode: str = "rb") -> BinaryIO:
        """The file, which is read by ranges when it is read."""
        if mode != "rb":
            raise InputError(f"{self.url} is uploaded whole, not opened for writing")
        return io.BufferedReader(RangesFile(self.ranges()), BUFFER_BYTES)

    def read_bytes(self) -> bytes:
        """All of the file."""
        ranges = self.ranges()
        return bytes(ranges.read(0, ranges.size))


AnyPath = Path | RemotePath


def place_of(path: str | os.PathLike[str]) -> AnyPath:
    """The path that a user means, which may be remote; `~` at the start is the home folder."""
    if isinstance(path, RemotePath):
        return path
    return RemotePath(os.fspath(path)) if is_remote(path) else Path(os.path.expanduser(path))


def size_of(path: AnyPath) -> int:
    """The bytes of a file."""
    return path.stat().st_size if isinstance(path, Path) else path.ranges().size


def source(path: AnyPath) -> Path | BinaryIO:
    """What a library opens: a local path as it is, of a remote one the open file."""
    return path if isinstance(path, Path) else path.open()
