"""One request: a URL that was judged, to its body or to where it redirects.

Nothing is believed: the body is capped while it streams and while it decompresses, headers are capped by the parser,
cookies, proxies and credentials do not exist here. The one thing a reader would get wrong: we ask for `identity`, but
some servers compress all the same, so the cap counts bytes after decompression too.
"""

import email.utils
import errno
import os
import ssl
import sys
import time
import zlib
from dataclasses import dataclass
from functools import partial
from typing import Any

import aiohttp
from yarl import URL

from headrace.curation.fetch.check import SNIFF_BYTES, check_start
from headrace.curation.fetch.config import FetchConfig
from headrace.curation.fetch.errors import FetchError
from headrace.curation.fetch.net.address import check_address, literal_address, parse_allowed
from headrace.curation.fetch.net.opt_out import opt_out, user_agent_tokens
from headrace.curation.fetch.net.resolve import CheckedResolver, Lookup, RefusedSocketError, lookup_host, open_socket

ACCEPT = "image/avif,image/webp,image/png,image/jpeg,image/*;q=0.8,*/*;q=0.5"
KEEPALIVE_SECONDS = 2.0  # short, as idle connections to thousands of hosts would use up the file handles

# Before these versions of Python a TLS connection that is being closed when the loop ends leaves its socket open
# (python/cpython#118960); aiohttp then aborts it, if asked to.
TLS_CLOSES_ITSELF = sys.version_info >= (3, 12, 8) and sys.version_info[:3] != (3, 13, 0)

MAX_HEADER_BYTES = 32 * 1024  # of one line; policies of 10 kB are sent with images too

# Servers also send `utf-8`, `none`, `binary` as Content-Encoding; such words change nothing.
_CODINGS = frozenset(("br", "compress", "deflate", "gzip", "x-compress", "x-gzip", "zstd"))
_REDIRECTS = (301, 302, 303, 307, 308)
_OUR_SHORTAGE = (errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ENOBUFS)


@dataclass(frozen=True, slots=True)
class Reply:
    """A body, or a Location."""

    body: bytes = b""
    location: str | None = None


class HttpClient:
    """Requests with checked addresses. Use it in `async with`, inside a running loop."""

    def __init__(
        self, config: FetchConfig, *, lookup: Lookup = lookup_host, ssl_context: ssl.SSLContext | None = None
    ) -> None:
        self._config = config
        self._lookup = lookup
        self._ssl = ssl_context
        self._allowed = parse_allowed(config.allow_private)
        self._tokens = user_agent_tokens(config.user_agent)

    async def __aenter__(self) -> "HttpClient":
        self._resolver = CheckedResolver(self._allowed, lookup=self._lookup)
        connector = aiohttp.TCPConnector(
            resolver=self._resolver,
            use_dns_cache=False,
            limit=0,
            keepalive_timeout=KEEPALIVE_SECONDS,
            ssl=self._ssl if self._ssl is not None else True,
            socket_factory=partial(open_socket, allowed=self._allowed),
            enable_cleanup_closed=not TLS_CLOSES_ITSELF,
        )
        self._session = aiohttp.ClientSession(
            connector=connector,
            cookie_jar=aiohttp.DummyCookieJar(),
            headers={"User-Agent": self._config.user_agent, "Accept": ACCEPT, "Accept-Encoding": "identity"},
            timeout=aiohttp.ClientTimeout(total=None, sock_connect=self._config.connect_seconds),
            auto_decompress=False,
            max_line_size=MAX_HEADER_BYTES,
            max_field_size=MAX_HEADER_BYTES,
            trust_env=False,
        )
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._session.close()
        await self._resolver.close()

    async def get(self, url: URL) -> Reply:
        """Request `url` once. Raises FetchError; OSError if this machine is out of file handles or memory."""
        host, port = url.raw_host or "", url.port or 0
        literal = literal_address(host)
        if literal is not None:
            check_address(literal, port, self._allowed)
        try:
            async with self._session.get(url, allow_redirects=False) as response:
                return await self._read(response)
        except (aiohttp.ClientError, OSError, ValueError) as error:
            raise _as_fetch_error(error) from error

    async def _read(self, response: aiohttp.ClientResponse) -> Reply:
        if self._config.honor_opt_out:
            headers = response.headers
            refusal = opt_out(headers.getall("X-Robots-Tag", []), headers.getall("TDM-Reservation", []), self._tokens)
            if refusal is not None:
                raise FetchError("opted-out", refusal)
        if response.status in _REDIRECTS:
            location = response.headers.get("Location")
            if not location:
                raise FetchError("redirects", f"HTTP {response.status} without a Location")
            return Reply(location=location)
        _check_status(response)
        return Reply(body=await _read_body(response, self._config.max_bytes))


def _check_status(response: aiohttp.ClientResponse) -> None:
    status = response.status
    if status in (200, 203):
        return
    message = f"HTTP {status}"
    if status in (204, 205):
        raise FetchError("empty", message)
    if status == 429 or status == 503:
        raise FetchError(
            "http-429" if status == 429 else "http-5xx", message, retryable=True, wait_seconds=_retry_after(response)
        )
    if 400 <= status < 500:
        raise FetchError("http-4xx", message)
    if 500 <= status < 600:
        raise FetchError("http-5xx", message, retryable=True)
    raise FetchError("protocol", f"{message}, expected 200")


def _retry_after(response: aiohttp.ClientResponse) -> float | None:
    value = response.headers.get("Retry-After", "").strip()
    if value.isascii() and value.isdecimal() and len(value) < 10:
        return float(value)
    try:
        return max(0.0, email.utils.parsedate_to_datetime(value).timestamp() - time.time())
    except (ValueError, TypeError, OverflowError):
        return None


async def _read_body(response: aiohttp.ClientResponse, max_bytes: int) -> bytes:
    length = response.content_length
    if length is not None and length > max_bytes:
        raise FetchError("too-large", f"Content-Length is {length}, over the cap of {max_bytes} bytes")
    body, received, sniffed = bytearray(), 0, False
    inflate = _inflater(response)
    try:
        async for chunk in response.content.iter_any():
            received += len(chunk)
            if inflate is None:
                body += chunk
            else:
                body += inflate.decompress(chunk, max_bytes - len(body) + 1)
            if received > max_bytes or len(body) > max_bytes:
                raise FetchError("too-large", f"the body is over the cap of {max_bytes} bytes")
            if not sniffed and len(body) >= SNIFF_BYTES:
                check_start(bytes(body[:SNIFF_BYTES]))
                sniffed = True
    except zlib.error as error:
        raise FetchError("protocol", "the body does not decompress") from error
    except (aiohttp.ClientPayloadError, aiohttp.ClientOSError, aiohttp.ServerDisconnectedError) as error:
        expected = "the end of the body" if length is None else f"the {length} bytes of Content-Length"
        raise FetchError("truncated", f"the connection ended before {expected}", retryable=True) from error
    if inflate is not None and received and not inflate.eof:
        raise FetchError("truncated", "the compressed body is cut")
    return bytes(body)


def _inflater(response: aiohttp.ClientResponse) -> Any:
    coding = response.headers.get("Content-Encoding", "").strip().lower()
    if _CODINGS.isdisjoint(word.strip() for word in coding.split(",")):
        return None
    if coding in ("gzip", "x-gzip", "deflate"):
        return zlib.decompressobj(wbits=47)  # gzip or zlib, by their headers
    shown = "".join(char if "!" <= char <= "~" else "?" for char in coding[:40])
    raise FetchError("protocol", f"Content-Encoding {shown} was not asked for")


def _as_fetch_error(error: Exception) -> FetchError:
    """Sort what aiohttp raises into our classes; the order matters, as its classes inherit from each other."""
    cause = error.os_error if isinstance(error, aiohttp.ClientConnectorError) else error
    if isinstance(cause, OSError) and cause.errno in _OUR_SHORTAGE:
        raise cause
    if isinstance(cause, RefusedSocketError):
        return FetchError("refused-address", str(cause))
    if isinstance(error, aiohttp.ClientConnectorCertificateError):
        reason = getattr(error.certificate_error, "verify_message", "") or "not valid for this host"
        return FetchError("tls", f"certificate: {reason}")
    if isinstance(error, aiohttp.ClientConnectorSSLError):
        return FetchError("tls", f"TLS: {getattr(error.os_error, 'reason', None) or 'handshake failed'}")
    if isinstance(error, aiohttp.ServerTimeoutError | TimeoutError):
        return FetchError("timeout", "no connection in time", retryable=True)
    if isinstance(error, aiohttp.ServerDisconnectedError):
        return FetchError("connect", "the server closed the connection without an answer", retryable=True)
    if isinstance(error, aiohttp.InvalidURL):
        return FetchError("bad-url", "not a URL that can be requested")
    if isinstance(error, OSError):
        number = cause.errno if isinstance(cause, OSError) else None
        return FetchError("connect", os.strerror(number).lower() if number else "no connection", retryable=True)
    return FetchError("protocol", "the answer cannot be read as HTTP")
