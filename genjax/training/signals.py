"""Signals that ask a run to stop."""

from __future__ import annotations

import signal
import threading
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils


class StopSignals:
    """Notes the first SIGTERM or SIGINT, which the loop then acts on; a second SIGINT stops at once."""

    def __enter__(self) -> StopSignals:
        self.received: int | None = None
        self._previous = {}
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGTERM, signal.SIGINT):
                self._previous[number] = signal.signal(number, self._handle)
        return self

    def _handle(self, number: int, frame: Any) -> None:
        if self.received is not None and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.received = number

    def asked(self, step: int, log_every: int) -> bool:
        """Whether the run is asked to stop after a step; all processes of a run are told the same."""
        if jax.process_count() == 1:
            return self.received is not None
        # All processes must stop at the same step.  Asking costs a collective, so they ask only where a line is due.
        if step % log_every:
            return False
        return bool(np.any(multihost_utils.process_allgather(np.array(self.received is not None))))

    def __exit__(self, *unused: Any) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)
