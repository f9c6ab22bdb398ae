"""What a list of any length takes: rows, bytes, CPU hours, machines by stage; each constant measured, or named as not.

    python benchmarks/scale.py IMAGES.tar [--rows 12.8e9] [--images 600] [--json OUT.json]
    python benchmarks/scale.py --constants benchmarks/results/curation/scale.json [--rows 12.8e9]

The first command serves the tar's images on loopback and takes them through every stage in this process. It counts CPU
time, imports left out, and the bytes of every folder of the job, by row. The second computes only.
Images that are larger or smaller than yours cost more or less: give your own.
"""

import argparse
import http.server
import json
import multiprocessing
import tarfile
import tempfile
import time
from collections.abc import Callable, Mapping
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from headrace.config import build_config
from headrace.curation.recipe import Recipe
from headrace.curation.stages import RUN

SUFFIXES = (".jpg", ".jpeg", ".png", ".webp")
ROWS_PER_SHARD = 10_000
ROWS_PER_JOB = 100_000_000
"""docs/fetch.md says why a job is no longer."""
CORES = 64
"""Of one machine in the table."""
ALIVE = 0.62
"""Of CC12M's links today; a list that is fresh has more."""
KEPT = 0.10
"""Of the rows, after filters and a top fraction of 15 %."""
CLIP_BYTES = 2 * 512
"""Of an embedding in half floats."""
WEEK_SECONDS = 7 * 24 * 3600
SECONDS_A_LINK = 2.0
"""What the plan of `fetch --dry-run` assumes; nothing was crawled for it."""
IN_FLIGHT = 256
"""Links under way in each process."""


def serve(pipe: Connection, bodies: Mapping[str, bytes]) -> None:
    """Answer /NUMBER-NAME with the image NAME; send the port first."""

    class Handler(http.server.BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            body = bodies.get(self.path.rpartition("-")[2], b"")
            self.send_response(200 if body else 404)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: object) -> None:
            """Say nothing."""

    class Server(http.server.ThreadingHTTPServer):
        request_queue_size = 1024

    server = Server(("127.0.0.1", 0), Handler)
    pipe.send(server.server_address[1])
    server.serve_forever()


def read_images(path: str) -> dict[str, bytes]:
    """Return the images of a tar by a number with their suffix."""
    with tarfile.open(path) as tar:
        members = [member for member in tar if member.name.lower().endswith(SUFFIXES)]
        return {f"{number}{Path(m.name).suffix}": tar.extractfile(m).read() for number, m in enumerate(members)}  # type: ignore[union-attr]


def recipe_of(folder: Path, host: str) -> Recipe:
    """Return a recipe of the default annotators that keeps every row; faces are measured by benchmarks/annotate.py."""
    return build_config(
        Recipe,
        {
            "job": str(folder / "job"),
            "unsafe_images": "off",
            "input": {"urls": [str(folder / "list.csv")]},
            "fetch": {"allow_private": [host], "samples_per_shard": 500, "per_host": 64},
            "annotate": {"faces": None, "caption_minhash": {}, "language": {}},
            "select": [{"step": "rule", "name": "side", "keep": "image_width > 0"}],
            "placement": {"samples_per_shard": 500},
            "build": {"blur_faces": False},
            "engine": {"executor": "inline"},
        },
    )


def measure(path: str, images: int) -> dict[str, Any]:
    """Return seconds of CPU and bytes on disk a row, by stage and by folder."""
    bodies = read_images(path)
    here, there = multiprocessing.Pipe()
    server = multiprocessing.Process(target=serve, args=(there, bodies), daemon=True)
    server.start()
    host = f"127.0.0.1:{here.recv()}"
    few, many = (_run(bodies, host, rows) for rows in (max(1, images // 10), images))  # the first one also imports
    server.terminate()
    rows = many["rows"] - few["rows"]
    return {
        "image_bytes": sum(map(len, bodies.values())) / len(bodies),
        "images": images,
        "seconds": {stage: many["seconds"][stage] / images for stage in ("fetch", "annotate", "build")},
        "bytes": {name: (many["bytes"][name] - few["bytes"][name]) / rows for name in many["bytes"]},
    }


def _run(bodies: Mapping[str, bytes], host: str, rows: int) -> dict[str, Any]:
    names = list(bodies)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        lines = [
            f"http://{host}/{row}-{names[row % len(names)]},a caption of some words for row {row}"
            for row in range(rows)
        ]
        (folder / "list.csv").write_text("\n".join(["url,caption", *lines]) + "\n")
        recipe, seconds = recipe_of(folder, host), {}
        for stage in ("fetch", "annotate", "select", "build", "report"):
            begun = time.process_time()
            RUN[stage](recipe)
            seconds[stage] = time.process_time() - begun
        return {"rows": rows, "seconds": seconds, "bytes": _sizes(folder / "job")}


def _sizes(job: Path) -> dict[str, int]:
    kinds: dict[str, Callable[[Path], bool]] = {
        "list": lambda path: path.parts[0] == "input",
        "raw tars": lambda path: path.parts[0] == "raw" and path.suffix == ".tar",
        "raw tables": lambda path: path.parts[0] == "raw" and path.suffix != ".tar",
        "annotations": lambda path: path.parts[0] == "annotations",
        "ledger": lambda path: path.parts[0] == "ledger",
        "dataset": lambda path: path.parts[0] == "dataset",
    }
    files = [path.relative_to(job) for path in job.rglob("*") if path.is_file()]
    return {
        name: sum((job / path).stat().st_size for path in files if belongs(path)) for name, belongs in kinds.items()
    }


def table(constants: Mapping[str, Any], rows: float) -> list[str]:
    """Return, as lines of Markdown, what each stage of a list of so many rows writes and computes."""
    alive, kept = rows * ALIVE, rows * KEPT
    size, seconds, other = constants["bytes"], constants["seconds"], constants["seconds_of_others"]
    # All rows of the measured job were alive.
    fetched = size["list"] * rows + (size["raw tars"] + size["raw tables"]) * alive
    lines = [
        ("fetch, work", rows, fetched, seconds["fetch"] * alive),
        ("annotate, columns on CPUs", alive, size["annotations"] * alive, seconds["annotate"] * alive),
        ("annotate, faces (YuNet)", alive, 0.0, other["faces"] * alive),
        ("annotate, CLIP ViT-B/32 on CPUs", alive, CLIP_BYTES * alive, other["clip"] * alive),
        ("select", rows, size["ledger"] * rows, other["select"] * rows),
        ("build", kept, size["dataset"] * kept, seconds["build"] * kept),
    ]
    found = [
        f"| {name} | {count:.3g} | {f'{written / 1e12:,.1f}' if written else ''} | {cpu / 3600:,.0f} | "
        f"{cpu / CORES / WEEK_SECONDS:,.2g} |"
        for name, count, written, cpu in lines
    ]
    # One process a core; it waits, and computes little.
    waiting = rows * SECONDS_A_LINK / IN_FLIGHT / CORES / WEEK_SECONDS
    found.insert(1, f"| fetch, waiting for links | {rows:.3g} | | | {waiting:,.2g} |")
    head = f"| stage | rows | TB written | CPU hours | machines of {CORES} cores for a week |"
    return [head, "| --- | --- | --- | --- | --- |", *found]


def main() -> None:
    """Measure or read the constants, print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("tar", nargs="?")
    parser.add_argument("--rows", type=float, default=12.8e9)
    parser.add_argument("--images", type=int, default=600)
    parser.add_argument("--constants")
    parser.add_argument("--json")
    asked = parser.parse_args()
    if asked.constants:
        constants = json.loads(Path(asked.constants).read_text())
    elif asked.tar:
        constants = measure(asked.tar, asked.images)
        # Seconds of CPU a row: `benchmarks/annotate.py` (YuNet, CLIP), `benchmarks/select_rows.py 1e8`.
        constants["seconds_of_others"] = {"faces": 1 / 38, "clip": 1 / 8, "select": 13.2 / 1e6}
    else:
        parser.error("give IMAGES.tar, or --constants")
    if asked.json:
        Path(asked.json).write_text(json.dumps(constants, indent=1) + "\n")
    print(f"an image of {constants['image_bytes'] / 1e3:.0f} kB; a row, CPU ms: ", end="")
    print(", ".join(f"{name} {1e3 * value:.2f}" for name, value in constants["seconds"].items()))
    print("bytes a row:", ", ".join(f"{name} {value:,.0f}" for name, value in constants["bytes"].items()))
    print(f"{asked.rows:.3g} rows, jobs of {ROWS_PER_JOB:,}: {-(-asked.rows // ROWS_PER_JOB):.0f}")
    print("\n".join(table(constants, asked.rows)))


if __name__ == "__main__":
    main()
