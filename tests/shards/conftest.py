"""Images made on the spot, a small dataset, and a loopback server that knows ranges."""

import http.server
import io
import re
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from headrace.shards.write import Sample, finish_dataset, write_shard


def encode(
    image_format: str = "jpeg", size: tuple[int, int] = (24, 16), *, seed: int = 0, orientation: int = 1
) -> bytes:
    """Return an encoded RGB picture of smooth noise."""
    noise = np.random.default_rng(seed).integers(0, 256, (3, 4, 3), np.uint8)
    image = Image.fromarray(noise).resize(size, Image.Resampling.BICUBIC)
    exif = Image.Exif()
    exif[0x0112] = orientation
    sink = io.BytesIO()
    image.save(sink, image_format.upper(), **({"exif": exif} if orientation != 1 else {}))
    return sink.getvalue()


@pytest.fixture(scope="session")
def encode_image() -> Callable[..., bytes]:
    """The function `encode(format, (width, height), seed=, orientation=)`."""
    return encode


@pytest.fixture
def samples() -> list[Sample]:
    """Ten samples, the odd ones with caption and url."""
    return [
        Sample(
            f"{number:05d}",
            encode("jpeg", (20 + number, 16), seed=number),
            "jpg",
            {"label": number % 3, "caption": f"number {number}", "url": f"http://host/{number}"}
            if number % 2
            else {"label": number % 3},
        )
        for number in range(10)
    ]


@pytest.fixture
def dataset_url(tmp_path: Path, samples: list[Sample]) -> str:
    """A finished dataset of two shards of five samples."""
    url = str(tmp_path / "dataset")
    write_shard(url, "00000", samples[:5])
    write_shard(url, "00001", samples[5:])
    finish_dataset(url, recipe_digest="test")
    return url


@dataclass
class FolderServer:
    """A loopback http server over one folder; `ignore_ranges` makes it answer 200 with the whole file."""

    url: str
    requests: list[str]
    ignore_ranges: bool = False


@pytest.fixture
def folder_server(tmp_path: Path) -> Iterator[FolderServer]:
    """Serve tmp_path with ranges."""
    state = FolderServer("", [])

    class Handler(http.server.BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_HEAD(self) -> None:
            self._answer(body=False)

        def do_GET(self) -> None:
            self._answer(body=True)

        def _answer(self, *, body: bool) -> None:
            path = tmp_path / self.path.lstrip("/")
            span = self.headers.get("Range")
            state.requests.append(f"{self.command} {self.path} {span}")
            if not path.is_file():
                self.send_error(404)
                return
            data = path.read_bytes()
            total, status = len(data), 200
            match = re.fullmatch(r"bytes=(\d+)-(\d+)", span or "")
            if match and not state.ignore_ranges:
                start, stop = int(match[1]), min(int(match[2]) + 1, total)
                data, status = data[start:stop], 206
            self.send_response(status)
            if status == 206:
                self.send_header("Content-Range", f"bytes {start}-{stop - 1}/{total}")
            self.send_header("Accept-Ranges", "bytes")
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            if body:
                self.wfile.write(data)

        def log_message(self, *_: object) -> None:
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, args=(0.05,))
    thread.start()
    state.url = f"http://127.0.0.1:{server.server_port}"
    yield state
    server.shutdown()
    thread.join()
    server.server_close()
