"""Ctrl-C: never lost in the program, and during work that can be saved a step is finished first."""

import contextlib
import os
import signal
import sys
import threading
from collections.abc import Iterator
from typing import Any

INTERRUPTED = 130  # what the program exits with, as shells count SIGINT
AGAIN_SECONDS = 0.1  # after which an interrupt that has had no effect is raised again


class Interrupted(Exception):
    """Ctrl-C during long work; what was done is saved and the message says how to resume."""


@contextlib.contextmanager
def noticed(enabled: bool = True) -> Iterator[threading.Event]:
    """An event that Ctrl-C sets, where it can be caught; a second Ctrl-C stops at once.

    Raises:
      KeyboardInterrupt: at the end of the block, if it came too late for the block to look.
    """
    event = threading.Event()
    if not (enabled and _is_heeded()):
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
    if event.is_set():
        signal.raise_signal(signal.SIGINT)


def ends_process() -> None:
    """Ctrl-C ends the process without a word, where it has nothing under way.

    An exception within the imports of compiled modules may crash them.
    """
    if _is_heeded():
        signal.signal(signal.SIGINT, lambda *_: os._exit(INTERRUPTED))


@contextlib.contextmanager
def insisting() -> Iterator[None]:
    """Ctrl-C raises KeyboardInterrupt until that leaves the block; a second ends the process.

    One exception is not enough: Python drops what is raised while it collects garbage, and some
    programs drop all that is raised. So it is raised again and again, unless it is on its way out,
    through code that cleans up.

    Raises:
      KeyboardInterrupt: Ctrl-C, also where the block raised something else for it.
      Interrupted: Ctrl-C, and the block went on to its end.
    """
    if not _is_heeded():
        yield
        return
    pressed = False

    def press(*_: object) -> None:
        nonlocal pressed
        if pressed:
            os.write(2, b"\nqinco: interrupted twice, so stopped at once\n")
            os._exit(INTERRUPTED)
        pressed = True
        signal.setitimer(signal.ITIMER_REAL, AGAIN_SECONDS, AGAIN_SECONDS)
        raise KeyboardInterrupt

    def again(*_: object) -> None:
        if not _is_on_its_way():
            raise KeyboardInterrupt

    def unraisable(found: Any) -> None:
        if not issubclass(found.exc_type, KeyboardInterrupt):
            hook(found)

    hook, sys.unraisablehook = sys.unraisablehook, unraisable
    handlers = signal.signal(signal.SIGALRM, again), signal.signal(signal.SIGINT, press)
    try:
        try:
            yield
        except (KeyboardInterrupt, Interrupted):
            raise
        except BaseException:
            if pressed:
                raise KeyboardInterrupt from None
            raise
        if pressed:
            raise Interrupted("interrupted, but everything was already done")
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)  # before all else, and again if Ctrl-C sets it
        signal.signal(signal.SIGINT, handlers[1])
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, handlers[0])
        sys.unraisablehook = hook


def _is_heeded() -> bool:
    """Whether Ctrl-C reaches this code: a shell may have the process ignore it."""
    in_main = threading.current_thread() is threading.main_thread()
    return in_main and signal.getsignal(signal.SIGINT) is not signal.SIG_IGN


def _is_on_its_way() -> bool:
    """Whether the code that a signal came into is handling a KeyboardInterrupt."""
    error = sys.exception()
    while error is not None and not isinstance(error, KeyboardInterrupt):
        error = error.__context__
    return error is not None
