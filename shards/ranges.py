"""Read one range of one file, local or remote, with deadlines and retries, from many threads.

A fault of the way (timeout, reset, 5xx, short body) is tried again as `headrace.patience` says, and then raised as
`ReadError`; the answer is short only where the file itself ends. A server may ignore `Range` and send the whole file
with status 200, which must never be taken for the range.
"""

import contextlib
import http.client
import os
import re
import socket
import ssl
import threading
import time
from urllib.parse import quote, urljoin, urlsplit

from headrace import files
from headrace.patience import RETRIED_STATUS, Patience, patiently
from headrace.text import without_secrets

__all__ = ["Patience", "RangeReader", "ReadError"]

MAX_REDIRECTS = 5
BLOCK_BYTES = 1 << 20
TOTAL_TIMEOUTS = 10

# What may stand in the target of a request: a shard's name may hold spaces, or letters beyond ASCII.
_IN_TARGET = "%/:=&?~+!$,;'@()*[]|"

_CONTENT_RANGE = re.compile(r"bytes (\d+)-(\d+)/(\d+|\*)")


class ReadError(OSError):
    """A read that failed for good: the run must stop."""


class StatusError(OSError):
    """An answer of a server that may be another one later."""

    def __init__(self, response: http.client.HTTPResponse) -> None:
        super().__init__(f"the server answered {response.status} {response.reason}")
        self.status, self.headers = response.status, response.headers


class RangeReader:
    """Reads ranges; one per stream, used by all its I/O threads. `interrupt` makes those that wait give up."""

    def __init__(self, patience: Patience) -> None:
        self.num_retries = 0
        self._patience = patience
        self._closed = threading.Event()
        self._threads = threading.local()
        self._connections: list[http.client.HTTPConnection] = []
        self._lock = threading.Lock()

    def read(self, url: str, offset: int, size: int) -> bytes:
        """Return `size` bytes from `offset`, fewer only where the file ends. Raises ReadError, naming both."""
        where, tries = without_secrets(url), 0

        def read() -> bytes | ReadError:
            nonlocal tries
            tries += 1
            try:
                return self._read_once(url, offset, size)
            except ReadError as error:  # for good: no patience helps
                return error

        def on_retry() -> None:
            self._drop_connections()
            with self._lock:
                self.num_retries += 1

        try:
            data = patiently(read, self._patience, f"{where}: at byte {offset}", stop=self._closed, on_retry=on_retry)
        except Exception as error:
            self._drop_connections()
            reason = str(error) or type(error).__name__
            raise ReadError(
                f"{where}: {size} bytes at byte {offset} could not be read, tried {tries} times: {reason}"
            ) from error
        if isinstance(data, ReadError):
            raise ReadError(f"{where}: at byte {offset}: {data}") from data
        return data

    def interrupt(self) -> None:
        """Make readers that wait give up, in whichever thread they are."""
        self._closed.set()
        with self._lock:
            for connection in self._connections:
                if connection.sock is not None:
                    # close() alone does not wake a thread that waits in recv().
                    with contextlib.suppress(OSError):
                        connection.sock.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        """Close the connections; call it when no thread reads any more."""
        self.interrupt()
        with self._lock:
            for connection in self._connections:
                connection.close()
            self._connections.clear()

    def _read_once(self, url: str, offset: int, size: int) -> bytes:
        if self._closed.is_set():
            raise ReadError("the stream is closed")
        if files.is_local(url):
            return _read_local(url, offset, size)
        if url.startswith(("http://", "https://")):
            return self._read_http(url, offset, size)
        # Other file systems (s3, gs, memory) bring their own timeouts.
        return files.read_range(url, offset, size)

    def _read_http(self, url: str, offset: int, size: int) -> bytes:
        deadline = time.monotonic() + TOTAL_TIMEOUTS * self._patience.timeout_seconds
        for _ in range(MAX_REDIRECTS + 1):
            response = self._request(url, offset, size)
            try:
                if response.status not in (301, 302, 303, 307, 308):
                    return _take_range(response, offset, size, deadline)
                response.read(BLOCK_BYTES)
            except BaseException:
                # What is left of the body must not become the answer to the next request.
                response.close()
                self._drop_connections()
                raise
            url = urljoin(url, response.getheader("Location") or "")
            if not url.startswith(("http://", "https://")):
                raise ReadError(f"redirected to {url!r}, which is not http(s)")
        raise ReadError(f"redirected more than {MAX_REDIRECTS} times")

    def _request(self, url: str, offset: int, size: int) -> http.client.HTTPResponse:
        parts = urlsplit(url)
        connection = self._connection(parts.scheme, parts.netloc)
        target = quote((parts.path or "/") + (f"?{parts.query}" if parts.query else ""), safe=_IN_TARGET)
        headers = {"Range": f"bytes={offset}-{offset + size - 1}", "Accept-Encoding": "identity"}
        connection.request("GET", target, headers=headers)
        return connection.getresponse()

    def _connection(self, scheme: str, host: str) -> http.client.HTTPConnection:
        mine: dict[tuple[str, str], http.client.HTTPConnection] = self._threads.__dict__.setdefault("mine", {})
        if (scheme, host) not in mine:
            timeout = self._patience.timeout_seconds
            if scheme == "https":
                context = ssl.create_default_context()
                made: http.client.HTTPConnection = http.client.HTTPSConnection(host, timeout=timeout, context=context)
            else:
                made = http.client.HTTPConnection(host, timeout=timeout)
            mine[scheme, host] = made
            with self._lock:
                self._connections.append(made)
        return mine[scheme, host]

    def _drop_connections(self) -> None:
        mine: dict[tuple[str, str], http.client.HTTPConnection] = self._threads.__dict__.get("mine", {})
        for connection in mine.values():
            connection.close()
            with self._lock:
                if connection in self._connections:
                    self._connections.remove(connection)
        mine.clear()


def _read_local(url: str, offset: int, size: int) -> bytes:
    handle = os.open(files.local_path(url), os.O_RDONLY | os.O_CLOEXEC)
    try:
        data = os.pread(handle, size, offset)
        while data and len(data) < size:  # pread gives at most 2 GiB, or less after a signal
            more = os.pread(handle, size - len(data), offset + len(data))
            if not more:
                break
            data += more
        return data
    finally:
        os.close(handle)


def _take_range(response: http.client.HTTPResponse, offset: int, size: int, deadline: float) -> bytes:
    if response.status == 416:
        response.read(BLOCK_BYTES)
        return b""
    if response.status in RETRIED_STATUS:
        raise StatusError(response)
    if response.status == 200:
        raise ReadError("the server ignores Range and sends the whole file; shards need a server that answers 206")
    if response.status != 206:
        raise ReadError(f"the server answered {response.status} {response.reason}")
    found = _CONTENT_RANGE.fullmatch(response.getheader("Content-Range") or "")
    if found is None or int(found[1]) != offset:
        raise ReadError(f"asked for bytes from {offset}, the server sent {response.getheader('Content-Range')!r}")
    wanted = int(found[2]) - offset + 1
    if wanted > size or (wanted < size and found[3] != str(offset + wanted)):
        raise ReadError(f"asked for {size} bytes, the server sent {response.getheader('Content-Range')!r}")
    return _read_body(response, wanted, deadline)


def _read_body(response: http.client.HTTPResponse, wanted: int, deadline: float) -> bytes:
    blocks, got = [], 0
    while got < wanted:
        if time.monotonic() > deadline:
            raise TimeoutError(f"{got} of {wanted} bytes came before the deadline")
        block = response.read1(min(BLOCK_BYTES, wanted - got))
        if not block:
            raise OSError(f"the body ended after {got} of {wanted} bytes")
        blocks.append(block)
        got += len(block)
    response.read()  # nothing is left; this lets the connection be used again
    return b"".join(blocks)
