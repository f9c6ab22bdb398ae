"""Hedged reads: what takes longer than almost all others is asked for a second time, and the first answer counts.

Dean and Barroso, "The Tail at Scale" (CACM 2013). The limit is the 99th percentile of the last reads, so about one in a
hundred is doubled; where a server is slow as a whole, the share of doubled reads is bounded instead.
"""

import logging
import math
import queue
import threading
import time
from collections import deque
from collections.abc import Callable
from typing import Generic, TypeVar

from headrace.patience import LastingError, Stop

log = logging.getLogger(__name__)

MEASURED = 512
"""Reads whose times are kept."""
MEASURED_FIRST = 64
"""Nothing is hedged before so many."""
QUANTILE = 0.99
LEAST_SECONDS = 0.05
MOST_SHARE = 0.05
"""Share of reads that may be doubled."""

T = TypeVar("T")


class Hedge:
    """The times of reads, and second reads for those that are late; safe from any thread."""

    def __init__(self, stop: Stop) -> None:
        self.num_hedged = 0
        self._stop = stop
        self._seconds: deque[float] = deque(maxlen=MEASURED)
        self._num_reads = 0
        self._lock = threading.Lock()

    def limit_seconds(self) -> float:
        """Return after how long a read is late; infinity until enough were measured."""
        with self._lock:
            seconds = sorted(self._seconds)
        if len(seconds) < MEASURED_FIRST:
            return math.inf
        return max(LEAST_SECONDS, seconds[math.ceil(QUANTILE * len(seconds)) - 1])

    def read(self, what: str, attempt: Callable[[Stop], T]) -> T:
        """Return `attempt(stop)`, the first of two if the first is late; the other is stopped."""
        began, limit = time.monotonic(), self.limit_seconds()
        race = _Race(attempt)
        try:
            with self._stop.waking(race.give_up):
                race.start()
                if not race.is_decided(limit) and self._may_hedge():
                    log.info("%s: not here after %.2f s, reading it a second time", what, limit)
                    race.start()
                return race.result()
        finally:
            race.stop()
            with self._lock:
                self._num_reads += 1
                self._seconds.append(time.monotonic() - began)

    def _may_hedge(self) -> bool:
        with self._lock:
            may = self.num_hedged < MOST_SHARE * (self._num_reads + 1) and not self._stop.is_set()
            self.num_hedged += may
        return may


class _Race(Generic[T]):
    """Attempts in threads of their own; the first that succeeds wins, the first error counts if none does."""

    def __init__(self, attempt: Callable[[Stop], T]) -> None:
        self._attempt = attempt
        self._stops: list[Stop] = []
        self._ends: queue.SimpleQueue[tuple[BaseException | None, list[T]]] = queue.SimpleQueue()
        self._failed: list[BaseException] = []
        self._won: list[T] = []

    def start(self) -> None:
        """Begin one more attempt."""
        stop = Stop()
        self._stops.append(stop)
        threading.Thread(target=self._run, args=(stop,), name="headrace-hedge", daemon=True).start()

    def is_decided(self, seconds: float) -> bool:
        """Wait so long for an end; True if there is nothing to hedge any more."""
        try:
            self._take(None if seconds == math.inf else seconds)
        except queue.Empty:
            return False
        return True

    def result(self) -> T:
        """Wait for the first success and return it. Raises the first error if all attempts failed."""
        while not self._won and len(self._failed) < len(self._stops):
            self._take(None)
        if not self._won:
            raise self._failed[0]
        return self._won[0]

    def give_up(self) -> None:
        """Let whoever waits go on without a result."""
        for _ in range(2):
            self._ends.put((LastingError("the reader is closed"), []))

    def stop(self) -> None:
        """End the attempts that go on."""
        for stop in self._stops:
            stop.set()

    def _take(self, seconds: float | None) -> None:
        error, results = self._ends.get(timeout=seconds)
        self._won += results
        if error is not None:
            self._failed.append(error)

    def _run(self, stop: Stop) -> None:
        try:
            results = [self._attempt(stop)]
        except BaseException as error:  # noqa: BLE001  whoever waits raises it
            self._ends.put((error, []))
        else:
            self._ends.put((None, results))
