"""Read a file at any URL forwards, by windows, without holding it in memory.

Positions only grow in normal use; a read behind the window is allowed and starts a new one.
"""

import hashlib
import io
from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from typing import Any, TypeVar

from headrace import files, urlpath
from headrace.shards.errors import ShardError
from headrace.shards.heartbeat import beat

LOCAL_WINDOW_BYTES = 256 * 1024
REMOTE_WINDOW_BYTES = 8 * 1024 * 1024

T = TypeVar("T")


class Windows:
    """Forward reads over one file; with `hashing`, every byte is read and `sha256()` is of the whole file."""

    def __init__(self, url: str, *, hashing: bool = False) -> None:
        self.url = url
        self._closing = ExitStack()
        self._file = self._closing.enter_context(files.opened(url, in_blocks=False))
        self.size = self._file.seek(0, io.SEEK_END)
        self._window_bytes = LOCAL_WINDOW_BYTES if urlpath.is_local(url) else REMOTE_WINDOW_BYTES
        self._start = 0
        self._window = b""
        self._hash: Any = hashlib.sha256() if hashing else None
        self._hashed = 0
        self.num_bytes_read = 0

    def __enter__(self) -> "Windows":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the file."""
        self._closing.close()

    def read(self, offset: int, size: int) -> bytes:
        """Return `size` bytes from `offset`, fewer only where the file ends first."""
        size = min(size, max(0, self.size - offset))
        parts = []
        while size > 0:
            if not self._start <= offset < self._start + len(self._window):
                self._move(offset)
            inside = offset - self._start
            part = self._window[inside : inside + size]
            parts.append(part)
            offset, size = offset + len(part), size - len(part)
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def sha256(self) -> str:
        """Read what is left and return the hash of the whole file."""
        while self._hashed < self.size:
            self._fetch(self._hashed)
        return str(self._hash.hexdigest())

    def _move(self, offset: int) -> None:
        while self._hash is not None and self._hashed < offset:
            self._fetch(self._hashed)
            if offset < self._start + len(self._window):
                return
        self._fetch(offset)

    def _fetch(self, offset: int) -> None:
        size = min(self._window_bytes, self.size - offset)
        self._file.seek(offset)
        data = self._file.read(size)
        if len(data) != size:
            raise ShardError(
                f"asked for {size} bytes, got {len(data)}: the file changed", shard=self.url, offset=offset
            )
        self.num_bytes_read += size
        self._start, self._window = offset, data
        if self._hash is not None and offset == self._hashed:
            self._hash.update(data)
            self._hashed += size


def beat_bytes(windows: Windows, items: Iterable[T]) -> Iterator[T]:
    """Yield `items`, which are read from `windows`, and count the bytes that were read for each."""
    told = windows.num_bytes_read
    for item in items:
        yield item
        beat(bytes=windows.num_bytes_read - told)
        told = windows.num_bytes_read
