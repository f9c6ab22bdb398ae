"""Real servers on loopback, and a small TCP proxy in front of them that misbehaves on demand.

nginx is the system's, or what HEADRACE_NGINX names. A test that finds no server is skipped by name, and CI allows no
such skip.
"""

import contextlib
import os
import shutil
import socket
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import unquote

import pytest

from tests.ports import free_port
from tests.swift_server import running

PROGRAMS = os.pathsep.join((os.environ.get("PATH", ""), "/usr/sbin", "/usr/local/sbin"))


@pytest.fixture(scope="session")
def nginx(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, int]]:
    """(the folder that is served, the port) of a real nginx."""
    program = os.environ.get("HEADRACE_NGINX") or shutil.which("nginx", path=PROGRAMS)
    if not program:
        pytest.skip("needs nginx (Debian: nginx), or HEADRACE_NGINX")
    prefix, port = tmp_path_factory.mktemp("nginx"), free_port()
    (prefix / "www").mkdir()
    user = "user root;" if os.geteuid() == 0 else ""  # its workers could not read the folders of tests otherwise
    bodies = " ".join(f"{name}_temp_path temp;" for name in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi"))
    (prefix / "nginx.conf").write_text(
        f"{user} daemon off; worker_processes 1; pid nginx.pid; error_log error.log; events {{}}"
        f"http {{ access_log off; {bodies} server {{ listen 127.0.0.1:{port}; root www; autoindex on; }} }}"
    )
    with running([program, "-p", str(prefix), "-c", "nginx.conf", "-e", "error.log"], port, prefix / "out.log"):
        yield prefix / "www", port


@dataclass
class FaultProxy:
    """Forwards connections to a real server; `faults` are used up one a request, by paths that end as named."""

    upstream: int
    port: int = field(default_factory=free_port)
    faults: list[str] = field(default_factory=list)
    faulty: str = ".tar"
    latency_seconds: float = 0.0
    requests: list[str] = field(default_factory=list)
    """`GET /path bytes=...` of all that came."""
    _lock: threading.Lock = field(default_factory=threading.Lock)
    _listener: socket.socket | None = None
    _open: set[socket.socket] = field(default_factory=set)

    def back(self) -> None:
        """Accept connections."""
        listener = socket.socket()
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(("127.0.0.1", self.port))
        listener.listen(128)
        self._listener = listener
        threading.Thread(target=self._accept, args=(listener,), daemon=True).start()

    def away(self) -> None:
        """Be gone: nobody listens, and what was open is reset."""
        if self._listener is not None:
            with contextlib.suppress(OSError):
                self._listener.shutdown(socket.SHUT_RDWR)
            self._listener.close()
        with self._lock:
            open_ones = list(self._open)
        for one in open_ones:
            _reset(one)

    def _accept(self, listener: socket.socket) -> None:
        while True:
            try:
                client, _ = listener.accept()
            except OSError:
                return
            client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            threading.Thread(target=self._serve, args=(client,), daemon=True).start()

    def _serve(self, client: socket.socket) -> None:
        with self._lock:
            self._open.add(client)
        try:
            with client, socket.create_connection(("127.0.0.1", self.upstream)) as server:
                while self._exchange(client, server):
                    pass
        except OSError:
            return
        finally:
            with self._lock:
                self._open.discard(client)

    def _exchange(self, client: socket.socket, server: socket.socket) -> bool:
        """Forward one request and its answer; False once the connection is used up."""
        request = _head(client)
        if not request:
            return False
        fault = self._fault_of(request)
        if fault == "hang":
            client.recv(1)
            return False
        if fault in ("503", "429"):
            reason = {"503": "Slow Down", "429": "Too Many Requests"}[fault]
            client.sendall(f"HTTP/1.1 {fault} {reason}\r\nRetry-After: 1\r\nContent-Length: 4\r\n\r\nbusy".encode())
            return True
        server.sendall(request)
        head = _head(server)
        if not head:
            return False
        body = b"" if request.startswith(b"HEAD") else _body(server, head)
        time.sleep(self.latency_seconds)
        return _deliver(client, head, body, fault)

    def _fault_of(self, request: bytes) -> str:
        lines = request.decode("latin-1").split("\r\n")
        method, target, _ = lines[0].split(" ", 2)
        path = unquote(target.partition("?")[0])
        asked = next((line for line in lines if line.lower().startswith("range:")), "range:")[6:].strip()
        with self._lock:
            self.requests.append(f"{method} {path} {asked}")
            return self.faults.pop(0) if self.faults and path.endswith(self.faulty) else ""


def _deliver(client: socket.socket, head: bytes, body: bytes, fault: str) -> bool:
    if fault == "zeros":
        body = bytes(len(body))
    if not fault or fault == "zeros":
        client.sendall(head + body)
        return True
    client.sendall(head + body[: len(body) // 2])
    if fault == "stall":
        client.recv(1)  # returns when the reader hangs up
    elif fault == "reset":
        _reset(client)
    else:
        assert fault == "short", fault
    return False


def _reset(one: socket.socket) -> None:
    with contextlib.suppress(OSError):
        one.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
        one.shutdown(socket.SHUT_RD)  # wakes the thread that reads it; what is sent now is answered by a reset
        one.close()


def _head(one: socket.socket) -> bytes:
    """Read up to the empty line, byte by byte from what was peeked, so that no body is taken."""
    data = b""
    while b"\r\n\r\n" not in data:
        seen = one.recv(65536, socket.MSG_PEEK)
        if not seen:
            return b""
        end = (data + seen).find(b"\r\n\r\n")
        data += one.recv(len(seen) if end < 0 else end + 4 - len(data))
    return data


def _exactly(one: socket.socket, size: int) -> bytes:
    data = bytearray()
    while len(data) < size:
        part = one.recv(min(1 << 20, size - len(data)))
        if not part:
            raise ConnectionError("the server hung up")
        data += part
    return bytes(data)


def _body(server: socket.socket, head: bytes) -> bytes:
    """Read a body as it is sent: of a told length, or (a folder's page) in chunks."""
    headers = head.lower()
    if b"\r\ntransfer-encoding: chunked" in headers:
        body = b""
        while not body.endswith(b"\r\n0\r\n\r\n"):
            body += _exactly(server, 1)
        return body
    _, told, rest = headers.partition(b"\r\ncontent-length:")
    return _exactly(server, int(rest.partition(b"\r\n")[0])) if told else b""


@pytest.fixture
def in_front() -> Iterator[Callable[[int], FaultProxy]]:
    """`in_front(port)`: a proxy that misbehaves on demand, in front of a server."""
    proxies: list[FaultProxy] = []

    def start(port: int) -> FaultProxy:
        proxy = FaultProxy(port)
        proxy.back()
        proxies.append(proxy)
        return proxy

    yield start
    for proxy in proxies:
        proxy.away()
