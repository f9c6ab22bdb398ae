"""Lists that are compressed as a whole: .gz, .bz2, .xz and .zst, by name.

A file may hold several compressed parts, one after the other. What follows the last one and is no part is a fault: the
readers of the standard library take it for rubbish and end there, which would cut a list without a word.
"""

import bz2
import gzip
import io
import lzma
import zlib
from collections.abc import Callable
from typing import Any, BinaryIO

import pyarrow as pa

COMPRESSIONS = {".gz": "gzip", ".bz2": "bzip2", ".xz": "xz", ".zst": "zstd"}
"""Suffix -> name of the compression."""

_MARKS = {
    b"\x1f\x8b": "gzip",
    b"BZh": "bzip2",
    b"\xfd7zXZ\x00": "xz",
    b"\x28\xb5\x2f\xfd": "zstd",
    b"PAR1": "parquet",
    b"PK\x03\x04": "zip",
}
_READ_BYTES = 1 << 16

OnBytes = Callable[[int], object]

UNREADABLE = (EOFError, zlib.error, lzma.LZMAError, gzip.BadGzipFile)
"""What reading a damaged file raises; an OSError without a number besides, see `is_damage`."""


def compression_of(name: str) -> tuple[str, str]:
    """Return the name without the suffix of its compression, and the compression; "" where there is none."""
    for suffix, compression in COMPRESSIONS.items():
        if name.endswith(suffix):
            return name.removesuffix(suffix), compression
    return name, ""


def no_bytes(count: int) -> None:
    """Ignore a count of bytes."""


def counted(stream: BinaryIO, on_bytes: OnBytes) -> BinaryIO:
    """Return a stream of which every read is told."""
    return stream if on_bytes is no_bytes else io.BufferedReader(_Counted(stream, on_bytes))


def limited(stream: BinaryIO, num_bytes: int | None) -> BinaryIO:
    """Return the first bytes of a stream; with None the stream itself."""
    return stream if num_bytes is None else io.BufferedReader(_Limited(stream, num_bytes))


def decompressed(stream: BinaryIO, compression: str) -> BinaryIO:
    """Return the bytes inside a compressed stream; with `compression` "" the stream itself."""
    if compression == "gzip":
        return gzip.GzipFile(fileobj=stream)  # type: ignore[return-value]
    if compression == "zstd":
        return io.BufferedReader(_Arrow(pa.CompressedInputStream(pa.PythonFile(stream, mode="r"), "zstd")))
    if compression:
        return io.BufferedReader(
            _Parts(stream, bz2.BZ2Decompressor if compression == "bzip2" else lzma.LZMADecompressor)
        )
    return stream


def is_damage(error: BaseException) -> bool:
    """True if an error says that the bytes are damaged, not that they cannot be reached."""
    return isinstance(error, UNREADABLE) or (type(error) is OSError and error.errno is None)


def mark_of(head: bytes) -> str:
    """Return what a file is by its first bytes, if that is a format that cannot be read as text; else ""."""
    return next((name for mark, name in _MARKS.items() if head.startswith(mark)), "")


class _Counted(io.RawIOBase):
    """A stream that tells how many bytes were read of it."""

    def __init__(self, stream: BinaryIO, on_bytes: OnBytes) -> None:
        self._stream, self._on_bytes = stream, on_bytes

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        data = self._stream.read(len(buffer))
        buffer[: len(data)] = data
        self._on_bytes(len(data))
        return len(data)


class _Limited(io.RawIOBase):
    """A stream that ends after so many bytes."""

    def __init__(self, stream: BinaryIO, num_bytes: int) -> None:
        self._stream, self._left = stream, num_bytes

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        data = self._stream.read(min(len(buffer), self._left))
        buffer[: len(data)] = data
        self._left -= len(data)
        return len(data)


class _Arrow(io.RawIOBase):
    """Arrow's stream as a raw one: `read` of it gives what is asked for, or the end."""

    def __init__(self, stream: Any) -> None:
        self._stream = stream

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        data = self._stream.read(len(buffer))
        buffer[: len(data)] = data
        return len(data)


class _Parts(io.RawIOBase):
    """The bytes inside one or more compressed parts; `make` gives a decompressor for each."""

    def __init__(self, stream: BinaryIO, make: Any) -> None:
        self._stream, self._make = stream, make
        self._part = make()
        self._rest = b""
        self._begun = False

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        while True:
            if self._part.eof:
                rest = (self._part.unused_data + self._rest).lstrip(b"\0") or self._next_bytes()
                if not rest:
                    return 0
                self._part, self._rest = self._make(), rest
            if self._part.needs_input and not self._rest:
                self._rest = self._stream.read(_READ_BYTES)
                if not self._rest:
                    if not self._begun:
                        return 0  # an empty file is an empty list, as with gzip
                    raise EOFError("the compressed file is cut")
            self._begun = True
            data = self._part.decompress(self._rest, len(buffer))
            self._rest = b""
            if data:
                buffer[: len(data)] = data
                return len(data)

    def _next_bytes(self) -> bytes:
        """Return what follows the zeros that may pad a file; b"" at its end."""
        while chunk := self._stream.read(_READ_BYTES):
            if rest := bytes(chunk).lstrip(b"\0"):
                return rest
        return b""
