"""Reads remote files from any byte on: HTTP with requests, FTP with the standard library.

Errors are classed by their remedy: retry (`Transient`), start over (`StartOver`), or try another
address (`Refused`).
"""

import contextlib
import email.utils
import ftplib
import re
import socket
import time
from collections.abc import Callable, Iterator
from typing import NamedTuple, TypeVar
from urllib.parse import unquote, urlsplit

import requests
import urllib3

CONNECT_SECONDS = 20.0
SILENT_SECONDS = 60.0  # without a byte, after which the connection counts as dead
TRIES = 6  # in a row without a byte
PAUSE_SECONDS = 1.0  # before the second try; doubles with each further one
LONGEST_PAUSE_SECONDS = 120.0  # also if the server asks for more
BLOCK_BYTES = 2**18
IDENTITY = {"Accept-Encoding": "identity"}  # the bytes sent are those of the file

T = TypeVar("T")


class Transient(Exception):
    """A temporary failure, such as a dropped connection or a busy server.

    Attributes:
      pause: the seconds to wait, if the server named them.
    """

    def __init__(self, what: str, pause: float | None = None) -> None:
        super().__init__(what)
        self.pause = pause


class Unreachable(Transient):
    """The connection to the server failed."""


class StartOver(Transient):
    """The bytes read so far do not belong to the current version of the file."""


class Refused(Exception):
    """The address does not provide the file; a retry will not help."""


class Stream(NamedTuple):
    """A remote file from some byte on.

    Attributes:
      begin: the offset of the first byte in `blocks`: the requested one, or 0.
      total: bytes of the whole file, where known.
      version: identifies the version of the file (ETag, Last-Modified or MDTM), where known.
      blocks: the bytes as they arrive; raises `Transient`.
    """

    begin: int
    total: int | None
    version: str | None
    blocks: Iterator[bytes]


def retried(attempt: Callable[[], T], arrived: Callable[[], int]) -> T:
    """Repeats an attempt after `Transient`, until `TRIES` in a row bring no byte.

    Args:
      attempt: continues from where the last one stopped.
      arrived: returns the bytes that all attempts received so far.

    Raises:
      Transient: from the last attempt, which is the first if the server cannot be reached.
      Refused: from the attempt.
    """
    tries = 0
    while True:
        before = arrived()
        try:
            return attempt()
        except Transient as error:
            tries = 0 if arrived() > before else tries + 1
            if tries == TRIES or (isinstance(error, Unreachable) and arrived() == 0):
                raise
            pause = PAUSE_SECONDS * 2 ** max(tries - 1, 0) if error.pause is None else error.pause
            time.sleep(min(pause, LONGEST_PAUSE_SECONDS))


@contextlib.contextmanager
def opened(address: str, begin: int, end: int | None, version: str | None) -> Iterator[Stream]:
    """Opens a remote file at a byte.

    Args:
      address: http, https or ftp.
      begin: the first byte. If the server cannot start there, the stream starts at byte 0.
      end: the byte to stop before, which the server must honor; `None` reads to the end.
      version: of the file that the bytes before `begin` came from, where known.

    Raises:
      Transient, StartOver, Refused.
    """
    transport = _ftp_opened if urlsplit(address).scheme == "ftp" else _http_opened
    with transport(address, begin, end, version) as stream:
        yield stream


def size(address: str) -> int | None:
    """Asks for the size of a remote file in bytes; `None` if the server does not report it.

    Raises:
      Transient, Refused.
    """
    if urlsplit(address).scheme == "ftp":
        with _ftp(address) as (connection, path), _ftp_errors():
            return _ftp_size(connection, path)
    with requests.Session() as session:
        with _http_errors():
            response = session.head(
                address, headers=IDENTITY, timeout=_timeouts(), allow_redirects=True
            )
        with response:
            if response.status_code in (405, 501):  # HEAD is not supported
                return None
            _check_answer(response, address)
            return _content_length(response)


def _timeouts() -> tuple[float, float]:
    return CONNECT_SECONDS, SILENT_SECONDS


@contextlib.contextmanager
def _http_opened(
    address: str, begin: int, end: int | None, version: str | None
) -> Iterator[Stream]:
    headers = dict(IDENTITY)
    if begin or end is not None:
        headers["Range"] = f"bytes={begin}-{'' if end is None else end - 1}"
        if version is not None:
            headers["If-Range"] = version
    with requests.Session() as session:
        with _http_errors():
            response = session.get(address, headers=headers, stream=True, timeout=_timeouts())
        with response:
            _check_answer(response, address)
            if response.status_code == 206:
                first, total = begin, _total_of_part(response, begin, end)
            else:
                first, total = 0, _total_of_whole(response, end)
            yield Stream(first, total, _http_version(response), _http_blocks(response))


def _http_blocks(response: requests.Response) -> Iterator[bytes]:
    """The undecoded body in blocks as they arrive, so that a dropped connection loses none."""
    with _http_errors():
        while block := response.raw.read1(BLOCK_BYTES, decode_content=False):
            yield block


def _check_answer(response: requests.Response, address: str) -> None:
    status = response.status_code
    problem = f"answers {status} {response.reason}".rstrip()
    if status == 416:
        raise StartOver(problem)
    if status in (408, 425, 429) or status >= 500:
        raise Transient(problem, _retry_after(response))
    if status not in (200, 206):
        raise Refused(problem)
    headers = response.headers
    if headers.get("Content-Type", "").startswith("text/html"):
        raise Refused("answers with a web page instead of a file")
    encoding = headers.get("Content-Encoding", "identity").lower()
    if encoding != "identity" and not urlsplit(address).path.endswith(".gz"):
        # Some servers declare this for every .gz file, which they send unchanged.
        raise Refused(f"compresses the transfer ({encoding}) though asked not to")


def _total_of_part(response: requests.Response, begin: int, end: int | None) -> int | None:
    """Checks that a 206 starts at `begin`; returns the size of the whole file."""
    sent = response.headers.get("Content-Range", "")
    found = re.fullmatch(r"bytes (\d+)-(\d+)/(\d+|\*)", sent)
    if found is None or int(found[1]) != begin or (end is not None and int(found[2]) >= end):
        asked = f"{begin}-{'' if end is None else end - 1}"
        raise Refused(f"was asked for bytes {asked} but sends {sent or 'an unknown range'}")
    return None if found[3] == "*" else int(found[3])


def _total_of_whole(response: requests.Response, end: int | None) -> int | None:
    length = _content_length(response)
    if end is not None and (length is None or length > end):
        if "If-Range" in response.request.headers:
            raise StartOver("has a different version of the file than before")
        raise Refused("does not support ranges, and the whole file is not wanted")
    if length is None and "chunked" not in response.headers.get("Transfer-Encoding", "").lower():
        raise Refused("does not send the length of the file, so it may be incomplete")
    return length


def _content_length(response: requests.Response) -> int | None:
    length = response.headers.get("Content-Length", "")
    return int(length) if length.isdigit() else None


def _http_version(response: requests.Response) -> str | None:
    tag = response.headers.get("ETag", "")
    weak = tag.startswith("W/")  # not allowed in If-Range
    return tag if tag and not weak else response.headers.get("Last-Modified")


def _retry_after(response: requests.Response) -> float | None:
    after = response.headers.get("Retry-After", "")
    if after.isdigit():
        return float(after)
    try:
        return max(0.0, email.utils.parsedate_to_datetime(after).timestamp() - time.time())
    except ValueError:
        return None


@contextlib.contextmanager
def _http_errors() -> Iterator[None]:
    try:
        yield
    except requests.ConnectionError as error:
        if isinstance(error.args[0], urllib3.exceptions.MaxRetryError):  # only from connecting
            raise Unreachable(f"cannot be reached ({_root(error)})") from error
        raise Transient(f"dropped the connection ({_root(error)})") from error
    except requests.Timeout as error:
        raise Transient(f"sent nothing for {SILENT_SECONDS:g} s") from error
    except (requests.RequestException, ValueError) as error:  # such as an invalid redirect
        raise Refused(f"cannot be used ({error})") from error
    except urllib3.exceptions.ReadTimeoutError as error:
        raise Transient(f"sent nothing for {SILENT_SECONDS:g} s") from error
    except (urllib3.exceptions.HTTPError, OSError) as error:
        raise Transient(f"dropped the connection ({_root(error)})") from error


def _root(error: BaseException) -> str:
    """The message of the original error, which the libraries wrap several times."""
    while (inner := error.__cause__ or error.__context__) is not None:
        error = inner
    return getattr(error, "strerror", None) or str(error)


@contextlib.contextmanager
def _ftp_opened(address: str, begin: int, end: int | None, version: str | None) -> Iterator[Stream]:
    with _ftp(address) as (connection, path):
        with _ftp_errors():
            total, version = _ftp_size(connection, path), _ftp_version(connection, path)
            if total is not None and total < begin:  # RETR would fail permanently
                raise StartOver(f"has only {total} bytes now")
            data = _ftp_data(connection, path, begin, end)
        with data:
            yield Stream(begin, total, version, _ftp_blocks(connection, data))


@contextlib.contextmanager
def _ftp(address: str) -> Iterator[tuple[ftplib.FTP, str]]:
    """A logged-in connection and the path of the file."""
    url = urlsplit(address)
    connection = ftplib.FTP(timeout=CONNECT_SECONDS)
    with contextlib.closing(connection):
        try:
            connection.connect(url.hostname or "", url.port or ftplib.FTP_PORT)
        except (OSError, EOFError) as error:
            raise Unreachable(f"cannot be reached ({_root(error)})") from error
        with _ftp_errors():
            connection.login(unquote(url.username or ""), unquote(url.password or ""))
            connection.voidcmd("TYPE I")
        yield connection, unquote(url.path)


def _ftp_size(connection: ftplib.FTP, path: str) -> int | None:
    try:
        return connection.size(path)
    except ftplib.error_perm as error:
        if str(error).startswith("550"):  # no such file; other codes: no SIZE
            raise
        return None


def _ftp_version(connection: ftplib.FTP, path: str) -> str | None:
    try:
        return connection.sendcmd(f"MDTM {path}")
    except ftplib.error_perm:
        return None


def _ftp_data(connection: ftplib.FTP, path: str, begin: int, end: int | None) -> socket.socket:
    try:
        data = connection.transfercmd(f"RETR {path}", begin or None)
    except ftplib.error_perm as error:
        if begin and str(error).startswith("50"):
            if end is not None:
                raise Refused("does not support ranges") from error
            raise StartOver("cannot resume a download") from error
        raise
    data.settimeout(SILENT_SECONDS)
    return data


def _ftp_blocks(connection: ftplib.FTP, data: socket.socket) -> Iterator[bytes]:
    with _ftp_errors():
        while block := data.recv(BLOCK_BYTES):
            yield block
        data.close()
        connection.voidresp()


@contextlib.contextmanager
def _ftp_errors() -> Iterator[None]:
    try:
        yield
    except ftplib.error_perm as error:
        raise Refused(f"answers {error}") from error
    except TimeoutError as error:
        raise Transient(f"sent nothing for {SILENT_SECONDS:g} s") from error
    except (ftplib.Error, OSError, EOFError) as error:
        raise Transient(f"dropped the connection ({_root(error)})") from error
