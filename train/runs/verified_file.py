"""A safetensors file of a checkpoint, read by range, each block checked against its digest before it counts.

It is read, never mapped: what is removed later is gone. Everything in it is taken for hostile: names, shapes and
places are checked before memory is asked for.
"""

import hashlib
import json
import math
import os
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from headrace.train.runs.tensor_file import BLOCK_BYTES, DIGEST_BYTES, DTYPES, ROWS_KEY, Facts, Rows

# One read asks for at most so many blocks.
RUN_BLOCKS = 16
MAX_HEADER_BYTES = 64 << 20
MAX_DIMENSIONS = 16


class DamagedError(ValueError):
    """A checkpoint is not what was written; the one before may be whole."""


@dataclass(frozen=True, slots=True)
class Stored:
    """Rows of one tensor, and where in the file their bytes begin."""

    rows: Rows
    begin: int


class VerifiedFile:
    """An open file whose bytes are checked as they are read. Raises DamagedError for those that are others."""

    def __init__(self, path: Path, facts: Facts) -> None:
        self.path, self.facts = path, facts
        self.bytes_read = 0
        self._handle = -1
        # What was read last: neighbours share a block.
        self._run, self._first = bytearray(), 0

    def open(self) -> None:
        """Open the file and look at its size."""
        try:
            self._handle = os.open(self.path, os.O_RDONLY)
            found = os.fstat(self._handle).st_size
        except OSError as error:
            raise self._damaged(error.strerror or str(error)) from error
        expected = self.facts.num_bytes
        if found != expected:
            raise self._damaged(f"it has {found:,} bytes, expected {expected:,}")
        digests = self.facts.digests
        if digests is not None and len(digests) != -(-expected // BLOCK_BYTES) * DIGEST_BYTES:
            raise self._damaged(f"state.json has not one digest for each of its blocks of {BLOCK_BYTES} bytes")

    def close(self) -> None:
        """Close the file."""
        if self._handle >= 0:
            os.close(self._handle)
            self._handle = -1

    def read_into(self, out: memoryview, begin: int) -> None:
        """Fill `out` with the bytes from `begin` on."""
        done = 0
        while done < len(out):
            place = begin + done
            self._load_block(place // BLOCK_BYTES, -(-(begin + len(out)) // BLOCK_BYTES))
            inside = place - self._first * BLOCK_BYTES
            part = memoryview(self._run)[inside : inside + len(out) - done]
            out[done : done + len(part)] = part
            done += len(part)

    def _load_block(self, first: int, end: int) -> None:
        """Have block `first` at hand, and those behind it up to `end` as far as one read goes."""
        if self._first <= first < self._first + -(-len(self._run) // BLOCK_BYTES):
            return
        begin = first * BLOCK_BYTES
        size = min((min(end, first + RUN_BLOCKS)) * BLOCK_BYTES, self.facts.num_bytes) - begin
        if size <= 0:
            raise self._damaged(f"it ends before byte {begin:,}")
        if len(self._run) != size:
            self._run = bytearray(size)
        self._first, view, done = first, memoryview(self._run), 0
        try:
            while done < size:
                got = os.preadv(self._handle, [view[done:]], begin + done)
                if not got:
                    raise self._damaged(f"it ends at byte {begin + done:,}")
                done += got
        except OSError as error:
            raise self._damaged(error.strerror or str(error)) from error
        self.bytes_read += size
        self._check(view, first)

    def _check(self, view: memoryview, first: int) -> None:
        if self.facts.digests is None:
            return
        for number, start in enumerate(range(0, len(view), BLOCK_BYTES), first):
            digest = hashlib.sha256(view[start : start + BLOCK_BYTES]).digest()[:DIGEST_BYTES]
            if digest != self.facts.digests[number * DIGEST_BYTES :][:DIGEST_BYTES]:
                self._run, self._first = bytearray(), 0
                raise self._damaged(f"the bytes from {number * BLOCK_BYTES:,} on are not those that were written")

    def read_header(self) -> dict[str, Stored]:
        """Return what the file holds."""
        length = bytearray(8)
        if self.facts.num_bytes < 8:
            raise self._damaged("not a safetensors file")
        self.read_into(memoryview(length), 0)
        (size,) = struct.unpack("<Q", length)
        if size > min(MAX_HEADER_BYTES, self.facts.num_bytes - 8):
            raise self._damaged("not a safetensors file: its header is longer than the file may be")
        text = bytearray(size)
        self.read_into(memoryview(text), 8)
        try:
            return _parsed(json.loads(text), body=8 + size, end=self.facts.num_bytes)
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
            raise self._damaged(f"not a safetensors file: {str(error)[:200]}") from error

    def _damaged(self, why: str) -> DamagedError:
        return DamagedError(f"{self.path}: damaged checkpoint: {why}")


@contextmanager
def opened(file: VerifiedFile) -> Iterator[VerifiedFile]:
    """Have the file open for as long as the context lasts."""
    try:
        file.open()
        yield file
    finally:
        file.close()


def _parsed(header: dict[str, Any], *, body: int, end: int) -> dict[str, Stored]:
    metadata = header.pop("__metadata__", {})
    partial = json.loads(metadata.get(ROWS_KEY, "{}"))
    found = {}
    for name, entry in header.items():
        dtype, shape = DTYPES[entry["dtype"]], entry["shape"]
        begin, stop = entry["data_offsets"]
        if not all(type(size) is int and size >= 0 for size in (*shape, begin, stop)) or len(shape) > MAX_DIMENSIONS:
            raise ValueError(f"{name[:80]!r} has the shape {str(shape)[:80]}")
        first, total = partial.get(name, (0, None))
        is_part = type(first) is int and type(total) is int and shape and 0 <= first <= total - shape[0]
        if name in partial and not is_part:
            raise ValueError(f"{name[:80]!r} has rows from {first} of {total}")
        rows = Rows(dtype, tuple(shape), first, total)
        if stop - begin != rows.num_bytes or body + stop > end:
            raise ValueError(f"{name[:80]!r} does not lie inside the file")
        found[name] = Stored(rows, body + begin)
    return found


def whole_shape(rows: Rows) -> tuple[int, ...]:
    """Return the shape of the whole tensor that `rows` are a part of."""
    return rows.shape if rows.total is None else (rows.total, *rows.shape[1:])


def row_bytes(rows: Rows) -> int:
    """Return the bytes of one row."""
    return math.prod(rows.shape[1:]) * rows.dtype.itemsize
