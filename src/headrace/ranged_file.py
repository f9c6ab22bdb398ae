"""A file that is read by ranges, as an object that can be read and jumped in."""

import io
from collections.abc import Callable
from functools import lru_cache
from typing import Any

from headrace.text import without_secrets

BLOCK_BYTES = 4 << 20


class RangedFile(io.RawIOBase):
    """`read_range(url, offset, size)` as a file of `size` bytes; the last `num_blocks` blocks are kept, with 0 none."""

    def __init__(self, url: str, size: int, read_range: Callable[[str, int, int], bytes], *, num_blocks: int) -> None:
        self._url, self._size, self._position = url, size, 0
        self._read_range = read_range
        # Readers of parquet jump between the columns of a row group, so one stretch is not enough.
        self._block = lru_cache(num_blocks)(self._read_block) if num_blocks else None

    def readable(self) -> bool:
        """Return True."""
        return True

    def seekable(self) -> bool:
        """Return True."""
        return True

    def tell(self) -> int:
        """Return the position."""
        return self._position

    def seek(self, offset: int, whence: int = io.SEEK_SET, /) -> int:
        """Move; beyond the end there is nothing to read."""
        start = {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self._size}[whence]
        self._position = max(0, start + offset)
        return self._position

    def read(self, size: int | None = -1, /) -> bytes:
        """Return all of `size` bytes, fewer only at the end: Arrow and the readers of tars expect that of a file."""
        left = max(0, self._size - self._position)
        size = left if size is None or size < 0 else min(size, left)
        data = b"".join(self._parts(size))
        self._position += len(data)
        return data

    def readinto(self, buffer: Any, /) -> int:
        """Fill `buffer`; less only at the end."""
        data = self.read(len(buffer))
        buffer[: len(data)] = data
        return len(data)

    def _parts(self, size: int) -> list[bytes]:
        if self._block is None:
            return [self._read_range(self._url, self._position, size)] if size else []
        parts, position, end = [], self._position, self._position + size
        while position < end:
            number, inside = divmod(position, BLOCK_BYTES)
            parts.append(self._block(number)[inside : inside + end - position])
            position += len(parts[-1])
        return parts

    def _read_block(self, number: int) -> bytes:
        start = number * BLOCK_BYTES
        wanted = min(BLOCK_BYTES, self._size - start)
        data = self._read_range(self._url, start, wanted)
        if len(data) != wanted:
            where = without_secrets(self._url)
            raise OSError(f"{where}: asked for {wanted} bytes at byte {start}, got {len(data)}: the file changed")
        return data
