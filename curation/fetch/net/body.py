"""The body of an answer, piece by piece, and where it ends.

A body that the connection cuts is `truncated`, never shorter in silence. What stands behind the end is another
answer's, or rubbish: it is not read, and the connection is not used again.
"""

import re

from headrace.curation.fetch.errors import FetchError
from headrace.curation.fetch.net.connection import Connection
from headrace.curation.fetch.net.head import Framing
from headrace.text import shown

MAX_CHUNK_LINE_BYTES = 16 * 1024
MAX_TRAILER_LINES = 200

_CHUNK_SIZE = re.compile(rb"([0-9A-Fa-f]{1,16})[ \t]*(?:;[^\r]*)?\r?")
_LAST_CHUNK = re.compile(rb"0{1,16}[ \t]*(?:;[^\r]*)?\r")


class Body:
    """One body on its connection."""

    def __init__(self, connection: Connection, framing: Framing) -> None:
        self.framing = framing
        self._connection = connection
        self._left = framing.length or 0
        """Bytes of the body, or of the chunk that is being read."""
        self._ended = framing.length == 0
        self._odd = framing.odd

    @property
    def declared(self) -> bool:
        """True if the answer says where the body ends, so that a cut is noticed."""
        return self.framing.chunked or self.framing.length is not None

    @property
    def clean(self) -> bool:
        """True if the body was read to a declared end and nothing stands behind it."""
        return self._ended and not self._odd and not self._connection.buffer and not self._connection.ended

    async def piece(self) -> bytes | bytearray:
        """Return what has come; empty at the end. Raises FetchError: `truncated`, or `protocol` for broken chunks."""
        if self._ended:
            return b""
        try:
            if not self.declared:
                return await self._connection.some()
            if self.framing.chunked and not self._left and not await self._next_chunk():
                return b""
            return await self._part()
        except OSError as error:
            raise FetchError("truncated", "the connection broke inside the body", retryable=True) from error

    def drop(self) -> None:
        """Pass over a body that nobody needs, if it has arrived already."""
        if self.framing.length is not None and self.framing.length == len(self._connection.buffer):
            self._connection.buffer.clear()
            self._ended = True

    async def _part(self) -> bytes | bytearray:
        buffer = self._connection.buffer
        if not buffer and not await self._connection.more():
            what = (
                "the end of a chunk" if self.framing.chunked else f"the {self.framing.length} bytes of Content-Length"
            )
            raise FetchError("truncated", f"the connection ended before {what}", retryable=True)
        piece = self._connection.take(min(self._left, len(buffer)))
        self._left -= len(piece)
        if not self._left:
            if self.framing.chunked:
                await self._end_of_chunk()
            else:
                self._ended = True
        return piece

    async def _next_chunk(self) -> bool:
        """Read a chunk's size; False after the last chunk (RFC 9112, section 7.1)."""
        line, complete = await self._connection.line(MAX_CHUNK_LINE_BYTES)
        if not complete and not _LAST_CHUNK.fullmatch(line):
            raise FetchError("truncated", "the connection ended before the last chunk", retryable=True)
        found = _CHUNK_SIZE.fullmatch(line)
        if found is None:
            raise FetchError("protocol", f"the size of a chunk cannot be read: {shown(line[:40])}")
        self._odd = self._odd or not line.endswith(b"\r")
        self._left = int(found[1], 16)
        if not self._left:
            await self._trailer()
        return self._left > 0

    async def _end_of_chunk(self) -> None:
        line, complete = await self._connection.line(MAX_CHUNK_LINE_BYTES)
        if line.rstrip(b"\r"):
            raise FetchError("protocol", f"a chunk is longer than it says: {shown(line[:40])} follows it")
        if not complete:
            raise FetchError("truncated", "the connection ended before the last chunk", retryable=True)
        self._odd = self._odd or line != b"\r"

    async def _trailer(self) -> None:
        """Pass over the lines after the last chunk; they may be missing, as every byte of the body has come."""
        for _ in range(MAX_TRAILER_LINES):
            line, complete = await self._connection.line(MAX_CHUNK_LINE_BYTES)
            if not complete or not line.rstrip(b"\r"):
                self._ended = True
                self._odd = self._odd or line != b"\r"
                return
        raise FetchError("protocol", f"over {MAX_TRAILER_LINES} lines after the last chunk")
