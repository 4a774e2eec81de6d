"""Ends a run that hangs, or whose other processes have died, with a sentence instead of silence."""

from __future__ import annotations

import contextlib
import faulthandler
import os
import sys
import threading
import time
from collections.abc import Iterator

import jax

from genjax.errors import UserError

#: Seconds without progress after which a run of several processes ends, unless `training.hang_timeout` says otherwise.
SEVERAL_PROCESSES = 3600.0
#: Exit status of a run that hung, as of `timeout`.
HUNG = 124
#: The first dispatch is compiled, and may take this many times as long.
FIRST = 10
#: Signs of a process that is gone, in the errors of the libraries that carry collectives (Gloo, NCCL, gRPC).
_SIGNS = (
    "Connection closed by peer",
    "Connection reset by peer",
    "Broken pipe",
    "Socket closed",
    "heartbeat",
    "remote process exited",
    "NCCL operation",
)


class LostProcessError(UserError):
    """Another process of the run has ended, or cannot be reached."""


@contextlib.contextmanager
def lost_processes_told() -> Iterator[None]:
    """Turns the errors that collectives raise when another process is gone into one sentence."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        if jax.process_count() == 1 or not any(sign in str(error) for sign in _SIGNS):
            raise
        raise LostProcessError(
            f"process {jax.process_index()} of {jax.process_count()} has lost another process of the run, which was "
            "killed or cannot be reached: its own output tells why; the same command on every host goes on from the "
            "last checkpoint"
        ) from None


class Watchdog:
    """Prints the stacks of all threads and ends the process if nothing goes on for a while.

    Args:
      limit: seconds; None for `SEVERAL_PROCESSES` in runs of several processes, and for no limit in a run of one.
    """

    def __init__(self, limit: float | None) -> None:
        self.limit = SEVERAL_PROCESSES if limit is None and jax.process_count() > 1 else limit
        self._allowed = None if self.limit is None else FIRST * self.limit
        self._last, self._what = time.monotonic(), "the start"
        self._ended = threading.Event()

    def beat(self, what: str) -> None:
        """Notes that the run goes on; `what` was done last, as in "step 40"."""
        self._last, self._what, self._allowed = time.monotonic(), what, self.limit

    def __enter__(self) -> Watchdog:
        if self.limit is not None:
            threading.Thread(target=self._watch, name="watchdog", daemon=True).start()
        return self

    def __exit__(self, *unused: object) -> None:
        self._ended.set()

    def _watch(self) -> None:
        assert self.limit is not None and self._allowed is not None
        while not self._ended.wait(min(self.limit / 4, 10.0)):
            if time.monotonic() - self._last > self._allowed:
                self._end()

    def _end(self) -> None:
        """Ends the process at once: the thread that hangs cannot be reached."""
        error = sys.__stderr__
        assert error is not None
        faulthandler.dump_traceback(file=error, all_threads=True)
        process = f"process {jax.process_index()} of {jax.process_count()}" if jax.process_count() > 1 else "the run"
        print(
            f"error: {process} hung: nothing went on for {self._allowed:g} s after {self._what} "
            "(--training.hang_timeout), and the stacks of all threads stand above; the same command goes on from the "
            "last checkpoint",
            file=error,
            flush=True,
        )
        os._exit(HUNG)
