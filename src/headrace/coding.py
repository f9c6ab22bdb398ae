"""Undo the content coding of a whole file that a server compressed: gzip, deflate, brotli, zstd.

Strict, as what is missing at the end would be missing rows of a list: a stream must end with its own mark.
"""

import gzip
import shutil
import tempfile
import zlib
from collections.abc import Iterator
from typing import IO

CODINGS = {"gzip": "gzip", "x-gzip": "gzip", "deflate": "deflate", "br": "br", "zstd": "zstd"}
"""Names of RFC 9110 and RFC 8878 -> the coding."""

# A list `x.csv.gz` is often sent with `Content-Encoding: gzip` although it is compressed once: it stays as it is.
_SUFFIXES = {"gzip": ((".gz", ".tgz"), b"\x1f\x8b"), "zstd": ((".zst",), b"\x28\xb5\x2f\xfd")}
_BLOCK_BYTES = 1 << 20


class CodingError(ValueError):
    """A body that is not what its Content-Encoding says, or not all of it."""


def known_coding(header: str) -> str:
    """Return the coding that a Content-Encoding names; "" for none, and for words that change nothing."""
    words = [word.strip().lower() for word in header.split(",")]
    named = [CODINGS.get(word, word) for word in words if word in CODINGS or word in ("compress", "x-compress")]
    return ", ".join(named)


def decoded(file: IO[bytes], coding: str, path: str) -> None:
    """Replace what `file` holds by what `coding` was applied to. `path` is the file's name on the server.

    Raises CodingError if it is cut or damaged, or of an unknown coding.
    """
    if coding not in CODINGS.values():
        raise CodingError(f"Content-Encoding {coding}, which this headrace does not undo")
    with tempfile.TemporaryFile() as plain:
        for block in _decompress(file, coding):
            plain.write(block)
        plain.seek(0)
        suffixes, mark = _SUFFIXES.get(coding, ((), b""))
        if path.lower().endswith(suffixes) and plain.read(len(mark)) != mark:
            file.seek(0)
            return
        plain.seek(0)
        file.seek(0)
        file.truncate()
        shutil.copyfileobj(plain, file, _BLOCK_BYTES)
        file.seek(0)


def _decompress(file: IO[bytes], coding: str) -> Iterator[bytes]:
    try:
        if not file.read(1):
            raise EOFError("it is empty")
        file.seek(0)
        if coding == "gzip":
            with gzip.GzipFile(fileobj=file) as stream:
                while block := stream.read(_BLOCK_BYTES):
                    yield block
        elif coding == "deflate":
            yield from _inflate(file)
        else:
            yield from _with_arrow(file, "brotli" if coding == "br" else coding)
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise CodingError(f"Content-Encoding {coding}, yet it does not decompress: {error}") from error


def _inflate(file: IO[bytes]) -> Iterator[bytes]:
    start = file.read(2)
    file.seek(0)
    # RFC 9110 means zlib's format; some servers send the bare stream.
    is_zlib = len(start) == 2 and start[0] & 0x0F == 8 and int.from_bytes(start, "big") % 31 == 0
    stream = zlib.decompressobj(wbits=15 if is_zlib else -15)
    while not stream.eof:
        block = file.read(_BLOCK_BYTES)
        if not block:
            raise EOFError("it ends before its end mark")
        yield stream.decompress(block)


def _with_arrow(file: IO[bytes], name: str) -> Iterator[bytes]:
    import pyarrow as pa

    try:
        with pa.CompressedInputStream(pa.PythonFile(_Open(file), mode="r"), name) as stream:
            while block := stream.read(_BLOCK_BYTES):
                yield block
    except (pa.ArrowException, OSError) as error:
        if isinstance(error, OSError) and error.errno is not None:  # of the disk
            raise
        raise EOFError(str(error)) from error


class _Open:
    """A file that Arrow may read and not close."""

    closed = False

    def __init__(self, file: IO[bytes]) -> None:
        self.read = file.read

    def close(self) -> None:
        """Leave it open."""
