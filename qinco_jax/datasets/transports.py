"""The bytes of remote files from any place on: HTTP by requests, FTP by the standard library.

What goes wrong is sorted by what helps: another try (`Passing`), beginning again (`StartOver`),
another address (`Refused`).
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
SILENT_SECONDS = 60.0  # without a byte; then the connection is taken for dead
TRIES = 6  # in a row that bring nothing
PAUSE_SECONDS = 1.0  # before the second try, twice as long before each one after
LONGEST_PAUSE_SECONDS = 120.0  # that a server can ask for
BLOCK_BYTES = 2**18
IDENTITY = {"Accept-Encoding": "identity"}  # bytes on the way are then those of the file

T = TypeVar("T")


class Passing(Exception):
    """Something that may pass, such as a dropped connection or a busy server.

    Attributes:
      pause: the seconds that the server asked to wait, or `None`.
    """

    def __init__(self, what: str, pause: float | None = None) -> None:
        super().__init__(what)
        self.pause = pause


class Unreachable(Passing):
    """No connection to the server came about."""


class StartOver(Passing):
    """What was read before is no part of the file that is there now."""


class Refused(Exception):
    """The address does not give the file, now or later."""


class Stream(NamedTuple):
    """A remote file from some byte on.

    Attributes:
      begin: the place of the first byte in `blocks`: what was asked for, or 0.
      total: bytes of the whole file, where the server tells.
      version: what tells it from its other versions (ETag, Last-Modified, MDTM), where known.
      blocks: the bytes as they arrive; raises `Passing`.
    """

    begin: int
    total: int | None
    version: str | None
    blocks: Iterator[bytes]


def patiently(attempt: Callable[[], T], arrived: Callable[[], int]) -> T:
    """Repeats an attempt as long as `Passing` is raised and bytes arrive, or `TRIES` are left.

    Args:
      attempt: goes on from where it was.
      arrived: the bytes that all attempts brought so far.

    Raises:
      Passing: from the last attempt; at once where there was no connection from the beginning.
      Refused: from the attempt.
    """
    tries = 0
    while True:
        before = arrived()
        try:
            return attempt()
        except Passing as trouble:
            tries = 0 if arrived() > before else tries + 1
            if tries == TRIES or (isinstance(trouble, Unreachable) and arrived() == 0):
                raise
            pause = (
                PAUSE_SECONDS * 2 ** max(tries - 1, 0) if trouble.pause is None else trouble.pause
            )
            time.sleep(min(pause, LONGEST_PAUSE_SECONDS))


@contextlib.contextmanager
def opened(address: str, begin: int, end: int | None, version: str | None) -> Iterator[Stream]:
    """Opens a remote file at a byte.

    Args:
      address: http, https or ftp.
      begin: the byte to begin with. Where a server cannot, the stream begins with byte 0.
      end: the byte to end before; then no server may begin or end elsewhere. `None`: the last.
      version: of the file that the bytes before `begin` came from, where known.

    Raises:
      Passing, StartOver, Refused: see there.
    """
    transport = _ftp_opened if urlsplit(address).scheme == "ftp" else _http_opened
    with transport(address, begin, end, version) as stream:
        yield stream


def size(address: str) -> int | None:
    """Asks for the bytes of a remote file; `None` where the server does not tell.

    Raises:
      Passing, Refused: see there.
    """
    if urlsplit(address).scheme == "ftp":
        with _ftp(address) as (connection, path), _ftp_sorted():
            return _ftp_size(connection, path)
    with requests.Session() as session:
        with _http_sorted():
            response = session.head(
                address, headers=IDENTITY, timeout=_timeouts(), allow_redirects=True
            )
        with response:
            if response.status_code in (405, 501):  # it knows no HEAD, yet may give the file
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
        with _http_sorted():
            response = session.get(address, headers=headers, stream=True, timeout=_timeouts())
        with response:
            _check_answer(response, address)
            if response.status_code == 206:
                first, total = begin, _total_of_part(response, begin, end)
            else:
                first, total = 0, _total_of_whole(response, end)
            yield Stream(first, total, _http_version(response), _http_blocks(response))


def _http_blocks(response: requests.Response) -> Iterator[bytes]:
    """The body as it comes: what came before a break is not lost, and nothing is decoded."""
    with _http_sorted():
        while block := response.raw.read1(BLOCK_BYTES, decode_content=False):
            yield block


def _check_answer(response: requests.Response, address: str) -> None:
    status = response.status_code
    says = f"answers {status} {response.reason}".rstrip()
    if status == 416:
        raise StartOver(says)
    if status in (408, 425, 429) or status >= 500:
        raise Passing(says, _retry_after(response))
    if status not in (200, 206):
        raise Refused(says)
    headers = response.headers
    if headers.get("Content-Type", "").startswith("text/html"):
        raise Refused("answers with a web page instead of a file")
    encoding = headers.get("Content-Encoding", "identity").lower()
    if encoding != "identity" and not urlsplit(address).path.endswith(".gz"):
        # Some servers say so of every .gz, whose bytes they send as they are.
        raise Refused(f"compresses the file on the way ({encoding}) though asked not to")


def _total_of_part(response: requests.Response, begin: int, end: int | None) -> int | None:
    """Checks that a 206 holds bytes from `begin` on; returns the bytes of the whole file."""
    says = response.headers.get("Content-Range", "")
    found = re.fullmatch(r"bytes (\d+)-(\d+)/(\d+|\*)", says)
    if found is None or int(found[1]) != begin or (end is not None and int(found[2]) >= end):
        asked = f"{begin}-{'' if end is None else end - 1}"
        raise Refused(
            f"was asked for the bytes {asked} and sends {says or 'it does not say which'}"
        )
    total = None if found[3] == "*" else int(found[3])
    return total


def _total_of_whole(response: requests.Response, end: int | None) -> int | None:
    length = _content_length(response)
    if end is not None and (length is None or length > end):
        if "If-Range" in response.request.headers:
            raise StartOver("has another version of the file than before")
        raise Refused("does not send parts of a file, and the whole of it is not wanted")
    if length is None and "chunked" not in response.headers.get("Transfer-Encoding", "").lower():
        raise Refused("does not tell where the file ends, so a part could pass for the whole")
    return length


def _content_length(response: requests.Response) -> int | None:
    says = response.headers.get("Content-Length", "")
    return int(says) if says.isdigit() else None


def _http_version(response: requests.Response) -> str | None:
    tag = response.headers.get("ETag", "")
    weak = tag.startswith("W/")  # which If-Range must not be asked with
    return tag if tag and not weak else response.headers.get("Last-Modified")


def _retry_after(response: requests.Response) -> float | None:
    says = response.headers.get("Retry-After", "")
    if says.isdigit():
        return float(says)
    try:
        return max(0.0, email.utils.parsedate_to_datetime(says).timestamp() - time.time())
    except ValueError:
        return None


@contextlib.contextmanager
def _http_sorted() -> Iterator[None]:
    try:
        yield
    except requests.ConnectionError as error:
        if isinstance(error.args[0], urllib3.exceptions.MaxRetryError):  # of the connecting alone
            raise Unreachable(f"cannot be reached ({_root(error)})") from error
        raise Passing(f"dropped the connection ({_root(error)})") from error
    except requests.Timeout as error:
        raise Passing(f"said nothing for {SILENT_SECONDS:g} s") from error
    except (requests.RequestException, ValueError) as error:  # as of a redirect to no address
        raise Refused(f"cannot be used ({error})") from error
    except urllib3.exceptions.ReadTimeoutError as error:
        raise Passing(f"said nothing for {SILENT_SECONDS:g} s") from error
    except (urllib3.exceptions.HTTPError, OSError) as error:
        raise Passing(f"dropped the connection ({_root(error)})") from error


def _root(error: BaseException) -> str:
    """The first cause of an error in words; the libraries wrap it several times."""
    while (inner := error.__cause__ or error.__context__) is not None:
        error = inner
    return getattr(error, "strerror", None) or str(error)


@contextlib.contextmanager
def _ftp_opened(address: str, begin: int, end: int | None, version: str | None) -> Iterator[Stream]:
    with _ftp(address) as (connection, path):
        with _ftp_sorted():
            total, version = _ftp_size(connection, path), _ftp_version(connection, path)
            if total is not None and total < begin:  # which RETR would refuse for good
                raise StartOver(f"has only {total} bytes now")
            data = _ftp_data(connection, path, begin, end)
        with data:
            yield Stream(begin, total, version, _ftp_blocks(connection, data))


@contextlib.contextmanager
def _ftp(address: str) -> Iterator[tuple[ftplib.FTP, str]]:
    """A connection that is logged in, and the path of the file."""
    place = urlsplit(address)
    connection = ftplib.FTP(timeout=CONNECT_SECONDS)
    with contextlib.closing(connection):
        try:
            connection.connect(place.hostname or "", place.port or ftplib.FTP_PORT)
        except (OSError, EOFError) as error:
            raise Unreachable(f"cannot be reached ({_root(error)})") from error
        with _ftp_sorted():
            connection.login(unquote(place.username or ""), unquote(place.password or ""))
            connection.voidcmd("TYPE I")
        yield connection, unquote(place.path)


def _ftp_size(connection: ftplib.FTP, path: str) -> int | None:
    try:
        return connection.size(path)
    except ftplib.error_perm as error:
        if str(error).startswith("550"):  # no such file; the others say that there is no SIZE
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
                raise Refused("does not send parts of a file") from error
            raise StartOver("cannot go on in the midst of a file") from error
        raise
    data.settimeout(SILENT_SECONDS)
    return data


def _ftp_blocks(connection: ftplib.FTP, data: socket.socket) -> Iterator[bytes]:
    with _ftp_sorted():
        while block := data.recv(BLOCK_BYTES):
            yield block
        data.close()
        connection.voidresp()


@contextlib.contextmanager
def _ftp_sorted() -> Iterator[None]:
    try:
        yield
    except ftplib.error_perm as error:
        raise Refused(f"answers {error}") from error
    except TimeoutError as error:
        raise Passing(f"said nothing for {SILENT_SECONDS:g} s") from error
    except (ftplib.Error, OSError, EOFError) as error:
        raise Passing(f"dropped the connection ({_root(error)})") from error
