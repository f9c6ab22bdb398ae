"""Threads that a signal handler cannot break, and that are gone when they are said to be."""

import atexit
import os
import queue
import sys
import threading
import time
import weakref
from collections.abc import Callable, Iterable
from concurrent.futures import Future
from functools import cache
from typing import Any, ParamSpec, Protocol, TypeVar

MAX_SECONDS = 2.0
SWITCH_SECONDS, DEFAULT_SWITCH_SECONDS = 0.0005, 0.005

P = ParamSpec("P")
T = TypeVar("T")


def hand_over_sooner() -> None:
    """Make a thread that computes in Python give way to others after half a millisecond instead of five.

    Decoding releases the interpreter a dozen times a picture and asks for it again as often. Each time it may wait for
    another thread's whole turn, and so may the loop that trains. Who has chosen an interval keeps it.
    """
    if sys.getswitchinterval() == DEFAULT_SWITCH_SECONDS:
        sys.setswitchinterval(SWITCH_SECONDS)


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


class Closable(Protocol):
    """What ends its threads when it is closed, also for the second time."""

    def close(self) -> None: ...


@cache
def close_at_exit() -> "weakref.WeakSet[Closable]":
    """Return the set whose members are closed when the program ends, whoever forgot them."""
    forgotten: weakref.WeakSet[Closable] = weakref.WeakSet()

    def close() -> None:
        for one in list(forgotten):
            one.close()

    # Before the interpreter joins the threads of pools, which would wait for every read under way, also for one that
    # hangs. atexit comes after that; the private function is what concurrent.futures itself uses.
    getattr(threading, "_register_atexit", atexit.register)(close)
    return forgotten


class DaemonPool:
    """A pool of threads that may be left behind: a read of a dead file server ends when that is back, or never.

    `ThreadPoolExecutor` waits for its threads, at the latest when the program ends.
    """

    def __init__(self, num_threads: int, name: str) -> None:
        self._num_threads, self._name = num_threads, name
        self._work: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._waiting: set[Future[Any]] = set()
        self._threads: list[threading.Thread] = []
        self._lock = threading.Lock()
        self._closed = False

    def submit(self, action: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> "Future[T]":
        """Run `action` in a thread. Raises RuntimeError once the pool is closed."""
        future: Future[T] = Future()

        def run() -> None:
            if not future.set_running_or_notify_cancel():
                return
            try:
                result = action(*args, **kwargs)
            except BaseException as error:  # noqa: BLE001  whoever waits for the future raises it
                future.set_exception(error)
            else:
                future.set_result(result)

        with self._lock:
            if self._closed:
                raise RuntimeError("the pool is closed")
            if len(self._threads) < self._num_threads:
                name = f"{self._name}_{len(self._threads)}"
                thread = threading.Thread(target=self._run, name=name, daemon=True)
                thread.start()
                self._threads.append(thread)  # now: one that could not be had cannot be joined either
            self._waiting.add(future)
        future.add_done_callback(self._waiting.discard)
        self._work.put(run)
        return future

    def close(self, seconds: float) -> bool:
        """Cancel what has not begun, wait so long for the rest; False if threads were left behind."""
        with self._lock:
            self._closed = True
        for future in list(self._waiting):
            future.cancel()
        for _ in self._threads:
            self._work.put(None)
        deadline = time.monotonic() + seconds
        for thread in self._threads:
            thread.join(max(0.0, deadline - time.monotonic()))
        return not any(thread.is_alive() for thread in self._threads)

    def _run(self) -> None:
        while (work := self._work.get()) is not None:
            work()
            del work  # an idle thread keeps no sample alive
