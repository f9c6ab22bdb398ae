"""Read one range of one file, local or remote, with deadlines and patience, from many threads.

A fault of the way (timeout, reset, 5xx, short body) is tried again as `headrace.patience` says, and then raised as
`ReadError`; the answer is short only where the file itself ends. `interrupt` ends every read at once, whatever it waits
for: a server, a name, another library.
"""

import dataclasses
import threading
from functools import partial

from headrace import files, urlpath
from headrace.access import Access
from headrace.patience import Patience, Stop
from headrace.shards.cache import BlockCache, CachedFile
from headrace.shards.hedge import Hedge
from headrace.shards.watch import SlowReads
from headrace.text import without_secrets
from headrace.web import Ask, Client

SLOW_SECONDS = 10.0


class ReadError(OSError):
    """A read that failed for good: the run must stop."""


class RangeReader:
    """Reads ranges; one per stream, used by all its I/O threads. `interrupt` makes those that wait give up."""

    def __init__(
        self,
        patience: Patience,
        cache: BlockCache | None = None,
        *,
        slow_seconds: float = SLOW_SECONDS,
        hedges: bool = False,
    ) -> None:
        self.num_retries = 0
        self._cache = cache
        self._stop = Stop()
        self._slow = SlowReads(self._stop, slow_seconds)
        self._hedge = Hedge(self._stop) if hedges else None
        self._lock = threading.Lock()
        client = Client(timeout_seconds=patience.timeout_seconds, stop=self._stop)
        self._access = Access(patience=patience, client=client, stop=self._stop, on_retry=self._count)

    def __enter__(self) -> "RangeReader":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def read(self, url: str, offset: int, size: int, *, version: str = "", fresh: bool = False) -> bytes:
        """Return `size` bytes from `offset`, fewer only where the file ends. Raises ReadError, naming both.

        `version` differs where the content of the file does; without it nothing is kept on disk. `fresh` is for a
        second look at what cannot be right: no cache on the way is believed.
        """
        fetch = partial(self._fetch, url, fresh)
        if self._cache is None or not version or urlpath.is_local(url):
            return fetch(offset, size)
        return self._cache.read(CachedFile(url, version), offset, size, fetch, fresh=fresh)

    def _fetch(self, url: str, fresh: bool, offset: int, size: int) -> bytes:
        with self._slow.reading(url, offset, size) as under_way:

            def attempt(stop: Stop) -> bytes:
                ask = Ask(fresh=fresh, stop=stop, on_bytes=under_way.tell)
                access = dataclasses.replace(self._access, stop=stop, ask=ask)
                return files.read_range(url, offset, size, access=access)

            try:
                if self._hedge is None or urlpath.is_local(url):
                    return attempt(self._stop)
                return self._hedge.read(f"{without_secrets(url)}: at byte {offset}", attempt)
            except OSError as error:
                raise ReadError(str(error)) from error

    def read_bytes(self, url: str) -> bytes:
        """Return a whole file. Raises FileNotFoundError, and OSError for other faults, naming it."""
        return files.read_bytes(url, access=self._access)

    @property
    def num_cached_bytes(self) -> int:
        """Bytes that came from the cache on disk."""
        return self._cache.num_hit_bytes if self._cache is not None else 0

    @property
    def num_hedged(self) -> int:
        """Reads that were late and asked for a second time."""
        return self._hedge.num_hedged if self._hedge is not None else 0

    def pause(self, seconds: float) -> bool:
        """Wait so long; True if the reader was told to give up."""
        return self._stop.wait(seconds)

    def interrupt(self) -> None:
        """Make readers that wait give up, in whichever thread they are."""
        self._stop.set()

    def close(self) -> None:
        """Close the connections; call it when no thread reads any more."""
        self.interrupt()
        self._slow.close()
        self._access.client.close()
        if self._cache is not None:
            self._cache.close()
            self._cache = None

    def _count(self) -> None:
        with self._lock:
            self.num_retries += 1
