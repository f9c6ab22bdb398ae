"""A bounded cache on a local disk of what was read from afar: blocks of 256 KiB in two files of fixed size.

A block has a place among the 16 of its set, and takes that of the one unused for longest. Nothing is locked: what is
found counts only if its key and its crc32 fit, so two writers of one place, a kill in the middle of a write and a disk
that lies all look like a block that is not there. The bound is where the files end, so no run of any length, and no
number of processes, fills the disk beyond it.

Layout, little-endian. `blocks.table`: a header of 32 bytes (magic, version, block bytes, places), then 32 bytes for
each place: key (16: blake2b of version, URL and block number; zeros = free), crc32 of key and data (4), length (4),
when it was last used (8, ns). `blocks.data`: the blocks, one for each place.
"""

import contextlib
import fcntl
import hashlib
import logging
import os
import struct
import threading
import time
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from headrace.text import without_secrets

log = logging.getLogger(__name__)

BLOCK_BYTES = 256 << 10
PLACES_PER_SET = 16
MIN_CACHE_BYTES = 1 << 20
VERSION = 1

_HEADER = struct.Struct("<16sIIq")
_PLACE = struct.Struct("<16sIIq")
_USED = struct.Struct("<q")
_MAGIC = b"headrace blocks\n"
_FLAGS = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC

ReadRange = Callable[[int, int], bytes]
"""(offset, size) -> the bytes, fewer only where the file ends."""


@dataclass(frozen=True, slots=True)
class CachedFile:
    """A file that is read through the cache."""

    url: str
    version: str
    """Differs where the content does: the sha256 of the shard, say."""

    def key(self, block: int) -> bytes:
        """Return what names a block of this content."""
        text = f"{self.version}\n{without_secrets(self.url)}\n{block}"
        return hashlib.blake2b(text.encode(), digest_size=16).digest()


class BlockCache:
    """Blocks on disk; safe from any thread and any process. Made by `open_cache`."""

    def __init__(self, table: int, data: int, num_places: int) -> None:
        self.num_hit_bytes = 0
        """Bytes that were asked for and found."""
        self._table, self._data = table, data
        self._num_sets = max(1, num_places // PLACES_PER_SET)
        self._per_set = min(PLACES_PER_SET, num_places)
        self._writes = True
        self._lock = threading.Lock()

    def close(self) -> None:
        """Close the files; call it when nobody reads any more."""
        self._writes = False
        for handle in (self._table, self._data):
            os.close(handle)

    def read(self, file: CachedFile, offset: int, size: int, fetch: ReadRange, *, fresh: bool = False) -> bytes:
        """Return `size` bytes from `offset`, fewer only where the file ends; what is not here by `fetch`, in few calls.

        `fresh` believes nothing that is here, and puts what was fetched in its place.
        """
        first, last = offset // BLOCK_BYTES, (offset + size - 1) // BLOCK_BYTES
        blocks = {number: None if fresh else self._find(file.key(number)) for number in range(first, last + 1)}
        found = sum(len(block) for block in blocks.values() if block)
        for start, count in _runs([number for number, block in blocks.items() if block is None]):
            data = fetch(start * BLOCK_BYTES, count * BLOCK_BYTES)
            for number in range(start, start + count):
                at = (number - start) * BLOCK_BYTES
                blocks[number] = block = data[at : at + BLOCK_BYTES]
                self._put(file.key(number), block)
        with self._lock:
            self.num_hit_bytes += found
        inside = offset - first * BLOCK_BYTES
        return b"".join(block or b"" for block in blocks.values())[inside : inside + size]

    def _find(self, key: bytes) -> bytes | None:
        """Return a block, None if it is not here whole."""
        try:
            for place, (held, crc, length, _) in self._places(key):
                if held != key or not 0 < length <= BLOCK_BYTES:
                    continue
                data = os.pread(self._data, length, place * BLOCK_BYTES)
                if len(data) == length and zlib.crc32(data, zlib.crc32(key)) == crc:
                    self._touch(place)
                    return data
        except OSError as error:
            self._give_up("read", error)
        return None

    def _put(self, key: bytes, data: bytes) -> None:
        if not self._writes or not data:
            return
        try:
            places = list(self._places(key))
            mine = [place for place, (held, *_) in places if held == key]
            place = mine[0] if mine else min(places, key=lambda one: one[1][3])[0]
            # The entry goes first: whoever finds the old block between the two finds a crc that does not fit it.
            entry = _PLACE.pack(key, zlib.crc32(data, zlib.crc32(key)), len(data), time.time_ns())
            os.pwrite(self._table, entry, _HEADER.size + place * _PLACE.size)
            if os.pwrite(self._data, data, place * BLOCK_BYTES) < len(data):
                raise OSError("the disk took a part only")
        except OSError as error:
            self._give_up("written", error)

    def _places(self, key: bytes) -> Iterator[tuple[int, tuple[bytes, int, int, int]]]:
        """Yield (place, entry) of a key's set; entries beyond the end of the table are free."""
        first = int.from_bytes(key[:8], "little") % self._num_sets * self._per_set
        table = os.pread(self._table, self._per_set * _PLACE.size, _HEADER.size + first * _PLACE.size)
        table += bytes(self._per_set * _PLACE.size - len(table))
        yield from enumerate(_PLACE.iter_unpack(table), first)

    def _touch(self, place: int) -> None:
        if self._writes:
            used = _USED.pack(time.time_ns())
            os.pwrite(self._table, used, _HEADER.size + place * _PLACE.size + _PLACE.size - _USED.size)

    def _give_up(self, what: str, error: OSError) -> None:
        with self._lock:
            before, self._writes = self._writes, False
        if before:
            log.warning("the cache cannot be %s (%s): nothing more is kept in it", what, error)


def open_cache(folder: str, num_bytes: int) -> BlockCache | None:
    """Open or make the cache in `folder`, of at most `num_bytes`; None, with a warning, where that cannot be.

    A cache of another size that nobody uses is begun anew; one in use stays as it is, if it is no larger.
    """
    num_places = (num_bytes - _HEADER.size) // (BLOCK_BYTES + _PLACE.size)
    num_places = num_places // PLACES_PER_SET * PLACES_PER_SET if num_places > PLACES_PER_SET else num_places
    handles: list[int] = []
    try:
        Path(folder).mkdir(parents=True, exist_ok=True)
        table = os.open(Path(folder) / "blocks.table", _FLAGS, 0o666)
        handles.append(table)
        data = os.open(Path(folder) / "blocks.data", _FLAGS, 0o666)
        handles.append(data)
        held = _agree_on_size(table, data, num_places)
    except OSError as error:
        for handle in handles:
            os.close(handle)
        log.warning("%s: no cache here (%s): reading goes on without", folder, error)
        return None
    if held > num_places:
        for handle in handles:
            os.close(handle)
        log.warning("%s: a larger cache is in use there: reading goes on without", folder)
        return None
    log.info("%s: a cache of at most %d MB", folder, held * (BLOCK_BYTES + _PLACE.size) // 10**6)
    _warn_of_little_room(folder, data, held * BLOCK_BYTES)
    return BlockCache(table, data, held)


def _warn_of_little_room(folder: str, data: int, num_bytes: int) -> None:
    """Say so if the disk will be full before the cache is."""
    disk = os.statvfs(folder)
    free, wanted = disk.f_bavail * disk.f_frsize, num_bytes - os.fstat(data).st_blocks * 512
    if free < wanted:
        log.warning(
            "%s: the disk has %d MB free, and the cache may take %d MB more; lower cache_bytes",
            folder,
            free // 10**6,
            wanted // 10**6,
        )


def _agree_on_size(table: int, data: int, num_places: int) -> int:
    """Return how many places the cache has: as asked for, or as those have it who use it now.

    Everybody who uses it holds a shared lock of the kernel's on the table, which ends with the process.
    """
    if _held(table) != num_places:
        with contextlib.suppress(BlockingIOError):
            fcntl.flock(table, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if _held(table) != num_places:
                os.ftruncate(table, 0)
                os.ftruncate(data, 0)
                os.pwrite(table, _HEADER.pack(_MAGIC, VERSION, BLOCK_BYTES, num_places), 0)
    fcntl.flock(table, fcntl.LOCK_SH)
    held = _held(table)
    if held is None:
        raise OSError("its table is damaged and in use")
    return held


def _held(table: int) -> int | None:
    """Return how many places a table is of; None if it is no table of this version."""
    header = os.pread(table, _HEADER.size, 0)
    if len(header) < _HEADER.size:
        return None
    magic, version, block_bytes, num_places = _HEADER.unpack(header)
    known = magic == _MAGIC and version == VERSION and block_bytes == BLOCK_BYTES and num_places > 0
    return num_places if known else None


def _runs(numbers: list[int]) -> Iterator[tuple[int, int]]:
    """Yield (first, count) of consecutive numbers."""
    start = 0
    for at in range(1, len(numbers) + 1):
        if at == len(numbers) or numbers[at] != numbers[at - 1] + 1:
            yield numbers[start], at - start
            start = at
