"""Read files over http(s): ranges, whole files, folders, from whatever an ordinary server can and cannot do.

Servers ignore `Range`, compress unasked, send chunks, tell no length, know no HEAD. So only GET is used, a range is
believed only with its Content-Range, and a body counts only once its end was seen: a length, a last chunk, the end mark
of a compressed stream. A body with none of these is read twice and compared.
"""

import base64
import contextlib
import hashlib
import html
import http.client
import re
import select
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property, partial
from typing import IO
from urllib.parse import quote, unquote, urljoin, urlsplit

from headrace.coding import CodingError, decoded, known_coding
from headrace.patience import LastingError, Stop, apart
from headrace.text import one_line, shown, without_secrets

HTTP = ("http://", "https://")
MAX_REDIRECTS = 5
BLOCK_BYTES = 1 << 20
TOTAL_TIMEOUTS = 10
"""A range may take so many times the timeout of one wait: a server that drips is no better than one that stalls."""
MAX_IDLE_CONNECTIONS = 32
MAX_LISTING_BYTES = 64 << 20
MAX_REASON_LETTERS = 100

# What may stand in the target of a request: a shard's name may hold spaces, or letters beyond ASCII.
_IN_TARGET = "%/:=&?~+!$,;'@()*[]|"
_CONTENT_RANGE = re.compile(r"bytes (\d+)-(\d+)/(\d+|\*)")
_LINK = re.compile(r"<a\s[^>]*?href\s*=\s*(?:\"([^\"]*)\"|'([^']*)'|([^\s>]+))", re.IGNORECASE)


class StatusError(OSError):
    """An answer that is no success; `headrace.patience` knows from `status` whether it may be another one later."""

    def __init__(self, response: http.client.HTTPResponse) -> None:
        super().__init__(f"the server answered {response.status} {one_line(response.reason)[:MAX_REASON_LETTERS]}")
        self.status, self.headers = response.status, response.headers


class MissingError(StatusError, FileNotFoundError):
    """404 or 410."""


class DeniedError(StatusError, PermissionError):
    """401, 403 or 407."""


class NoRangesError(LastingError):
    """The server cannot send a range of this file; the whole of it may be read."""


@dataclass(frozen=True, slots=True)
class Answer:
    """The head of an answer, after redirects; the body is read from `response`."""

    url: str
    response: http.client.HTTPResponse

    @property
    def coding(self) -> str:
        """The content coding; "" where there is none."""
        return known_coding(self.response.getheader("Content-Encoding") or "")

    @property
    def length(self) -> int | None:
        """The bytes of the body as they come over the wire; None where they are not told."""
        return self.response.length

    @property
    def is_framed(self) -> bool:
        """True if the end of the body can be told from a cut."""
        return self.response.length is not None or bool(self.response.chunked)


@dataclass(frozen=True, kw_only=True, slots=True)
class Ask:
    """How one range is asked for."""

    fresh: bool = False
    """Past the caches of proxies."""
    stop: Stop | None = None
    """Ends this read only; None = the client's."""
    on_bytes: Callable[[int], object] | None = None
    """Is told how many bytes have come, as they come."""


PLAINLY = Ask()


class Client:
    """Connections to http(s) servers, shared by threads. `stop` ends whatever waits in them."""

    def __init__(self, *, timeout_seconds: float, stop: Stop | None = None) -> None:
        self._timeout = timeout_seconds
        self._stop = stop or Stop()
        self._idle: list[tuple[tuple[str, str], http.client.HTTPConnection]] = []
        self._lock = threading.Lock()

    def close(self) -> None:
        """Close the connections that nobody uses."""
        with self._lock:
            idle, self._idle = self._idle, []
        for _, connection in idle:
            connection.close()

    def read_range(self, url: str, offset: int, size: int, ask: Ask = PLAINLY) -> tuple[bytes, int | None]:
        """Return `size` bytes from `offset`, fewer only where the file ends, and the file's size if it was told.

        Raises NoRangesError if the server sends something else than this range.
        """
        deadline = time.monotonic() + TOTAL_TIMEOUTS * self._timeout
        headers = {"Range": f"bytes={offset}-{offset + size - 1}"}
        if ask.fresh:
            headers["Cache-Control"] = "no-cache"
        with self._get(url, headers, ask.stop) as answer:
            return _take_range(answer, offset, size, _Body(deadline, ask.on_bytes))

    def size_of(self, url: str) -> int | None:
        """Return the size of a file; None where only reading it would tell."""
        with self._get(url, {"Range": "bytes=0-0"}) as answer:
            return _told_size(answer)

    def stamp_of(self, url: str) -> tuple[int, str]:
        """Return (size, what the server says changes with the content); 0 where the size is not told."""
        with self._get(url, {"Range": "bytes=0-0"}) as answer:
            stamp = answer.response.getheader("ETag") or answer.response.getheader("Last-Modified") or ""
            return _told_size(answer) or 0, stamp

    def download(self, url: str, out: IO[bytes]) -> None:
        """Write the whole file to `out`, from its beginning, uncompressed if the server compresses."""
        sum_ = self._download(url, out)
        # A lost connection looks like the end of such a body, and would cut a list without a word.
        if sum_ is not None and self._download(url, out) != sum_:
            raise LastingError(
                "the server tells neither the length nor the end of the file, and two readings differ; "
                "download it with another tool and give the local file"
            )

    def _download(self, url: str, out: IO[bytes]) -> bytes | None:
        """Return the sha256 of what came if its end could not be told from a cut."""
        out.seek(0)
        out.truncate()
        digest = hashlib.sha256()
        with self._get(url, {}) as answer:
            _check_status(answer)
            for block in _blocks(answer):
                out.write(block)
                digest.update(block)
            out.seek(0)
            if answer.coding:
                _decode(out, answer, unquote(urlsplit(url).path))
                return None
            return None if answer.is_framed or answer.response.status == 206 else digest.digest()

    def folder(self, url: str) -> list[str]:
        """Return the names that the page of a folder links to, folders with a `/` at the end."""
        with self._get(url if urlsplit(url).path.endswith("/") else _with_slash(url), {}) as answer:
            _check_status(answer)
            page = b"".join(_blocks(answer, limit=MAX_LISTING_BYTES))
            home = answer.url
        names, base = [], urlsplit(home)
        for match in _LINK.finditer(page.decode("utf-8", "replace")):
            link = urlsplit(urljoin(home, html.unescape(match[1] or match[2] or match[3] or "")))
            path, folder = unquote(link.path), unquote(base.path)
            inside = path.removeprefix(folder)
            elsewhere = link.hostname != base.hostname or link.query or inside == path
            if not elsewhere and inside.strip("/") and "/" not in inside.rstrip("/"):
                names.append(inside)
        return sorted(set(names))

    @contextlib.contextmanager
    def _get(self, url: str, headers: dict[str, str], stop: Stop | None = None) -> Iterator[Answer]:
        origin, stop = urlsplit(url).netloc, stop or self._stop
        for _ in range(MAX_REDIRECTS + 1):
            parts = urlsplit(url)
            sent = {"Accept-Encoding": "identity", "Accept": "*/*", **headers}
            user, at, host = parts.netloc.rpartition("@")
            if at and parts.netloc == origin:  # not to whom a redirect leads
                sent["Authorization"] = f"Basic {base64.b64encode(unquote(user).encode()).decode()}"
            connection = self._checkout(parts.scheme, host, stop)
            whole = False
            try:
                assert connection.sock is not None
                with stop.waking(partial(_shut, connection.sock)):
                    connection.request("GET", _target(parts.path, parts.query), headers=sent)
                    with contextlib.closing(connection.getresponse()) as response:
                        if response.status not in (301, 302, 303, 307, 308):
                            yield Answer(url, response)
                            whole = response.isclosed()
                            return
                        response.read(BLOCK_BYTES)
                        whole = response.isclosed()
                        url = _redirected(url, response)
            finally:
                # What is left of a body must not become the answer to the next request.
                self._checkin((parts.scheme, host), connection, reusable=whole and not response.will_close)
        raise LastingError(f"redirected more than {MAX_REDIRECTS} times")

    def _checkout(self, scheme: str, host: str, stop: Stop) -> http.client.HTTPConnection:
        while True:
            with self._lock:
                at = next((at for at, (name, _) in enumerate(self._idle) if name == (scheme, host)), None)
                connection = None if at is None else self._idle.pop(at)[1]
            if connection is None:
                return apart(partial(self._connect, scheme, host), stop, drop=http.client.HTTPConnection.close)
            if connection.sock is not None and not _is_readable(connection.sock):
                return connection
            connection.close()  # the server has hung up in between

    def _checkin(self, name: tuple[str, str], connection: http.client.HTTPConnection, *, reusable: bool) -> None:
        with self._lock:
            if reusable and not self._stop.is_set() and len(self._idle) < MAX_IDLE_CONNECTIONS:
                self._idle.append((name, connection))
                return
        connection.close()

    def _connect(self, scheme: str, host: str) -> http.client.HTTPConnection:
        connection = (
            http.client.HTTPSConnection(host, timeout=self._timeout, context=self._tls)
            if scheme == "https"
            else http.client.HTTPConnection(host, timeout=self._timeout)
        )
        connection.connect()
        return connection

    @cached_property
    def _tls(self) -> ssl.SSLContext:
        return ssl.create_default_context()


def is_http(url: str) -> bool:
    """True if `url` is an http or https address."""
    return url.startswith(HTTP)


def _target(path: str, query: str) -> str:
    return quote((path or "/") + (f"?{query}" if query else ""), safe=_IN_TARGET)


def _with_slash(url: str) -> str:
    parts = urlsplit(url)
    return parts._replace(path=f"{parts.path}/").geturl()


def _redirected(url: str, response: http.client.HTTPResponse) -> str:
    target = urljoin(url, response.getheader("Location") or "")
    if not is_http(target):
        raise LastingError(f"redirected to {shown(without_secrets(target))}, which is not http(s)")
    return target


def _check_status(answer: Answer) -> None:
    response = answer.response
    if 200 <= response.status <= 299 and response.status != 204:
        return
    if response.status in (404, 410):
        raise MissingError(response)
    if response.status in (401, 403, 407):
        raise DeniedError(response)
    raise StatusError(response)


def _told_size(answer: Answer) -> int | None:
    """Return the size of the file of whose first byte this is the answer; None if it is not told."""
    response = answer.response
    if response.status == 416:  # there is no first byte
        return 0
    _check_status(answer)
    if answer.coding:
        return None
    if response.status == 200:
        return None if response.chunked else answer.length
    found = _CONTENT_RANGE.fullmatch(response.getheader("Content-Range") or "")
    return int(found[3]) if found and found[3] != "*" else None


@dataclass(frozen=True, slots=True)
class _Body:
    """How a body of known length is taken."""

    deadline: float
    on_bytes: Callable[[int], object] | None

    def take(self, answer: Answer, wanted: int) -> bytes:
        """Return `wanted` bytes. Raises ConnectionError if fewer come, TimeoutError if they are too slow."""
        blocks, got = [], 0
        while got < wanted:
            if time.monotonic() > self.deadline:
                raise TimeoutError(f"{got} of {wanted} bytes came before the deadline")
            block = answer.response.read1(min(BLOCK_BYTES, wanted - got))
            if not block:
                raise ConnectionError(f"the body ended after {got} of {wanted} bytes")
            blocks.append(block)
            got += len(block)
            if self.on_bytes is not None:
                self.on_bytes(got)
        answer.response.read(1)  # nothing is left; this lets the connection be used again
        return b"".join(blocks)


def _take_range(answer: Answer, offset: int, size: int, body: _Body) -> tuple[bytes, int | None]:
    response, coding = answer.response, answer.coding
    if response.status == 416:
        return b"", None
    _check_status(answer)
    if coding:
        raise NoRangesError(f"the server compresses the answer ({coding}), so no range of the file can be read")
    if response.status != 206:
        if offset == 0 and answer.length is not None and answer.length <= size:
            return body.take(answer, answer.length), answer.length  # the whole file is this range
        raise NoRangesError("the server ignores Range and sends the whole file; shards need a server that answers 206")
    told = response.getheader("Content-Range") or ""
    found = _CONTENT_RANGE.fullmatch(told)
    if found is None or int(found[1]) != offset:
        raise NoRangesError(f"asked for bytes from {offset}, the server sent {shown(told)}")
    wanted = int(found[2]) - offset + 1
    if wanted > size or (wanted < size and found[3] != str(offset + wanted)):
        raise NoRangesError(f"asked for {size} bytes, the server sent {shown(told)}")
    return body.take(answer, wanted), None if found[3] == "*" else int(found[3])


def _decode(out: IO[bytes], answer: Answer, path: str) -> None:
    try:
        decoded(out, answer.coding, path)
    except CodingError as error:
        if answer.is_framed:
            raise LastingError(f"the server sends {error}") from error
        raise ConnectionError(f"the server sends {error}; a connection that was lost looks like this") from error


def _blocks(answer: Answer, limit: int | None = None) -> Iterator[bytes]:
    """Yield the body as it comes. Raises ConnectionError or IncompleteRead if it is cut, where that shows."""
    wanted, got = answer.length, 0
    while block := answer.response.read1(BLOCK_BYTES):
        got += len(block)
        if limit is not None and got > limit:
            raise LastingError(f"the answer has over {limit} bytes")
        yield block
    if wanted is not None and got < wanted:
        raise ConnectionError(f"the body ended after {got} of {wanted} bytes")
    answer.response.read(1)


def _is_readable(connection: socket.socket) -> bool:
    """True if something came on an idle connection: its end, or what nobody asked for."""
    poll = select.poll()
    try:
        poll.register(connection, select.POLLIN)
        return bool(poll.poll(0))
    except (OSError, ValueError):
        return True


def _shut(connection: socket.socket) -> None:
    # close() alone does not wake a thread that waits in recv().
    with contextlib.suppress(OSError):
        connection.shutdown(socket.SHUT_RDWR)
