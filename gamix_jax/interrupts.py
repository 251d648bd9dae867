"""Signals that ask a run to stop: it finishes its step, saves and ends."""

import signal
import threading
from collections.abc import Iterable, Iterator
from types import FrameType
from typing import TypeVar

Item = TypeVar("Item")


class Stopped(Exception):
    """Work that need not be finished was given up, for a signal asks to stop."""


class StopSignals:
    """While open, SIGTERM (preemption) and SIGINT (Ctrl-C) are noted in place of ending the process.

    A second SIGINT ends it at once. Outside the main thread, where Python allows no
    handlers, signals do what they did before.

    Attributes:
      received: name of the first signal that came, or None.
    """

    def __init__(self):
        self.received: str | None = None

    def unless_stopped(self, items: Iterable[Item]) -> Iterator[Item]:
        """`items`, one after another; raises Stopped before the next one after a signal came."""
        for item in items:
            if self.received:
                raise Stopped
            yield item

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self.received and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.received = self.received or signal.Signals(number).name

    def __enter__(self) -> "StopSignals":
        self._before = {}
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGTERM, signal.SIGINT):
                self._before[number] = signal.signal(number, self._note)
        return self

    def __exit__(self, *exception) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
