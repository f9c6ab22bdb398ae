"""Chunks of samples, read ahead by a pool of I/O threads.

A chunk is the part of a lane's window that lies together on disk; it is read once, checked, and given out sample by
sample as the order asks. A damaged sample is data here (`Payload.fault`), not an error; only a fault of the way raises.
What does not fit its checksum is read again before it is judged: proxies and disks have bad moments.
"""

import logging
import threading
import time
import zlib
from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from headrace import urlpath
from headrace.pipeline.catalog import OpenedSource, ShardRows
from headrace.pipeline.clock import StageClock
from headrace.pipeline.errors import SampleError
from headrace.pipeline.threads import DaemonPool
from headrace.shards.members import MAX_IMAGE_BYTES
from headrace.shards.payloads import LOCAL_GAP_BYTES, REMOTE_GAP_BYTES, coalesce
from headrace.shards.ranges import RangeReader
from headrace.text import without_secrets

log = logging.getLogger(__name__)

SECOND_LOOK_SECONDS = (0.0, 0.5, 2.0)
"""Pauses before each further look at a sample that cannot be right."""

CLOSE_SECONDS = 1.0
"""How long closing waits for reads of this machine's disks; all others end at once."""

IntArray = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Payload:
    """The compressed image of one sample, or why there is none."""

    rows: ShardRows
    row: int
    data: bytes
    fault: SampleError | None = None
    version: str = ""
    """Of the shard's content, for the cache."""

    @property
    def key(self) -> str:
        """The sample's key."""
        return str(self.rows.key[self.row].as_py())

    @property
    def where(self) -> tuple[str, int]:
        """Shard and byte offset."""
        return self.rows.url, int(self.rows.offset[self.row])


class ChunkReader:
    """Reads samples of the sources by a pool of threads; closes `ranges` with itself."""

    def __init__(
        self,
        sources: Sequence[OpenedSource],
        ranges: RangeReader,
        *,
        io_threads: int,
        verify_crc: bool,
        clock: StageClock | None = None,
    ) -> None:
        self.sources = sources
        self.clock = clock or StageClock()
        self.num_open = 0
        """Chunks that were submitted and are not read yet."""
        self._lock = threading.Lock()
        self._ranges = ranges
        self._verify_crc = verify_crc
        self._pool = DaemonPool(io_threads, "headrace-read")

    def submit(self, source: int, samples: IntArray) -> "Future[dict[int, Payload]]":
        """Read `samples` of a source in the background; the answer holds each of them."""
        with self._lock:
            self.num_open += 1
        return self._pool.submit(self._read_chunk, source, samples, time.perf_counter())

    def read(self, source: int, samples: IntArray) -> dict[int, Payload]:
        """Read `samples` of a source now. Raises ReadError."""
        opened = self.sources[source]
        shard, row = opened.locate(samples)
        result: dict[int, Payload] = {}
        for one in np.unique(shard):
            here = np.flatnonzero(shard == one)
            begun = time.perf_counter()
            rows = opened.rows(int(one), row[here], self._ranges.read_bytes)
            try:
                payloads = self._read_rows(rows, opened.dataset.version(int(one)))
            except OSError as error:
                if isinstance(error.__cause__ or error, FileNotFoundError):
                    opened.dataset.check_unchanged(self._ranges.read_bytes, error)
                raise
            if any(payload.fault is not None for payload in payloads):
                opened.dataset.check_unchanged(self._ranges.read_bytes)
            self.clock.note_read(rows.url, time.perf_counter() - begun)
            result.update(zip(samples[here].tolist(), payloads, strict=True))
        return result

    def interrupt(self) -> None:
        """Make reads that wait give up, in whichever thread."""
        self._ranges.interrupt()

    def close(self) -> None:
        """Drop reads that have not begun, wait for the others, and close the connections; no other thread reads now.

        A read that hangs in the file system of this machine (a dead file server) is left behind.
        """
        self._ranges.interrupt()
        if self._pool.close(CLOSE_SECONDS):
            self._ranges.close()
        else:  # whose files stay open, as the number of a closed one would soon be another's
            log.warning("a read of the file system does not end; it is left behind")

    def _read_chunk(self, source: int, samples: IntArray, asked: float) -> dict[int, Payload]:
        begun = time.perf_counter()
        self.clock.tally("queue").add(begun - asked)
        try:
            payloads = self.read(source, samples)
        finally:
            with self._lock:
                self.num_open -= 1
        num_bytes = sum(len(payload.data) for payload in payloads.values())
        self.clock.tally("read").add(time.perf_counter() - begun, num_bytes)
        return payloads

    def read_again(self, payload: Payload) -> Payload | None:
        """Read a sample again that does not decode; None if the same bytes come, or had their checksum.

        Raises ReadError.
        """
        rows, row = payload.rows, payload.row
        if payload.fault is not None or (self._verify_crc and rows.crc32[row] >= 0):
            return None
        data = self._read_fresh(rows, row, payload.version)
        fault = self._fault_of(rows, row, data)
        return None if data == payload.data else Payload(rows, row, b"" if fault else data, fault, payload.version)

    def _read_rows(self, rows: ShardRows, version: str) -> list[Payload]:
        numbers = range(len(rows.offset))
        good = [row for row in numbers if rows.offset[row] >= 0 and 0 < rows.size[row] <= MAX_IMAGE_BYTES]
        spans = [(int(rows.offset[row]), int(rows.size[row])) for row in good]
        found: dict[int, Payload] = {}
        gap = LOCAL_GAP_BYTES if urlpath.is_local(rows.url) else REMOTE_GAP_BYTES
        for group in coalesce(spans, gap):
            start = spans[group[0]][0]
            size = max(sum(spans[number]) for number in group) - start
            data = self._ranges.read(rows.url, start, size, version=version)
            damaged = []
            for number in group:
                row, (offset, size) = good[number], spans[number]
                part = data[offset - start : offset - start + size]
                fault = self._fault_of(rows, row, part)
                found[row] = Payload(rows, row, b"" if fault else part, fault, version)
                if fault is not None:
                    damaged.append((row, part))
            found.update(self._look_again(rows, damaged, version))
        return [found.get(row) or Payload(rows, row, b"", SampleError("size", _no_span(rows, row))) for row in numbers]

    def _look_again(self, rows: ShardRows, damaged: Sequence[tuple[int, bytes]], version: str) -> dict[int, Payload]:
        """Read the damaged samples of one request again, each alone; return them as they are then."""
        found: dict[int, Payload] = {}
        pauses: Sequence[float] = SECOND_LOOK_SECONDS
        for row, data in damaged:
            data, fault = self._settled(rows, row, data, pauses, version)
            found[row] = Payload(rows, row, b"" if fault else data, fault, version)
            if fault is not None:
                pauses = SECOND_LOOK_SECONDS[:1]  # waiting did not help the first: the others lie beside it
        num_whole = sum(payload.fault is None for payload in found.values())
        if num_whole:
            log.warning(
                "%s: %d samples from byte %d on did not fit their checksum; read again, they are whole",
                without_secrets(rows.url),
                num_whole,
                rows.offset[damaged[0][0]],
            )
        return found

    def _settled(
        self, rows: ShardRows, row: int, data: bytes, pauses: Sequence[float], version: str
    ) -> tuple[bytes, SampleError | None]:
        """Return what a sample is after further looks, and what is wrong with it."""
        for pause in pauses:
            if self._ranges.pause(pause):
                break
            before, data = data, self._read_fresh(rows, row, version)
            if self._fault_of(rows, row, data) is None:
                break
            # The same twice is how it lies there; but zeros are also what a proxy sends that has lost a block.
            is_hole = bool(data) and data.count(0) == len(data) and not urlpath.is_local(rows.url)
            if data == before and not is_hole:
                break
        return data, self._fault_of(rows, row, data)

    def _read_fresh(self, rows: ShardRows, row: int, version: str) -> bytes:
        return self._ranges.read(rows.url, int(rows.offset[row]), int(rows.size[row]), version=version, fresh=True)

    def _fault_of(self, rows: ShardRows, row: int, data: bytes) -> SampleError | None:
        if len(data) != rows.size[row]:
            return SampleError("size", f"the shard ends after {len(data)} of {rows.size[row]} bytes")
        expected = int(rows.crc32[row])
        if self._verify_crc and expected >= 0 and (got := zlib.crc32(data)) != expected:
            return SampleError("crc", f"crc32 is {got:#010x}, the index says {expected:#010x}")
        return None


def _no_span(rows: ShardRows, row: int) -> str:
    return f"the index says {rows.size[row]} bytes at {rows.offset[row]}; an image has 1 to {MAX_IMAGE_BYTES} bytes"
