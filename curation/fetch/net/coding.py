"""Undoing content codings: gzip and deflate as servers really send them.

Several gzip members, zeros or rubbish after the last one, a raw deflate stream under the name `deflate`, a check sum
that is cut off: the data is whole in all of these, as a deflate stream marks its own end. Without that mark it is cut.
"""

import zlib
from collections.abc import Callable

from headrace.curation.fetch.errors import FetchError
from headrace.text import shown

# Servers also send `utf-8`, `none`, `binary` as Content-Encoding; such words change nothing.
KNOWN_CODINGS = frozenset(("br", "compress", "deflate", "gzip", "x-compress", "x-gzip", "zstd"))
UNDONE_CODINGS = frozenset(("deflate", "gzip", "x-gzip"))
MAX_CODINGS = 2

_MAX_GZIP_HEADER_BYTES = 64 * 1024
_USUAL_GZIP_HEADER_BYTES = 512
_STEP_BYTES = 4096  # a body may be a million empty members: what waits behind one is not copied for each
_HEADER_CRC, _EXTRA, _NAME, _COMMENT = 2, 4, 8, 16  # flags of RFC 1952


class Inflate:
    """Undo one coding of a body that comes in pieces; never more than `limit` + 1 bytes come out."""

    def __init__(self, coding: str, limit: int) -> None:
        self._coding = coding
        self._left = limit + 1
        self._input = bytearray()
        self._fed = False
        self._step: Callable[[bool], bytes | None] = self._header
        self._kind = ""
        self._stream = zlib.decompressobj(wbits=-15)
        self._crc = self._adler = self._size = 0
        self._whole = False
        """A stream has ended and no other has begun."""

    def feed(self, data: bytes | bytearray) -> bytes:
        """Return what `data` adds. Raises FetchError `protocol` for what is not of this coding."""
        self._input += data
        self._fed = self._fed or bool(data)
        return self._run(last=False)

    def finish(self) -> bytes:
        """Return the rest, after the last piece. Raises FetchError `truncated` if the stream has not ended."""
        rest = self._run(last=True)
        if self._fed and not self._whole and self._left > 0:
            raise FetchError("truncated", f"the {self._coding} body is cut")
        return rest

    def _run(self, *, last: bool) -> bytes:
        parts = []
        while self._left > 0:
            part = self._step(last)
            if part is None:
                break
            parts.append(part)
        return b"".join(parts)

    def _refuse(self) -> FetchError:
        return FetchError("protocol", f"Content-Encoding {self._coding}: the body does not decompress")

    def _header(self, last: bool) -> bytes | None:
        """Pass over the header of a stream; what follows a whole one and is no further gzip member is dropped."""
        if self._whole and (self._kind != "gzip" or not b"\x1f\x8b".startswith(bytes(self._input[:2]))):
            self._input.clear()
            return None
        if len(self._input) < 2:
            if last and self._input and not self._whole:
                raise self._refuse()
            return None
        self._kind = _kind(bytes(self._input[:2]))
        if self._kind == "gzip":
            size = _gzip_header_bytes(bytes(self._input[:_USUAL_GZIP_HEADER_BYTES]))
            if size is None:
                size = _gzip_header_bytes(bytes(self._input[: _MAX_GZIP_HEADER_BYTES + 1]))
            if size is None:
                if len(self._input) > _MAX_GZIP_HEADER_BYTES:
                    raise self._refuse()
                self._whole = False
                return None
            if size < 0:
                raise self._refuse()
            del self._input[:size]
        elif self._kind == "zlib":
            del self._input[:2]
        elif self._coding != "deflate":
            raise self._refuse()
        self._stream = zlib.decompressobj(wbits=-15)
        self._crc, self._adler, self._size, self._whole = 0, 1, 0, False
        self._step = self._body
        return b""

    def _body(self, last: bool) -> bytes | None:  # noqa: ARG002 (a step like the others)
        if not self._input:
            return None
        try:
            part = self._stream.decompress(bytes(self._input[:_STEP_BYTES]), self._left)
        except zlib.error as error:
            raise self._refuse() from error
        self._input[:_STEP_BYTES] = self._stream.unused_data if self._stream.eof else self._stream.unconsumed_tail
        self._left -= len(part)
        self._crc, self._adler = zlib.crc32(part, self._crc), zlib.adler32(part, self._adler)
        self._size += len(part)
        if self._stream.eof:
            self._whole = True
            self._step = self._trailer
        elif not part and not self._input:
            return None
        return part

    def _trailer(self, last: bool) -> bytes | None:
        size = {"gzip": 8, "zlib": 4}.get(self._kind, 0)
        if len(self._input) < size and not last:
            return None
        if size and len(self._input) >= size:
            found = bytes(self._input[:size])
            del self._input[:size]
            gzip = self._crc.to_bytes(4, "little") + (self._size & 0xFFFFFFFF).to_bytes(4, "little")
            if found != (gzip if self._kind == "gzip" else self._adler.to_bytes(4, "big")):
                raise self._refuse()
        else:
            self._input.clear()
        self._step = self._header
        return b""


def decoders(codings: list[str], limit: int) -> list[Inflate]:
    """Return what undoes `codings` (in the order applied), last one first. Raises FetchError `protocol`."""
    named = [word for word in codings if word in KNOWN_CODINGS]
    if not named:
        return []
    if not UNDONE_CODINGS.issuperset(named):
        raise FetchError("protocol", f"Content-Encoding {_plain(codings)} was not asked for")
    if len(named) > MAX_CODINGS:
        raise FetchError("protocol", f"Content-Encoding {_plain(codings)}: over {MAX_CODINGS} codings")
    return [Inflate(word, limit) for word in reversed(named)]


def _plain(codings: list[str]) -> str:
    return shown(", ".join(codings), limit=60).strip("'")


def _kind(start: bytes) -> str:
    if start == b"\x1f\x8b":
        return "gzip"
    # RFC 1950: method 8, a window of at most 32 kB, a multiple of 31, no preset dictionary.
    is_zlib = start[0] & 0x0F == 8 and start[0] >> 4 <= 7 and int.from_bytes(start, "big") % 31 == 0
    return "zlib" if is_zlib and not start[1] & 0x20 else "raw"


def _gzip_header_bytes(data: bytes) -> int | None:
    """Return the size of a gzip header (RFC 1952); None if more of it must come, -1 if it is none."""
    if len(data) < 10:
        return None
    if data[2] != 8 or data[3] & 0xE0:
        return -1
    flags, size = data[3], 10
    if flags & _EXTRA:
        if len(data) < size + 2:
            return None
        size += 2 + int.from_bytes(data[size : size + 2], "little")
    for flag in (_NAME, _COMMENT):
        if flags & flag:
            end = data.find(b"\0", size)
            if end < 0:
                return None
            size = end + 1
    size += 2 if flags & _HEADER_CRC else 0
    return size if len(data) >= size else None
