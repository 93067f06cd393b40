"""Ctrl-C during work that can be saved: the step in progress is finished first."""

import contextlib
import signal
import threading
from collections.abc import Iterator


class Interrupted(Exception):
    """Ctrl-C during long work; what was done is saved and the message says how to resume."""


@contextlib.contextmanager
def noticed(enabled: bool = True) -> Iterator[threading.Event]:
    """An event that Ctrl-C sets, where it can be caught; a second Ctrl-C stops at once."""
    event = threading.Event()
    if not enabled or threading.current_thread() is not threading.main_thread():
        yield event
        return

    def handle(*_: object) -> None:
        signal.signal(signal.SIGINT, previous)
        event.set()

    previous = signal.signal(signal.SIGINT, handle)
    try:
        yield event
    finally:
        signal.signal(signal.SIGINT, previous)
