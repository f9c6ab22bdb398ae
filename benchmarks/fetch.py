"""How many images does one process fetch for each second of its own CPU time?

python benchmarks/fetch.py [images] [side in pixels]

Another process serves one noise JPEG under many names on loopback; the fetch goes from list to committed shards, in
this process. CPU time is what a busy machine leaves comparable.
"""

import http.server
import io
import multiprocessing
import sys
import tempfile
import time
from multiprocessing.connection import Connection
from pathlib import Path

import numpy as np
from PIL import Image

from headrace.config import build_config
from headrace.curation.recipe import Recipe
from headrace.curation.stages import fetch as run_fetch


def serve(pipe: Connection, body: bytes) -> None:
    """Answer every GET with `body`; send the port first."""

    class Handler(http.server.BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            self.send_response(200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: object) -> None:
            """Say nothing."""

    class Server(http.server.ThreadingHTTPServer):
        request_queue_size = 1024  # of 5, the kernel drops connections, and the benchmark measures its pauses

    server = Server(("127.0.0.1", 0), Handler)
    pipe.send(server.server_address[1])
    server.serve_forever()


def main(images: int, side: int) -> None:
    """Serve, fetch, print."""
    sink = io.BytesIO()
    noise = np.random.default_rng(0).integers(0, 256, (side, side, 3), np.uint8)
    Image.fromarray(noise).save(sink, "JPEG", quality=75)
    here, there = multiprocessing.Pipe()
    server = multiprocessing.Process(target=serve, args=(there, sink.getvalue()), daemon=True)
    server.start()
    port = here.recv()
    with tempfile.TemporaryDirectory() as folder:
        lines = "".join(f"http://127.0.0.1:{port}/{number}.jpg\n" for number in range(images))
        (Path(folder) / "urls.txt").write_text(lines)
        settings = {
            "job": f"{folder}/job",
            "unsafe_images": "off",
            "input": {"urls": [f"{folder}/urls.txt"], "caption_column": None},
            "fetch": {"allow_private": [f"127.0.0.1:{port}"], "samples_per_shard": 1000, "per_host": 64},
            "engine": {"executor": "inline"},
        }
        recipe = build_config(Recipe, settings)
        wall, processor = time.perf_counter(), time.process_time()
        print(run_fetch(recipe))
        wall, processor = time.perf_counter() - wall, time.process_time() - processor
    server.terminate()
    speed = f"{images / processor:.0f} a CPU second, {images / wall:.0f} a second"
    print(f"{images} images of {len(sink.getvalue())} bytes: {speed}")


if __name__ == "__main__":
    main(*(int(value) for value in [*sys.argv[1:], *("4000", "80")[len(sys.argv) - 1 :]]))
