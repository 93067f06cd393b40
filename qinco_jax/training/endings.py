"""How processes that train together end: what one of them raises, all raise, in the same words.

Processes of one training (`jax.distributed`) wait for each other in every step. Left alone, the
others of one that ended wait, and JAX ends them later with a log of its own. So each has a thread
that looks, through JAX's coordinator, whether another has said why it ends.
"""

import contextlib
import ctypes
import itertools
import json
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any, NoReturn

import jax
from jax._src import distributed  # the coordinator's keys and values have no public name

from qinco_jax.errors import Diverged, InputError, of_system
from qinco_jax.interrupts import Interrupted


class Lost(RuntimeError):
    """Another process of the training ended without a word, or cannot be reached."""


CODES: dict[type[Exception], int] = {Lost: 1, Diverged: 1, Interrupted: 130, InputError: 2}
"""What the program exits with."""

AGAIN = (
    "start all of them again with the same command, and the run goes on from its last checkpoint"
)
NOTHING_KEPT = "nothing was kept; start all of them again, with a run_dir to go on from"
COLLECTIVE = "Gloo", "NCCL", "RCCL", "CoordinationService"  # in errors of what all do together
HEARD = "heard-"  # and the number of a process, of keys
LOOK_SECONDS = 0.5
GRACE_SECONDS = 10.0  # until a process that knows of an end, but waits elsewhere, is ended

_numbers = itertools.count()
_watch: "Watch | None" = None


@contextlib.contextmanager
def together(kept: bool, is_program: bool = False) -> Iterator[None]:
    """What one process raises within ends all; does nothing within another one or in one process.

    Args:
      kept: whether there are checkpoints to go on from, for the message.
      is_program: whether the process ends with what is raised.

    Raises:
      InputError, Interrupted, Diverged: another process raised it.
      Lost: another process is gone.
    """
    global _watch
    if jax.process_count() == 1 or _watch is not None:
        yield
        return
    _watch = Watch(AGAIN if kept else NOTHING_KEPT)
    before = say_before_abort(_watch.end)
    failed = True
    try:
        yield
        failed = False
    except (Exception, KeyboardInterrupt) as error:
        verdict = _watch.verdict(error)
        if verdict is error:
            raise
        raise verdict from error
    finally:
        _watch.close()
        _watch = None
        if not (failed and is_program):  # JAX may abort it before its message is printed
            say_before_abort(before)


def watch() -> "Watch":
    """That of this process, within `together`."""
    assert _watch is not None
    return _watch


def this_process() -> str:
    """Its number and host, for messages."""
    return f"process {jax.process_index()} on {socket.gethostname()}"


class Watch:
    """What processes say to each other in one `together`.

    Attributes:
      reason: why another process ended, once that is known.
      asked: set once this process, or if it is the first any, was asked to save and stop.
    """

    def __init__(self, remedy: str) -> None:
        self.reason: Exception | None = None
        self.asked = threading.Event()
        self._remedy = remedy
        self._client: Any = distributed.global_state.client
        self._folder = f"qinco_jax/{next(_numbers)}"
        self._keys, self._raised, self._closed = itertools.count(), False, threading.Event()
        threading.Thread(target=self._look, daemon=True).start()

    def close(self) -> None:
        """Ends its thread."""
        self._closed.set()

    def next_key(self) -> str:
        """A new key, the same in all processes if they ask for keys in the same order."""
        return f"{self._folder}/values/{next(self._keys)}"

    def set(self, key: str, value: str) -> None:
        """Tells all processes a value."""
        self._client.key_value_set(key, value)

    def get(self, key: str) -> str:
        """Waits for a value; raises what another process ended with meanwhile."""
        while True:
            try:
                return str(self._client.blocking_key_value_get(key, int(1000 * LOOK_SECONDS)))
            except jax.errors.JaxRuntimeError as error:
                if "DEADLINE_EXCEEDED" not in str(error):
                    raise
            if self.reason is not None:
                raise self.reason

    def ask_to_stop(self) -> None:
        """Asks the first process to save and stop."""
        if not self.asked.is_set():
            self.asked.set()
            self._client.key_value_set(f"{self._folder}/end/stop", "", allow_overwrite=True)

    def verdict(self, error: BaseException) -> BaseException:
        """What to raise instead of an error: what another process ended with before, or itself.

        All are told of an error of this process.
        """
        self._raised = True
        if error is self.reason:
            return error
        if _is_of_a_collective(error):
            return self._heard() or self._lost()
        told = _named(error, self._remedy)
        if not self._tell(told):
            return self._heard() or error
        return told if isinstance(error, InputError | OSError) else error

    def end(self) -> None:
        """Ends this process, unless it is about to end by itself."""
        if self._raised:
            time.sleep(GRACE_SECONDS)
        exit_with(self.reason or self._lost())

    def _lost(self) -> Lost:
        return Lost(
            f"a process of this training ended, or {this_process()} cannot reach it; {self._remedy}"
        )

    def _tell(self, reason: Exception) -> bool:
        """Tells all why this process ends; false if another was faster or none can be told."""
        place, own = f"{self._folder}/end", jax.process_index()
        text = json.dumps([own, type(reason).__name__, str(reason)])
        try:
            self._client.key_value_set(f"{place}/reason", text)
            if own == 0:  # the coordinator ends with it, so the others must have heard
                others = jax.process_count() - 1
                _wait(lambda: sum(name.startswith(HEARD) for name in self._said()) == others)
        except jax.errors.JaxRuntimeError:
            return False
        return True

    def _heard(self) -> Exception | None:
        """The reason, for which it waits if it is still on its way."""
        _wait(lambda: self.reason is not None, 4 * LOOK_SECONDS)
        return self.reason

    def _said(self) -> dict[str, str]:
        folder = f"{self._folder}/end/"
        found = self._client.key_value_dir_get(folder)
        return {key.rpartition("/")[2]: value for key, value in found}

    def _look(self) -> None:
        own = jax.process_index()
        while not self._closed.wait(LOOK_SECONDS):
            try:
                said = self._said()
                if "stop" in said:
                    self.asked.set()
                if "reason" not in said:
                    continue
                number, kind, text = json.loads(said["reason"])
                if number == own:
                    return
                self.reason = next(known for known in CODES if known.__name__ == kind)(text)
                self._client.key_value_set(f"{self._folder}/end/{HEARD}{own}", "")
            except jax.errors.JaxRuntimeError:  # the coordinator is gone, so JAX ends this process
                return
            if not self._closed.wait(GRACE_SECONDS):
                self.end()
            return


def exit_with(reason: Exception) -> NoReturn:
    """Ends the process at once, from any thread."""
    print(f"qinco: {reason}", file=sys.stderr, flush=True)
    os._exit(CODES[type(reason)])


def say_before_abort(say: Any) -> Any:
    """Calls `say` before JAX aborts this process, which it does from threads of its own.

    Args:
      say: a function without arguments, or what an earlier call returned.

    Returns:
      What was to be called before.
    """
    handler = ctypes.CFUNCTYPE(None, ctypes.c_int)(lambda _: say()) if callable(say) else say
    _kept.append(handler)
    c_signal = ctypes.CDLL(None).signal
    c_signal.restype = ctypes.c_void_p
    c_signal.argtypes = ctypes.c_int, ctypes.c_void_p
    return c_signal(signal.SIGABRT, ctypes.cast(handler, ctypes.c_void_p))


_kept: list[Any] = []  # C may call them, so they must not be collected


def _wait(until: Callable[[], bool], seconds: float = GRACE_SECONDS) -> None:
    end = time.monotonic() + seconds
    while not until() and time.monotonic() < end:
        time.sleep(LOOK_SECONDS / 4)


def _is_of_a_collective(error: BaseException) -> bool:
    kinds = jax.errors.JaxRuntimeError, ValueError
    return isinstance(error, kinds) and any(word in str(error) for word in COLLECTIVE)


def _named(error: BaseException, remedy: str) -> Exception:
    """An error of this process as the other processes raise it."""
    if isinstance(error, Diverged | Interrupted | Lost):
        return error
    if isinstance(error, KeyboardInterrupt):
        return Interrupted(f"{this_process()} was interrupted; {remedy}")
    if isinstance(error, InputError):
        return InputError(f"{this_process()}: {error}")
    if isinstance(error, OSError):
        return InputError(f"{this_process()}: {of_system(error)}")
    kind = type(error).__name__
    return Lost(f"{this_process()} failed ({kind}: {error}), and says more; {remedy}")
