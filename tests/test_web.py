"""Files at ordinary http servers: the same bytes whatever the server can do, or one line that says what it lacks."""

import base64
import contextlib
import gzip
import http.server
import re
import socket
import threading
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pyarrow as pa
import pytest

from headrace import files, patience, urlpath
from headrace.access import Access
from headrace.globs import matching
from headrace.patience import Patience, Stop
from headrace.web import Client

DATA = b"".join(b"row %d\n" % number for number in range(30_000))


@dataclass
class Server:
    """A loopback server whose first path name says how it answers; `seen` are (path, range, authorization)."""

    url: str = ""
    data: bytes = DATA
    later: bytes | None = None
    """What the file is from the second request on."""
    busy: int = 0
    seen: list[tuple[str, str, str]] = field(default_factory=list)


class _Handler(http.server.BaseHTTPRequestHandler):
    state: Server
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        asked = self.headers.get("Range", "")
        self.state.seen.append((self.path, asked, self.headers.get("Authorization", "")))
        mode, data = self.path.split("/")[1], self.state.data
        if len(self.state.seen) > 1 and self.state.later is not None:
            data = self.state.later
        if self.state.busy:
            self.state.busy -= 1
            self._send(503, b"", {"Retry-After": "0"})
            return
        match = re.fullmatch(r"bytes=(\d+)-(\d+)", asked)
        if mode == "ranges" and match:
            start, stop = int(match[1]), min(int(match[2]) + 1, len(data))
            if start >= len(data):
                self._send(416, b"", {"Content-Range": f"bytes */{len(data)}"})
                return
            self._send(206, data[start:stop], {"Content-Range": f"bytes {start}-{stop - 1}/{len(data)}"})
        elif mode in ("ranges", "plain"):
            self._send(200, data, {})
        elif mode == "chunked":
            parts = [data[at : at + 50_000] for at in range(0, len(data), 50_000)]
            body = b"".join(b"%x\r\n%s\r\n" % (len(part), part) for part in parts)
            self._send(200, body + b"0\r\n\r\n", {"Transfer-Encoding": "chunked"}, length=False)
        elif mode in ("endless", "cut"):
            self.close_connection = True
            part = data[: len(data) - len(self.state.seen)] if mode == "cut" else data
            self._send(200, part, {"Connection": "close"}, length=False)
        elif mode == "short":
            self.close_connection = True
            self._send(200, data, {"Content-Length": str(len(data) + 1)}, length=False)
        elif mode in ENCODED:
            name = mode.partition("-")[0]
            self._send(200, ENCODED[mode](data), {"Content-Encoding": name})
        else:
            self._send(int(mode), b"", {})

    def _send(self, status: int, body: bytes, headers: dict[str, str], *, length: bool = True) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        if length:
            self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        with contextlib.suppress(OSError):
            self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        """Say nothing."""


ENCODED = {
    "gzip": gzip.compress,
    "deflate": zlib.compress,
    "deflate-raw": lambda data: zlib.compress(data)[2:-4],
    "br": lambda data: pa.Codec("brotli").compress(data, asbytes=True),
    "zstd": lambda data: pa.Codec("zstd").compress(data, asbytes=True),
}
ORDINARY = ["ranges", "plain", "chunked", "endless", *ENCODED]


@pytest.fixture
def server() -> Iterator[Server]:
    state = Server()
    running = http.server.ThreadingHTTPServer(("127.0.0.1", 0), type("Bound", (_Handler,), {"state": state}))
    running.daemon_threads = True
    thread = threading.Thread(target=running.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    state.url = f"http://127.0.0.1:{running.server_port}"
    yield state
    running.shutdown()
    thread.join()
    running.server_close()


@pytest.fixture
def hasty(monkeypatch: pytest.MonkeyPatch) -> None:
    """A patience of one more try."""
    client = Client(timeout_seconds=10)
    access = Access(patience=Patience(retries=1), client=client, stop=Stop(), stoppable=False)
    for module in ("headrace.files", "headrace.access"):
        monkeypatch.setattr(f"{module}.default_access", lambda: access)
    monkeypatch.setattr(patience, "FIRST_PAUSE_SECONDS", 0.001)


@pytest.mark.parametrize("size", [0, 5, len(DATA)])
@pytest.mark.parametrize("mode", ORDINARY)
def test_a_file_is_the_same_bytes_at_every_ordinary_server(server: Server, mode: str, size: int) -> None:
    server.data = DATA[:size]
    url = f"{server.url}/{mode}/list.csv?token=a%2Fb*c"
    assert files.read_bytes(url) == DATA[:size]
    assert files.size_of(url) == size
    assert files.exists(url)
    for in_blocks in (True, False):
        with files.opened(url, in_blocks=in_blocks) as file:
            assert file.read() == DATA[:size]
            file.seek(3)
            assert file.read(4) == DATA[3 : min(7, size)]
    assert {path for path, _, _ in server.seen} == {f"/{mode}/list.csv?token=a%2Fb*c"}


@pytest.mark.usefixtures("hasty")
@pytest.mark.parametrize(
    ("mode", "says"),
    [
        ("cut", "tells neither the length nor the end of the file, and two readings differ"),
        ("short", "the body ended after 288890 of 288891 bytes; tried 2 times"),
        ("404", "the server answered 404"),
        ("403", "the server answered 403"),
        ("503", "the server answered 503 Service Unavailable; tried 2 times"),
    ],
)
def test_what_cannot_be_read_whole_is_one_line_with_its_name(server: Server, mode: str, says: str) -> None:
    url = f"{server.url}/{mode}/list.csv"
    with pytest.raises(OSError, match=f"^{re.escape(url)}: .*{says}") as caught:
        files.read_bytes(url)
    assert isinstance(caught.value, FileNotFoundError) == (mode == "404")
    assert isinstance(caught.value, PermissionError) == (mode == "403")


@pytest.mark.parametrize("later", [DATA[:1000], DATA[:100_000], DATA + b"x", b""])
def test_a_file_that_changes_while_it_is_read_is_never_half_of_each(
    server: Server, monkeypatch: pytest.MonkeyPatch, later: bytes
) -> None:
    monkeypatch.setattr("headrace.access.REQUEST_BYTES", 100_000)
    server.later = later
    with pytest.raises(OSError, match=r"ranges/list.csv: it was replaced while it was read"):
        files.read_bytes(f"{server.url}/ranges/list.csv")


@pytest.mark.parametrize("mode", ["ranges", "plain", "chunked", "gzip"])
def test_the_stamp_of_a_file_is_one_request(server: Server, mode: str) -> None:
    size, stamp = files.stamp_of(f"{server.url}/{mode}/model.onnx")
    assert size == (len(DATA) if mode in ("ranges", "plain") else 0)
    assert stamp == ""
    assert len(server.seen) == 1


def test_a_busy_server_is_waited_for_and_is_no_missing_file(server: Server) -> None:
    server.busy = 3
    assert files.exists(f"{server.url}/ranges/x")
    server.busy = 3
    assert files.read_bytes(f"{server.url}/ranges/x") == DATA


def test_a_compressed_list_that_is_announced_as_coded_once_more_stays_as_it_is(server: Server) -> None:
    server.data = gzip.compress(DATA)
    assert files.read_bytes(f"{server.url}/gzip/list.csv.gz") == server.data


def test_a_password_is_sent_and_never_shown(server: Server) -> None:
    url = server.url.replace("http://", "http://me:s3cret@")
    assert files.read_bytes(f"{url}/ranges/x") == DATA
    assert server.seen[-1][2] == f"Basic {base64.b64encode(b'me:s3cret').decode()}"
    with pytest.raises(FileNotFoundError) as caught:
        files.read_bytes(f"{url}/404/x?X-Amz-Signature=abc123")
    assert "s3cret" not in str(caught.value)
    assert "abc123" not in str(caught.value)


def test_the_names_on_a_folders_page_come_back_as_they_are(tmp_path: Path) -> None:
    names = ["a b.tar", "c#d.tar", "e?f.tar", "g%20h.tar", "ü.tar", "i&j.tar", "plain.tar", "x.txt"]
    (tmp_path / "sub folder").mkdir()
    for name in names:
        (tmp_path / name).write_bytes(name.encode())
    (tmp_path / "sub folder" / "k l.jpg").write_bytes(b"image")

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def __init__(self, *args: object) -> None:
            super().__init__(*args, directory=str(tmp_path))  # type: ignore[arg-type]

        def log_message(self, *_: object) -> None:
            """Say nothing."""

    running = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Quiet)
    thread = threading.Thread(target=running.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        url = f"http://127.0.0.1:{running.server_port}"
        assert files.list_names(url, ".tar") == sorted(name for name in names if name.endswith(".tar"))
        for name in names:
            assert files.read_bytes(urlpath.join(url, name)) == name.encode()
            assert urlpath.basename(urlpath.join(url, name)) == name
            assert urlpath.parent(urlpath.join(url, name)) == url
        assert matching(f"{url}/*.txt") == [f"{url}/x.txt"]
        assert ("sub folder/k l.jpg", 0) in files.walk_remote(url)
        assert files.is_folder(url)
        assert not files.is_folder(f"{url}/x.txt")
        assert not files.exists(f"{url}/none.tar")
    finally:
        running.shutdown()
        thread.join()
        running.server_close()


def test_a_stop_ends_what_waits_for_an_answer_at_once() -> None:
    listening = socket.create_server(("127.0.0.1", 0))
    stop = Stop()
    client = Client(timeout_seconds=200, stop=stop)
    access = Access(patience=Patience(seconds=600), client=client, stop=stop)
    errors: list[BaseException] = []

    def read() -> None:
        try:
            files.read_bytes(f"http://127.0.0.1:{listening.getsockname()[1]}/x", access=access)
        except OSError as error:
            errors.append(error)

    thread = threading.Thread(target=read, daemon=True)
    thread.start()
    held, _ = listening.accept()
    held.recv(1000)
    stop.set()
    thread.join(100)  # of the 200 that an answer may take
    assert not thread.is_alive()
    assert errors
    held.close()
    listening.close()
