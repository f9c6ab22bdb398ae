"""One request: a URL that was judged, to its body or to where it redirects.

Nothing is believed: the body is capped while it streams and while it decompresses, heads are capped by lines and
bytes, cookies, proxies and credentials do not exist here. We ask for `identity`, but some servers compress all the
same, so the cap counts bytes after decompression too.

A connection is used again only if its last answer was read to an end that nobody can doubt and nothing stood behind
it: what a server sends for one URL must not be taken for another.
"""

import asyncio
import email.utils
import errno
import os
import re
import ssl
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from yarl import URL

from headrace.curation.fetch.check import SNIFF_BYTES, check_start
from headrace.curation.fetch.config import FetchConfig
from headrace.curation.fetch.errors import FetchError
from headrace.curation.fetch.net.address import check_address, literal_address, parse_allowed
from headrace.curation.fetch.net.body import Body
from headrace.curation.fetch.net.coding import decoders
from headrace.curation.fetch.net.connection import Connection, connect
from headrace.curation.fetch.net.head import (
    MAX_HEAD_BYTES,
    MAX_LINE_BYTES,
    MAX_LINES,
    Head,
    framing,
    parse_head,
    parse_status,
)
from headrace.curation.fetch.net.meter import Meter
from headrace.curation.fetch.net.pool import Place, Pool
from headrace.curation.fetch.net.resolve import CheckedResolver, Lookup, RefusedSocketError, lookup_host, open_socket
from headrace.curation.fetch.signals.headers import opt_out, user_agent_tokens

MAX_INTERIM_ANSWERS = 10

_REDIRECTS = (301, 302, 303, 307, 308)
_OUR_SHORTAGE = (errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ENOBUFS)
_REQUEST = re.compile(r"GET [\x21-\x7e]+ HTTP/1\.1\r\nHost: [\x21-\x7e]+\r\n")
_RANGE = re.compile(r"bytes +([0-9]{1,18})-([0-9]{1,18})/([0-9]{1,18})", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Wanted:
    """What is asked for."""

    max_bytes: int
    image: bool = True
    """Judged by its first bytes, refused if it is longer; else a text of a site, of which the first bytes are read."""


@dataclass(frozen=True, slots=True)
class Reply:
    """A body, or a Location."""

    body: bytes = b""
    location: str | None = None
    declared: bool = True
    """The server said how long the body is, so it is as long as that; else it ended with the connection."""


class HttpClient:
    """Requests with checked addresses. Use it in `async with`, inside a running loop."""

    def __init__(
        self,
        config: FetchConfig,
        *,
        lookup: Lookup = lookup_host,
        ssl_context: ssl.SSLContext | None = None,
        on_answer: Callable[[URL, bool], None] = lambda _url, _answered: None,
    ) -> None:
        """`on_answer` hears of everything that came back, with True for a head of HTTP."""
        self._config = config
        self._on_answer = on_answer
        self._lookup = lookup
        self._ssl = ssl_context
        self._allowed = parse_allowed(config.allow_private)
        self._tokens = user_agent_tokens(config.user_agent)
        accept = "" if config.accept is None else f"Accept: {config.accept}\r\n"
        self._lines = f"User-Agent: {config.user_agent}\r\n{accept}Accept-Encoding: identity\r\n\r\n"

    async def __aenter__(self) -> "HttpClient":
        self._resolver = CheckedResolver(self._allowed, lookup=self._lookup)
        self._pool = Pool()
        self._meter = Meter(min_bytes_per_second=self._config.min_bytes_per_second, seconds=self._config.slow_seconds)
        self._watch = asyncio.create_task(self._meter.watch())
        self._make_socket = partial(open_socket, allowed=self._allowed)
        if self._ssl is None:
            self._ssl = ssl.create_default_context()
            self._ssl.set_alpn_protocols(["http/1.1"])
        return self

    async def __aexit__(self, *_: object) -> None:
        self._watch.cancel()
        await self._pool.close()
        await self._resolver.close()

    async def get(self, url: URL, wanted: Wanted | None = None, begun: asyncio.Event | None = None) -> Reply:
        """Request `url` once; an image, if `wanted` does not say otherwise. `begun` is set when an answer begins.

        Raises FetchError; OSError if this machine is out of file handles or memory.
        """
        host, port = url.raw_host or "", url.port or 0
        literal = literal_address(host)
        if literal is not None:
            check_address(literal, port, self._allowed)
        request = self._request(url)
        wanted = wanted or Wanted(self._config.max_bytes)
        used = self._pool.take(_place(url))
        if used is not None:
            try:
                return await self._exchange(url, request, used, wanted, begun)
            except _StaleConnectionError:
                pass  # it was closed, or spoke before it was asked; a GET may be sent twice
        return await self._exchange(url, request, await self._connect(url), wanted, begun)

    def _request(self, url: URL) -> bytes:
        first = f"GET {url.raw_path_qs} HTTP/1.1\r\nHost: {url.host_port_subcomponent}\r\n"
        if not _REQUEST.fullmatch(first):
            raise FetchError("bad-url", "the URL cannot stand in a request")
        return (first + self._lines).encode()

    async def probe(self, url: URL) -> bool:
        """True if the host of `url` can be looked up anew and connected to."""
        host, port = url.raw_host or "", url.port or 0
        try:
            literal = literal_address(host)
            addresses = [literal] if literal is not None else await self._resolver.resolve(host, port, anew=True)
            async with asyncio.timeout(self._config.connect_seconds):
                connection = await connect(addresses, port, make_socket=self._make_socket, tls=None, host=host)
        except (FetchError, OSError):
            return False
        connection.abort()
        return True

    async def _connect(self, url: URL) -> Connection:
        host, port = url.raw_host or "", url.port or 0
        literal = literal_address(host)
        addresses = [literal] if literal is not None else await self._resolver.resolve(host, port)
        try:
            async with asyncio.timeout(self._config.connect_seconds):
                connection = await connect(
                    addresses,
                    port,
                    make_socket=self._make_socket,
                    tls=self._ssl if url.scheme == "https" else None,
                    host=host.rstrip("."),
                )
        except OSError as error:  # TimeoutError and ssl.SSLError too
            if isinstance(error, ssl.SSLError | ConnectionRefusedError):
                self._on_answer(url, False)
            raise _connect_error(error) from error
        self._pool.add(connection)
        return connection

    async def _exchange(
        self, url: URL, request: bytes, connection: Connection, wanted: Wanted, begun: asyncio.Event | None
    ) -> Reply:
        """Ask, and read the answer; the connection goes back to the pool if it stands at a clean end."""
        body = None
        try:
            with self._meter.watching(url.raw_host or "", connection):
                connection.write(request)
                head = await _read_head(connection)
                self._on_answer(url, True)
                if begun is not None:
                    begun.set()
                body = Body(connection, framing(head))
                return await self._read(head, body, wanted)
        except FetchError as error:
            # What stands where it should not may be the rest of the answer before.
            error.retryable = error.retryable or (connection.reused and error.error_class == "protocol")
            raise
        finally:
            if body is not None and body.clean and head.keeps_open and not head.odd:
                self._pool.give_back(_place(url), connection)
            else:
                self._pool.end(connection)

    async def _read(self, head: Head, body: Body, wanted: Wanted) -> Reply:
        if wanted.image:
            refusal = opt_out(head.values, self._tokens, self._config.obeyed)
            if refusal is not None:
                raise FetchError("opted-out", refusal)
        if head.status in _REDIRECTS:
            location = next(iter(head.values("location")), "")
            if not location:
                raise FetchError("redirects", f"HTTP {head.status} without a Location")
            body.drop()
            return Reply(location=location)
        _check_status(head, body)
        data = await _read_body(head, body, wanted)
        if head.status == 206:
            _check_range(head, len(data))
        return Reply(body=data, declared=body.declared)


class _StaleConnectionError(Exception):
    """A connection that was used again gave no answer that can be read."""


def _place(url: URL) -> Place:
    return url.scheme, url.raw_host or "", url.port or 0


async def _read_head(connection: Connection) -> Head:
    """Return the final head. Raises FetchError, and _StaleConnectionError on a connection that is used again."""
    try:
        for _ in range(MAX_INTERIM_ANSWERS + 1):
            head = await _one_head(connection)
            if connection.reused and head.status == 408:
                raise _StaleConnectionError
            if head.status >= 200:
                return head
            if head.status == 101:
                raise FetchError("protocol", "HTTP 101: the server speaks another protocol from here on")
        raise FetchError("protocol", f"over {MAX_INTERIM_ANSWERS} interim answers")
    except OSError as error:
        if connection.reused:
            raise _StaleConnectionError from error
        raise FetchError("connect", _reason(error), retryable=True) from error
    except FetchError as error:
        if connection.reused and not error.is_slow:
            raise _StaleConnectionError from error
        raise


async def _one_head(connection: Connection) -> Head:
    lines: list[bytes] = []
    size = 0
    while True:
        line, complete = await connection.line(MAX_LINE_BYTES)
        size += len(line) + 1
        if not complete:
            if not lines and not line:
                raise FetchError("connect", "the server closed the connection without an answer", retryable=True)
            if not lines:
                parse_status(line)  # says so if it is no HTTP at all
            raise FetchError("truncated", "the connection ended inside the headers", retryable=True)
        if not lines:
            parse_status(line)  # before more is read from what may be no HTTP server
        elif not line.rstrip(b"\r"):
            return parse_head([*lines, line])
        lines.append(line)
        if len(lines) > MAX_LINES or size > MAX_HEAD_BYTES:
            raise FetchError("protocol", f"the headers have over {MAX_LINES} lines or {MAX_HEAD_BYTES} bytes")


def _check_status(head: Head, body: Body) -> None:
    """Return for an answer whose body is what was asked for; any other is passed over. Raises FetchError."""
    status, message = head.status, f"HTTP {head.status}"
    if status in (204, 205):
        raise FetchError("empty", message)
    if 200 <= status < 300 and (status != 206 or head.values("content-range")):
        return
    body.drop()
    if status == 429 or status == 503:
        busy = FetchError(
            "http-429" if status == 429 else "http-5xx", message, retryable=True, wait_seconds=_retry_after(head)
        )
        busy.is_refusal = True
        raise busy
    if 400 <= status < 500:
        raise FetchError("http-4xx", message)
    if 500 <= status < 600:
        raise FetchError("http-5xx", message, retryable=True)
    raise FetchError("protocol", f"{message}, expected 200")


def _check_range(head: Head, num_bytes: int) -> None:
    """Refuse a part of a file: nobody asked for one."""
    for value in head.values("content-range"):
        found = _RANGE.fullmatch(value.strip())
        if found is None or int(found[1]) != 0 or int(found[2]) + 1 != int(found[3]) or int(found[3]) != num_bytes:
            raise FetchError("protocol", "HTTP 206: a part of the file that nobody asked for, expected all of it")


def _retry_after(head: Head) -> float | None:
    value = next(iter(head.values("retry-after")), "")
    if value.isascii() and value.isdecimal() and len(value) < 10:
        return float(value)
    try:
        return max(0.0, email.utils.parsedate_to_datetime(value).timestamp() - time.time())
    except (ValueError, TypeError, OverflowError):
        return None


async def _read_body(head: Head, body: Body, wanted: Wanted) -> bytes:
    length, max_bytes = body.framing.length, wanted.max_bytes
    if wanted.image and length is not None and length > max_bytes:
        raise FetchError("too-large", f"Content-Length is {length}, over the cap of {max_bytes} bytes")
    layers = decoders([*head.words("content-encoding"), *body.framing.codings], max_bytes)
    data, received, sniffed = bytearray(), 0, False
    while piece := await body.piece():
        received += len(piece)
        for layer in layers:
            piece = layer.feed(piece)
        data += piece
        if received > max_bytes or len(data) > max_bytes:
            if not wanted.image:
                return bytes(data[:max_bytes])
            raise FetchError("too-large", f"the body is over the cap of {max_bytes} bytes")
        if wanted.image and not sniffed and len(data) >= SNIFF_BYTES:
            check_start(bytes(data[:SNIFF_BYTES]))
            sniffed = True
    try:
        rest = b""
        for layer in layers:
            rest = layer.feed(rest) + layer.finish()
    except FetchError as error:
        error.retryable = error.error_class == "truncated" and not body.declared
        raise
    data += rest
    if len(data) > max_bytes:
        raise FetchError("too-large", f"the body is over the cap of {max_bytes} bytes")
    return bytes(data)


def _connect_error(error: OSError) -> FetchError:
    """Say why there is no connection; raises `error` itself if this machine is short of something."""
    if error.errno in _OUR_SHORTAGE:
        raise error
    if isinstance(error, RefusedSocketError):
        return FetchError("refused-address", str(error))
    if isinstance(error, ssl.SSLCertVerificationError):
        return FetchError("tls", f"certificate: {error.verify_message or 'not valid for this host'}")
    if isinstance(error, ssl.SSLError):
        return FetchError("tls", f"TLS: {error.reason or 'handshake failed'}")
    if isinstance(error, TimeoutError) and not error.errno:
        return FetchError("timeout", "no connection in time", retryable=True)
    return FetchError("connect", _reason(error), retryable=True)


def _reason(error: OSError) -> str:
    return os.strerror(error.errno).lower() if error.errno else "no connection"
