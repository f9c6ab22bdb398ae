"""How a run is asked to stop.

A signal only asks: the loop saves and leaves at the end of its step, on all ranks together. A second one ends the
process at once.
"""

import contextlib
import signal
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from types import FrameType
from typing import Any


@dataclass(slots=True)
class StopRequest:
    """The first signal that asked this process to stop."""

    number: int = 0
    """0 = none came."""
    at: float = 0.0
    """When it came, on the clock of `time.monotonic`."""

    def __bool__(self) -> bool:
        return self.number > 0


@contextlib.contextmanager
def watch_signals(request: StopRequest) -> Iterator[None]:
    """Let SIGTERM and the first Ctrl-C fill in `request` for as long as the context lasts."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def stop(number: int, _: FrameType | None) -> None:
        request.number, request.at = number, time.monotonic()
        signal.signal(number, previous[number])

    previous: dict[int, Any] = {}
    for number in (int(signal.SIGTERM), int(signal.SIGINT)):
        previous[number] = signal.signal(number, stop)
    try:
        yield
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
