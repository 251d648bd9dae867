"""Signals that ask a run to stop: it finishes its step, saves and ends."""

import os
import signal
import threading
from collections.abc import Iterable, Iterator
from types import FrameType
from typing import TypeVar

import jax
from jax.experimental import multihost_utils

Item = TypeVar("Item")


class Stopped(Exception):
    """Work that need not be finished was given up, for a signal asks to stop."""


class StopSignals:
    """While open, SIGTERM (preemption) and SIGINT (Ctrl-C) are noted in place of ending the process.

    Of several processes one signalled is enough: all are told to stop at the same place
    by `jax.distributed`, which takes SIGTERM for itself and needs up to a second. A
    second SIGINT ends a process at once. Outside the main thread, where Python allows no
    handlers, signals do what they did before.

    Attributes:
      received: name of the first signal that came, or None.
    """

    def __init__(self):
        self.received: str | None = None
        self._alone = jax.process_count() == 1
        self._signalled, self._asked = False, 0

    def stop_here(self) -> bool:
        """Whether to stop; all processes must ask at the same places, and get the same answer."""
        if not self._alone and not self.received:
            self._asked += 1
            if multihost_utils.reached_preemption_sync_point(self._asked):
                self.received = "SIGTERM"
        return self.received is not None

    def unless_stopped(self, items: Iterable[Item]) -> Iterator[Item]:
        """`items`, one after another; raises Stopped before the next one where it is to stop."""
        for item in items:
            if self.stop_here():
                raise Stopped
            yield item

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self._signalled and number == signal.SIGINT:
            raise KeyboardInterrupt
        self._signalled = True
        if self._alone:
            self.received = self.received or signal.Signals(number).name
        else:
            os.kill(os.getpid(), signal.SIGTERM)

    def __enter__(self) -> "StopSignals":
        self._before = {}
        numbers = (signal.SIGTERM, signal.SIGINT) if self._alone else (signal.SIGINT,)
        if threading.current_thread() is threading.main_thread():
            for number in numbers:
                self._before[number] = signal.signal(number, self._note)
        return self

    def __exit__(self, *exception) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
