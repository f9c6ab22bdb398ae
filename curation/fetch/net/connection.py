"""One connection to one checked address: bytes out, bytes in, by lines or as they come.

Reading stops while nobody takes what arrived, so a fast server fills one buffer and no more. A connection ends by
`abort`: the polite end of TLS would outlive the loop of its unit.
"""

import asyncio
import contextlib
import socket
import ssl
from collections.abc import Callable, Sequence
from typing import Any

from aiohappyeyeballs import start_connection

from headrace.curation.fetch.errors import FetchError
from headrace.curation.fetch.net.address import Address

BUFFER_BYTES = 256 * 1024
STAGGER_SECONDS = 0.25  # RFC 8305: when the next address of a name is tried beside one that does not answer

SocketFactory = Callable[[tuple[Any, ...]], socket.socket]


class Connection(asyncio.Protocol):
    """The buffer between a socket and its one reader."""

    def __init__(self) -> None:
        self.buffer = bytearray()
        self.num_received = 0
        """Bytes that have come since it was opened."""
        self.reused = False
        """It has given an answer before."""
        self.ended = False
        """Nothing more will arrive; the buffer may still hold something."""
        self._error: Exception | None = None
        self._transport: asyncio.Transport | None = None
        self._socket_transport: asyncio.BaseTransport | None = None
        self._paused = False
        self._waiter: asyncio.Future[None] | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Called by the loop; not again for TLS."""
        assert isinstance(transport, asyncio.Transport)
        self._transport = self._socket_transport = transport

    async def start_tls(self, context: ssl.SSLContext, host: str) -> None:
        """Shake hands as `host`. Raises ssl.SSLError, or OSError if the connection breaks."""
        assert self._transport is not None
        loop = asyncio.get_running_loop()
        transport = await loop.start_tls(self._transport, self, context, server_hostname=host)
        if transport is None:
            raise ConnectionAbortedError("the connection ended in the TLS handshake")
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        """Called by the loop."""
        self.buffer += data
        self.num_received += len(data)
        if len(self.buffer) > BUFFER_BYTES and not self._paused and self._transport is not None:
            self._transport.pause_reading()
            self._paused = True
        self._wake()

    def eof_received(self) -> bool:
        """Called by the loop."""
        self.ended = True
        self._wake()
        return False

    def connection_lost(self, error: Exception | None) -> None:
        """Called by the loop."""
        self.ended, self._error = True, error
        self._wake()

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    def fail(self, error: Exception) -> None:
        """Raise `error` for whoever waits for more."""
        self._error = error
        self._wake()

    def write(self, data: bytes) -> None:
        """Send `data`; it is small, so nobody waits for it to leave."""
        assert self._transport is not None
        self._transport.write(data)

    async def more(self) -> bool:
        """Wait until the buffer has grown; False at the end. Raises OSError if the connection broke."""
        known = len(self.buffer)
        while len(self.buffer) == known:
            if self._error is not None:
                raise self._error
            if self.ended:
                return False
            if self._paused and self._transport is not None:
                self._paused = False
                self._transport.resume_reading()
            self._waiter = asyncio.get_running_loop().create_future()
            try:
                await self._waiter
            finally:
                self._waiter = None
        return True

    async def some(self) -> bytes | bytearray:
        """Return what has arrived, at least one byte; empty at the end."""
        if not self.buffer and not await self.more():
            return b""
        return self.take(len(self.buffer))

    async def line(self, limit: int) -> tuple[bytes, bool]:
        """Return the next line without its line feed, and whether it had one. Raises FetchError over `limit` bytes."""
        seen = 0
        while True:
            at = self.buffer.find(b"\n", seen)
            if at > limit or (at < 0 and len(self.buffer) > limit):
                raise FetchError("protocol", f"a header line has over {limit} bytes")
            if at >= 0:
                return bytes(self.take(at + 1)[:-1]), True
            seen = len(self.buffer)
            if not await self.more():
                return bytes(self.take(len(self.buffer))), False

    def take(self, count: int) -> bytes | bytearray:
        """Return and remove the first bytes of the buffer."""
        if count == len(self.buffer):  # most of a large body: not copied
            taken, self.buffer = self.buffer, bytearray()
            return taken
        taken = self.buffer[:count]
        del self.buffer[:count]
        return taken

    def abort(self) -> None:
        """End the connection at once."""
        for transport in (self._transport, self._socket_transport):
            if isinstance(transport, asyncio.Transport):
                transport.abort()


async def connect(
    addresses: Sequence[Address], port: int, *, make_socket: SocketFactory, tls: ssl.SSLContext | None, host: str
) -> Connection:
    """Connect to the first of `addresses` that answers. Raises OSError, ssl.SSLError among them.

    `make_socket` is the last gate: it refuses an address that must not be connected to.
    """
    targets = [_target(address, port) for address in addresses]
    found = await start_connection(
        targets, happy_eyeballs_delay=STAGGER_SECONDS, interleave=1, socket_factory=make_socket
    )
    found.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, True)
    connection = Connection()
    with contextlib.ExitStack() as undo:
        undo.callback(found.close)
        await asyncio.get_running_loop().create_connection(lambda: connection, sock=found)
        undo.pop_all()
        undo.callback(connection.abort)
        if tls is not None:
            await connection.start_tls(tls, host)
        undo.pop_all()
    return connection


def _target(address: Address, port: int) -> tuple[Any, ...]:
    if address.version == 6:
        return (socket.AF_INET6, socket.SOCK_STREAM, socket.IPPROTO_TCP, "", (str(address), port, 0, 0))
    return (socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP, "", (str(address), port))
