"""Read one range of one file, local or remote, with deadlines and patience, from many threads.

A fault of the way (timeout, reset, 5xx, short body) is tried again as `headrace.patience` says, and then raised as
`ReadError`; the answer is short only where the file itself ends. `interrupt` ends every read at once, whatever it waits
for: a server, a name, another library.
"""

import threading
from collections.abc import Callable

from headrace import files
from headrace.access import Access
from headrace.patience import LastingError, Patience, Stop, is_transient, patiently, said
from headrace.text import without_secrets
from headrace.web import Client, is_http

__all__ = ["Patience", "RangeReader", "ReadError"]


class ReadError(OSError):
    """A read that failed for good: the run must stop."""


class RangeReader:
    """Reads ranges; one per stream, used by all its I/O threads. `interrupt` makes those that wait give up."""

    def __init__(self, patience: Patience) -> None:
        self.num_retries = 0
        self._stop = Stop()
        self._lock = threading.Lock()
        client = Client(timeout_seconds=patience.timeout_seconds, stop=self._stop)
        self._access = Access(patience=patience, client=client, stop=self._stop, on_retry=self._count)

    def __enter__(self) -> "RangeReader":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def read(self, url: str, offset: int, size: int) -> bytes:
        """Return `size` bytes from `offset`, fewer only where the file ends. Raises ReadError, naming both."""
        where, tries = without_secrets(url), 0
        read_once = self._range_of(url, offset, size)

        def read() -> bytes:
            nonlocal tries
            tries += 1
            if self._stop.is_set():
                raise LastingError("the stream is closed")
            return read_once()

        try:
            return patiently(
                read,
                self._access.patience,
                f"{where}: at byte {offset}",
                stop=self._stop,
                on_retry=self._access.on_retry,
            )
        except Exception as error:
            if not is_transient(error):
                raise ReadError(f"{where}: at byte {offset}: {said(error)}") from error
            raise ReadError(
                f"{where}: {size} bytes at byte {offset} could not be read, tried {tries} times: {said(error)}"
            ) from error

    def read_bytes(self, url: str) -> bytes:
        """Return a whole file. Raises FileNotFoundError, and OSError for other faults, naming it."""
        if self._stop.is_set():
            raise ReadError(f"{without_secrets(url)}: the stream is closed")
        return files.read_bytes(url, access=self._access)

    def interrupt(self) -> None:
        """Make readers that wait give up, in whichever thread they are."""
        self._stop.set()

    def close(self) -> None:
        """Close the connections; call it when no thread reads any more."""
        self.interrupt()
        self._access.client.close()

    def _range_of(self, url: str, offset: int, size: int) -> Callable[[], bytes]:
        if files.is_local(url):
            return lambda: files.read_local_range(url, offset, size)
        if is_http(url):
            return lambda: self._access.client.read_range(url, offset, size)[0]
        return lambda: files.read_foreign_range(url, offset, size, self._access)

    def _count(self) -> None:
        with self._lock:
            self.num_retries += 1
