"""What goes wrong with remote files, in one sentence each, classed by its remedy."""

import contextlib
import errno
import time
from collections.abc import Callable, Iterator
from typing import TypeVar

from qinco_jax.errors import InputError

TRIES, PAUSE_SECONDS, LONGEST_PAUSE_SECONDS = 3, 0.5, 60.0
CREDENTIALS = {
    "s3": "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE, or for a public bucket "
    "FSSPEC_S3_ANON=true",
    "gs": "set GOOGLE_APPLICATION_CREDENTIALS, or log in with gcloud",
    "hf": "set HF_TOKEN, or log in with `hf auth login`",
}
NO_CREDENTIALS = {"NoCredentialsError", "PartialCredentialsError", "DefaultCredentialsError"}
NO_CONNECTION = {
    "ClientConnectorError", "ConnectionTimeoutError", "EndpointConnectionError",
    "ConnectTimeoutError", "gaierror", "ConnectionRefusedError",
}  # fmt: skip
LOST = {
    "TimeoutError", "ConnectionError", "ClientConnectionError", "ClientPayloadError",
    "HTTPClientError", "EOFError", "error_temp",
}  # fmt: skip
BUSY = {errno.EBUSY, getattr(errno, "EREMOTEIO", errno.EIO)}  # 503 and 500 of s3fs

T = TypeVar("T")


class RemoteError(InputError):
    """A remote file cannot be used; `problem` is the message without the remedy."""

    def __init__(self, url: str, problem: str, remedy: str) -> None:
        super().__init__(f"{url} {problem}; {remedy}")
        self.problem = problem


class Transient(RemoteError):
    """A later call may succeed; `pause` are the seconds that the server asks to wait."""

    pause: float | None = None


class Unreachable(Transient):
    """There is no connection to the server."""


class Changed(RemoteError):
    """The file is another one than before."""

    def __init__(self, url: str) -> None:
        super().__init__(url, "has changed since it was opened", "start again with the new one")


def missing(url: str) -> RemoteError:
    """The error of a file that is not there."""
    return RemoteError(url, "does not exist", "check the bucket and the name")


def retried(attempt: Callable[[], T]) -> T:
    """Repeats an attempt that raises `Transient`, a few times; once without a connection."""
    tries = 0
    while True:
        try:
            return attempt()
        except Transient as error:
            tries += 1
            if tries == TRIES or (isinstance(error, Unreachable) and tries == 2):
                raise
            wait(error, tries)


def wait(error: Transient, tries: int) -> None:
    """Waits before another try: as long as the server asks for, else longer each time."""
    seconds = PAUSE_SECONDS * 2 ** (tries - 1) if error.pause is None else error.pause
    time.sleep(min(seconds, LONGEST_PAUSE_SECONDS))


@contextlib.contextmanager
def explained(url: str) -> Iterator[None]:
    """Raises the errors of fsspec and of the packages below it as `RemoteError`."""
    try:
        yield
    except InputError:
        raise
    except Exception as error:  # every file system has kinds of its own
        raise _failure(url, error) from error


def _failure(url: str, error: BaseException) -> RemoteError:
    every = [error]
    while (inner := every[-1].__cause__ or every[-1].__context__) is not None:
        every.append(inner)
    # The packages need not be installed, so their errors are known by name.
    kinds = {kind.__name__ for each in every for kind in type(each).__mro__}
    text = getattr(every[-1], "strerror", None) or str(every[-1])
    reason = (text.splitlines() or [type(error).__name__])[0][:200]
    status = next((n for each in every if isinstance(n := getattr(each, "status", 0), int)), 0)
    answer = f"answers {status} {getattr(error, 'message', '')}".rstrip() if status else None
    how = CREDENTIALS.get(url.partition(":")[0].replace("gcs", "gs"), "check the user's rights")
    if "FileExpired" in kinds:
        return Changed(url)
    if kinds & NO_CREDENTIALS:
        return RemoteError(url, "needs credentials, but there are none", how)
    if "FileNotFoundError" in kinds or reason.startswith("550"):  # by FTP
        return missing(url)
    if status in (401, 403) or kinds & {"PermissionError", "ProfileNotFound"}:
        return RemoteError(url, answer or f"refuses access ({reason})", f"check the name, or {how}")
    if kinds & NO_CONNECTION:
        return Unreachable(url, f"cannot be reached ({reason})", "check the address and network")
    passing = status in (408, 425, 429) or status >= 500 or getattr(error, "errno", 0) in BUSY
    if passing or (not status and kinds & LOST):
        failure = Transient(url, answer or f"dropped the connection ({reason})", "try again later")
        after = str((getattr(error, "headers", None) or {}).get("Retry-After", ""))
        failure.pause = float(after) if after.isdigit() else None
        return failure
    return RemoteError(url, answer or f"cannot be used ({reason})", "check the address")
