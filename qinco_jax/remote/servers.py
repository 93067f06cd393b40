"""File systems of fsspec, and what they say of a file; loaded by the first remote path."""

import functools
import os
import re
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple
from urllib.parse import urlsplit

from qinco_jax.remote.failures import RemoteError, explained

CONNECT_SECONDS, SILENT_SECONDS = 10.0, 20.0
EXTRAS = {"s3": "s3", "s3a": "s3", "gs": "gcs", "gcs": "gcs", "hf": "hf"}
VERSIONS = (
    "ETag", "etag", "md5Hash", "content_md5", "blob_id", "generation", "LastModified",
    "last_modified", "mtime", "modify", "modified", "created",
)  # fmt: skip
"""What tells the versions of a file apart, as fsspec's file systems name it, the best first."""


Read = Callable[[int, int], tuple["Info", bytes]]


class Info(NamedTuple):
    """A remote file or folder.

    Attributes:
      size: bytes, where known.
      version: tells it from what was there before, where known.
      is_dir: whether it is a folder.
      has_ranges: whether parts of it can be read.
    """

    size: int | None
    version: str | None
    is_dir: bool = False
    has_ranges: bool = True


def scheme_of(url: str) -> str:
    """The scheme of a URL in lower case, such as `s3`."""
    return urlsplit(url).scheme.lower()


def is_http(url: str) -> bool:
    """Whether a web server has the file."""
    return scheme_of(url) in ("http", "https")


def filesystem(url: str) -> tuple[Any, str]:
    """The file system of a URL, one per process, and the path in it.

    Raises:
      InputError: the scheme is unknown, its package is not installed, or it has no such server.
    """
    import fsspec

    scheme = scheme_of(url)
    try:
        fsspec.get_filesystem_class(scheme)
    except ValueError as error:
        problem, remedy = f"has the unknown scheme {scheme!r}", "use s3, gs, hf or https"
        raise RemoteError(url, problem, remedy) from error
    except ImportError as error:
        extra = EXTRAS.get(scheme)
        how = f"pip install 'qinco_jax[{extra}]'" if extra else str(error)
        raise RemoteError(url, "needs a package that is not installed", how) from error
    with explained(url):
        options = _options(scheme, os.environ.get("REQUESTS_CA_BUNDLE"))
        fs, path = fsspec.url_to_fs(url, use_listings_cache=False, **options)
        return fs, path


@functools.cache
def _options(scheme: str, certificates: str | None) -> dict[str, Any]:
    """What a file system is made with: a silent server is given up after seconds, not minutes."""
    if scheme in ("http", "https"):
        import ssl

        import aiohttp

        timeout = aiohttp.ClientTimeout(sock_connect=CONNECT_SECONDS, sock_read=SILENT_SECONDS)
        identity = {"Accept-Encoding": "identity"}  # the bytes sent are those of the file
        client = {"timeout": timeout, "headers": identity, "auto_decompress": False}
        trusted = ssl.create_default_context(cafile=certificates) if certificates else True
        return {"client_kwargs": {**client, "trust_env": True}, "ssl": trusted}  # and proxies
    if scheme in ("s3", "s3a"):
        tries = {"max_attempts": 1, "mode": "standard"}  # s3fs has its own
        times = {"connect_timeout": CONNECT_SECONDS, "read_timeout": SILENT_SECONDS}
        return {"config_kwargs": {**times, "retries": tries}}
    return {"timeout": CONNECT_SECONDS} if scheme == "ftp" else {}


def info(url: str) -> Info | None:
    """What is at a URL; `None` if nothing is.

    Raises:
      InputError: its server cannot be asked, or a web server answers with a page.
    """
    fs, path = filesystem(url)
    try:
        with explained(url):
            return http_read(fs, path, 0, 1)[0] if is_http(url) else described(fs.info(path))
    except RemoteError as error:
        if isinstance(error.__cause__, FileNotFoundError):
            return None
        raise


def described(entry: Mapping[str, Any]) -> Info:
    """What an entry of a file system says."""
    marks = [f"{key}={entry[key]}" for key in VERSIONS if entry.get(key) is not None]
    return Info(entry.get("size"), next(iter(marks), None), entry["type"] == "directory")


def reader(url: str) -> Read:
    """A function that reads bytes begin:end of a file, and says of which file; for one thread."""
    fs, path = filesystem(url)
    if is_http(url):
        return lambda begin, end: http_read(fs, path, begin, end)
    if scheme_of(url) in ("s3", "s3a"):
        file = fs.open(path, "rb", cache_type="none")
        return functools.partial(_s3_read, file)
    # The bytes come first: those of a newer file are then known by what is said of it.
    return lambda begin, end: (fs.cat_file(path, begin, end), described(fs.info(path)))[::-1]


def _s3_read(file: Any, begin: int, end: int) -> tuple[Info, bytes]:
    """Reads an open file of s3fs, which asks for its own version alone."""
    file.seek(begin)
    return described(file.details), file.read(end - begin)


def http_read(fs: Any, url: str, begin: int, end: int) -> tuple[Info, bytes]:
    """Bytes begin:end, or none if the server sends others, and what it says of the file.

    fsspec's own reading takes any answer to be the right one and looks at no version.
    """
    import fsspec.asyn

    async def get() -> tuple[Info, bytes]:
        session = await fs.set_session()
        headers = {"Range": f"bytes={begin}-{end - 1}"}
        async with session.get(fs.encode_url(url), headers=headers, **fs.kwargs) as answer:
            if answer.status != 416:
                fs._raise_not_found_for_status(answer, url)
            if answer.headers.get("Content-Type", "").startswith("text/html"):
                raise RemoteError(url, "answers with a web page instead of a file", "check it")
            encoding = answer.headers.get("Content-Encoding", "identity")
            # Some servers declare this for every .gz file, which they send unchanged.
            if encoding != "identity" and not urlsplit(url).path.endswith(".gz"):
                problem = f"compresses the transfer ({encoding}) though asked not to"
                raise RemoteError(url, problem, "take it from another place")
            found = _http_info(answer.status, answer.headers)
            right = answer.headers.get("Content-Range", "").startswith(f"bytes {begin}-")
            return found, await answer.read() if answer.status == 206 and right else b""

    return fsspec.asyn.sync(fs.loop, get)


def _http_info(status: int, headers: Mapping[str, str]) -> Info:
    is_part = status in (206, 416)
    place = re.fullmatch(r"bytes [-\d*]+/(\d+)", headers.get("Content-Range", ""))
    size = place[1] if is_part and place else "" if is_part else headers.get("Content-Length", "")
    version = headers.get("ETag") or headers.get("Last-Modified")
    return Info(int(size) if size.isdigit() else None, version, has_ranges=is_part)
