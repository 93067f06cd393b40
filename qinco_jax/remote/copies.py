"""Whole files and folders between this machine and remote places."""

import contextlib
import hashlib
import json
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

from qinco_jax.errors import InputError
from qinco_jax.remote import servers
from qinco_jax.remote.failures import explained, missing
from qinco_jax.remote.paths import AnyPath, RemotePath, place_of

WHOLE = {"s3", "s3a", "gs", "gcs", "hf", "az", "abfs", "abfss", "memory"}
"""Where a file appears when its upload is complete."""


@contextlib.contextmanager
def written(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Yields where to write a new file or folder: `path`, or if that is remote a temporary place.

    That is uploaded at the end of the block, unless an exception ends it.

    Raises:
      InputError: the remote path exists, or cannot be written.
    """
    place = place_of(path)
    if isinstance(place, Path):
        yield place
        return
    check_new(place)
    with tempfile.TemporaryDirectory(prefix="qinco_jax-") as folder:
        local = Path(folder) / place.name
        yield local
        upload(local, place)


def check_new(path: RemotePath) -> None:
    """Refuses a remote path where something is, or that can only be read."""
    if servers.is_http(path.url):
        raise InputError(f"{path} can only be read; write to s3://, gs:// or a local path instead")
    if path.exists():
        raise InputError(f"{path} exists; choose another path or remove it first")


def upload(local: Path, path: RemotePath) -> None:
    """Uploads a file, which appears whole, or a folder, where the files below it come first.

    Raises:
      InputError: it cannot be written.
    """
    if local.is_dir():
        files = sorted(file for file in local.rglob("*") if file.is_file())
        for file in sorted(files, key=lambda file: -len(file.parts)):
            upload(file, path / file.relative_to(local).as_posix())
        return
    fs, target = servers.filesystem(path.url)
    with explained(path.url):
        if servers.scheme_of(path.url) in WHOLE:
            fs.put_file(os.fspath(local), target)
        else:
            folder, _, name = target.rpartition("/")
            fs.makedirs(folder, exist_ok=True)
            fs.put_file(os.fspath(local), f"{folder}/.{name}.partial")
            fs.mv(f"{folder}/.{name}.partial", target)


def cache_folder() -> Path:
    """Where remote models are copied to, and codes wait for their upload."""
    home = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    return Path(os.environ.get("QINCO_CACHE_DIR") or f"{home}/qinco_jax-remote")


def kept_place(path: RemotePath, *version: object) -> Path:
    """A place in the cache for a remote path, which is the same in every process."""
    key = hashlib.sha256(json.dumps([path.url, *version]).encode()).hexdigest()
    return cache_folder() / key[:20] / path.name


def fetched(path: AnyPath) -> Path:
    """A local path: of a remote file or folder a copy, made unless there is one of its version.

    Raises:
      InputError: nothing is there, it cannot be read, or the copy cannot be written.
    """
    if isinstance(path, Path):
        return path
    if not path.exists():
        raise missing(path.url)
    files = path.files()
    place = kept_place(path, sorted(map(str, (file.version() for file in files))))
    if not place.exists():
        try:
            _copy(path, files, place)
        except OSError as error:
            raise InputError(
                f"{path} cannot be copied to {cache_folder()} ({error.strerror}); fix that, or set "
                "QINCO_CACHE_DIR to another directory"
            ) from error
    return place


def _copy(path: RemotePath, files: list[RemotePath], place: Path) -> None:
    top = servers.filesystem(path.url)[1]
    place.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=place.parent, prefix=".") as folder:
        for file in files:
            inside = servers.filesystem(file.url)[1].removeprefix(top).lstrip("/")
            local = Path(folder) / path.name / inside
            local.parent.mkdir(parents=True, exist_ok=True)
            ranges = file.ranges()
            with local.open("wb") as out:
                for block in ranges.blocks(0, ranges.size):
                    out.write(block)
        try:
            (Path(folder) / path.name).rename(place)
        except OSError:
            if not place.exists():  # else another process was quicker
                raise
