"""Small datasets, the one check that every iterator passes, and a server of ranges that misbehaves on demand."""

import contextlib
import http.server
import io
import re
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import unquote

import numpy as np
import pytest
from PIL import Image

from headrace.pipeline import Augment, Batch, Mixture, Source, Stream
from headrace.shards.write import Sample, finish_dataset, write_shard

MAX_STALL_SECONDS = 60


def encode(number: int, *, image_format: str = "jpeg", size: tuple[int, int] = (40, 32)) -> bytes:
    """Return a picture of smooth noise."""
    noise = np.random.default_rng(number).integers(0, 256, (3, 4, 3), np.uint8)
    sink = io.BytesIO()
    Image.fromarray(noise).resize(size, Image.Resampling.BICUBIC).save(sink, image_format.upper())
    return sink.getvalue()


def _write_dataset(folder: Path, num_samples: int, *, per_shard: int = 7) -> str:
    """Write a dataset whose keys are `NNNNN` and whose labels are the sample's number; every third has a caption."""
    for first in range(0, num_samples, per_shard):
        samples = [
            Sample(
                f"{number:05d}",
                encode(number),
                "jpg",
                {"label": number, "caption": f"number {number}"} if number % 3 == 0 else {"label": number},
            )
            for number in range(first, min(first + per_shard, num_samples))
        ]
        write_shard(str(folder), f"{first // per_shard:05d}", samples)
    finish_dataset(str(folder), recipe_digest="test")
    return str(folder)


@pytest.fixture(scope="session")
def datasets(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str]:
    """Two datasets, of 45 and of 19 samples."""
    folder = tmp_path_factory.mktemp("datasets")
    return _write_dataset(folder / "large", 45), _write_dataset(folder / "small", 19)


@pytest.fixture(scope="session")
def mixture(datasets: tuple[str, str]) -> Mixture:
    """Both datasets at 0.75 and 0.25, over 4 lanes."""
    return Mixture(
        seed=5,
        lanes=4,
        image_size=16,
        sources=(
            Source(name="large", url=datasets[0], weight=0.75, chunk_samples=3, shuffle_window=24),
            Source(name="small", url=datasets[1], weight=0.25, chunk_samples=2, shuffle_window=8),
        ),
        augment=Augment(scale=(0.3, 1.0)),
        read_timeout_seconds=30.0,  # a busy machine may stall for seconds; tests of time-outs say their own
        decode_threads=2,
        io_threads=2,
    )


def _fingerprint(batch: Batch) -> tuple[object, ...]:
    """Return everything of a batch but the waiting."""
    columns = {name: list(column) for name, column in batch.columns.items()}
    return (
        batch.images.tobytes(),
        repr(columns),
        batch.position.tolist(),
        batch.source.tolist(),
        batch.key,
        batch.valid.tolist(),
    )


def _check_resumes(open_it: Callable[[], Stream], *, steps: int) -> None:
    """From the state after every step, the rest comes out as it did without a stop."""
    states, whole = [], []
    with open_it() as stream:
        for _ in range(steps):
            states.append(stream.state_dict())
            whole.append(_fingerprint(next(stream)))
    for step, state in enumerate(states):
        with open_it() as stream:
            stream.load_state_dict(state)
            assert [_fingerprint(next(stream)) for _ in range(steps - step)] == whole[step:]


@pytest.fixture(scope="session")
def fingerprint() -> Callable[[Batch], tuple[object, ...]]:
    """`fingerprint(batch)`: everything of a batch but the waiting."""
    return _fingerprint


@pytest.fixture(scope="session")
def check_resumes() -> Callable[..., None]:
    """`check_resumes(open_it, steps=)`: the one check that every iterator passes."""
    return _check_resumes


@pytest.fixture(scope="session")
def write_dataset() -> Callable[..., str]:
    """`write_dataset(folder, num_samples, per_shard=)`."""
    return _write_dataset


@dataclass
class RangeServer:
    """A server of ranges over one folder; `faults` are used up one a request, by requests whose path ends as named."""

    folder: Path
    faults: list[str] = field(default_factory=list)
    faulty: str = ".tar"
    ranges: list[tuple[str, int, int]] = field(default_factory=list)
    url: str = ""
    lock: threading.Lock = field(default_factory=threading.Lock)

    def next_fault(self, path: str) -> str:
        """Return the fault of this request, or nothing."""
        with self.lock:
            return self.faults.pop(0) if self.faults and path.endswith(self.faulty) else ""


@pytest.fixture
def range_server(tmp_path: Path) -> Iterator[Callable[[str], RangeServer]]:
    """Start servers over folders: `range_server(folder)`."""
    running = []

    def start(folder: str) -> RangeServer:
        state = RangeServer(Path(folder))
        handler = type("Bound", (_Handler,), {"state": state})
        server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
        server.daemon_threads = True
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
        thread.start()
        running.append((server, thread))
        state.url = f"http://127.0.0.1:{server.server_address[1]}"
        return state

    assert tmp_path
    yield start
    for server, thread in running:
        server.shutdown()
        server.server_close()
        thread.join()


class _Handler(http.server.BaseHTTPRequestHandler):
    state: RangeServer
    protocol_version = "HTTP/1.1"

    def do_HEAD(self) -> None:
        self._answer(body=False)

    def do_GET(self) -> None:
        self._answer(body=True)

    def log_message(self, format: str, *args: object) -> None:
        """Say nothing."""

    def _answer(self, *, body: bool) -> None:
        path = self.state.folder / unquote(self.path).lstrip("/")
        if not path.is_file():
            self.send_error(404)
            return
        data = path.read_bytes()
        asked = re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers.get("Range", ""))
        fault = self.state.next_fault(self.path) if asked else ""
        if asked is None:
            self._send(200, data, {}, body=body)
            return
        start, end = int(asked[1]), min(int(asked[2]), len(data) - 1)
        self.state.ranges.append((self.path, start, end))
        if start >= len(data):
            self._send(416, b"", {"Content-Range": f"bytes */{len(data)}"}, body=body)
            return
        headers = {"Content-Range": f"bytes {start}-{end}/{len(data)}"}
        self._send_faulty(fault, data[start : end + 1], headers)

    def _send_faulty(self, fault: str, data: bytes, headers: dict[str, str]) -> None:
        if fault == "503":
            self._send(503, b"busy", {}, body=True)
        elif fault == "stall":
            self._send(206, data, headers, body=False)
            self.connection.settimeout(MAX_STALL_SECONDS)
            with contextlib.suppress(OSError):
                self.connection.recv(1)  # returns when the reader hangs up
            self.close_connection = True
        elif fault == "zeros":
            self._send(206, bytes(len(data)), headers, body=True)
        elif fault == "short":
            self._send(206, data, headers, body=False)
            self.wfile.write(data[: len(data) // 2])
            self.close_connection = True
        elif fault == "reset":
            self.connection.close()
            self.close_connection = True
        elif fault == "redirect":
            self._send(302, b"", {"Location": self.path}, body=True)
        elif fault == "elsewhere":
            self._send(302, b"", {"Location": "file:///etc/hostname"}, body=True)
        elif fault == "lie":
            self._send(206, data, {"Content-Range": "bytes 0-9/10"}, body=True)
        else:
            assert not fault, fault
            self._send(206, data, headers, body=True)

    def _send(self, status: int, data: bytes, headers: dict[str, str], *, body: bool) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        if body:
            self.wfile.write(data)
