"""Threads that a signal handler cannot break, and that are gone when they are said to be."""

import os
import threading
import time
from collections.abc import Iterable

MAX_SECONDS = 2.0


class Bell:
    """Wakes one thread that waits; a ring that nobody waits for wakes the next who does.

    A `threading.Condition` is Python code: a signal handler that raises inside leaves its lock taken for ever, or
    given up twice. This is one lock of the interpreter, taken or not. Whoever waits looks first, and looks again after
    it rang, so neither a ring lost to an exception nor one too many matters.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._lock.acquire()

    def ring(self) -> None:
        """Wake whoever waits. Never blocks."""
        try:
            self._lock.release()
        except RuntimeError:  # it rings already
            return

    def wait(self) -> None:
        """Return once it has rung."""
        self._lock.acquire()


def wait_until_gone(threads: Iterable[threading.Thread]) -> None:
    """Wait until the kernel has ended threads that were joined; on Linux, elsewhere return at once.

    `join` returns when the Python part has ended. The thread then still runs destructors of C libraries: OpenCV's
    takes a lock, and a process that is forked off in that moment has it locked for ever (2 of 300 forks hung).
    """
    deadline = time.monotonic() + MAX_SECONDS
    for thread in threads:
        while os.path.exists(f"/proc/self/task/{thread.native_id}") and time.monotonic() < deadline:
            time.sleep(0.0005)
