"""Names the reads that take long, while they do: whoever waits for a batch learns which shard it waits for."""

import contextlib
import logging
import threading
import time
from collections.abc import Iterator

from headrace.patience import Stop
from headrace.text import without_secrets

log = logging.getLogger(__name__)

LOOK_EACH_SECONDS = 0.5


class UnderWay:
    """One read that has not ended."""

    def __init__(self, url: str, offset: int, size: int, say_after: float) -> None:
        self.began = time.monotonic()
        self.num_bytes: int | None = None
        """So many have come; None where nobody tells."""
        self._url, self._offset, self._size = url, offset, size
        self._say_after = say_after

    def tell(self, num_bytes: int) -> None:
        """Note how many bytes have come."""
        self.num_bytes = num_bytes

    def say_if_late(self, now: float) -> None:
        """Write the warning if it is due: after the time, then after twice as long, and so on."""
        seconds = now - self.began
        if seconds < self._say_after:
            return
        self._say_after *= 2
        come = "" if self.num_bytes is None else f"{self.num_bytes} of "
        log.warning(
            "%s: at byte %d: %s%d bytes in %.1f s; other chunks are read meanwhile",
            without_secrets(self._url),
            self._offset,
            come,
            self._size,
            seconds,
        )


class SlowReads:
    """Watches reads from a thread of its own, which begins with the first of them."""

    def __init__(self, stop: Stop, slow_seconds: float) -> None:
        self._stop, self._slow_seconds = stop, slow_seconds
        self._under_way: dict[int, UnderWay] = {}
        self._thread: threading.Thread | None = None
        self._lock = threading.Lock()

    @contextlib.contextmanager
    def reading(self, url: str, offset: int, size: int) -> Iterator[UnderWay]:
        """Watch a read for as long as the block runs."""
        self._begin()
        one = UnderWay(url, offset, size, self._slow_seconds)
        self._under_way[id(one)] = one
        try:
            yield one
        finally:
            del self._under_way[id(one)]

    def close(self) -> None:
        """Wait for the thread; the stop is set by now."""
        if self._thread is not None:
            self._thread.join()

    def _begin(self) -> None:
        if self._thread is not None:
            return
        with self._lock:
            if self._thread is None and not self._stop.is_set():
                thread = threading.Thread(target=self._watch, name="headrace-watch", daemon=True)
                thread.start()
                self._thread = thread

    def _watch(self) -> None:
        while not self._stop.wait(min(LOOK_EACH_SECONDS, self._slow_seconds)):
            now = time.monotonic()
            for one in list(self._under_way.values()):
                one.say_if_late(now)
