"""How a run is asked to stop.

A signal only asks: the loop saves and leaves at the end of its step, on all ranks together. Where one process waits for
its data the wait ends at once. The same signal again ends the process.
"""

import contextlib
import signal
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from types import FrameType
from typing import Any

STOPPING = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)
"""Slurm sends SIGUSR1 some time before the end where it is asked to (`--signal=USR1@300`)."""


@dataclass(slots=True)
class StopRequest:
    """The first signal that asked this process to stop."""

    number: int = 0
    """0 = none came."""
    at: float = 0.0
    """When it came, on the clock of `time.monotonic`."""

    interrupts: bool = False
    """True where the signal raises Interrupted."""

    def __bool__(self) -> bool:
        return self.number > 0

    @contextlib.contextmanager
    def interrupting(self) -> Iterator[None]:
        """Let a signal, one that came before too, raise Interrupted inside this context."""
        if self:
            raise Interrupted
        self.interrupts = True
        try:
            yield
        finally:
            self.interrupts = False


class Interrupted(BaseException):
    """A signal came where one may break off; not an Exception, or someone on its way would take it for a fault."""


@contextlib.contextmanager
def watch_signals(request: StopRequest) -> Iterator[None]:
    """Let SIGTERM, SIGUSR1 and the first Ctrl-C fill in `request` for as long as the context lasts."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def stop(number: int, _: FrameType | None) -> None:
        request.number, request.at = number, time.monotonic()
        signal.signal(number, previous[number])
        if request.interrupts:
            request.interrupts = False
            raise Interrupted

    previous: dict[int, Any] = {}
    for number in map(int, STOPPING):
        previous[number] = signal.signal(number, stop)
    try:
        yield
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
