"""A long list, most of which is dead at once: rows, CPU, memory and open files of a fetch. Run by `curation.py`.

Of ten rows, two name addresses that are not public, two have no URL to fetch, one another scheme (nothing is asked for
these); three answer 404, one is at a port where nobody listens, one is an image of 1 kB.
"""

import io
import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import yaml
from PIL import Image

BYTES_PER_ROW = 2000
"""Of disk, at most: the list, its runs, spools, tables and tars."""
LOOK_SECONDS = 0.25
EXPECTED = {"refused-address": 2, "bad-url": 2, "refused-scheme": 1, "http-4xx": 3, "connect": 1, "success": 1}
"""Rows of ten, by what becomes of them."""
OURS = "from headrace.cli.app import main; main()"


def lines(rows: int, hosts: Sequence[str], port: int, closed: int) -> Iterator[str]:
    """Yield the URLs, one a line, all different but for those that are none."""
    for row in range(rows):
        host = hosts[row // 10 % len(hosts)]
        yield (
            f"http://10.0.{row % 250}.1/{row}.jpg",
            f"http://{host}:{port}/none/{row}.jpg",
            "",
            f"http://{host}:{port}/none/{row}.jpg",
            f"ftp://example.org/{row}.jpg",
            f"http://{host}:{port}/tiny.jpg?{row}",
            f"http://192.168.{row % 250}.1/{row}.jpg",
            f"http://{host}:{closed}/{row}.jpg",
            "no address at all",
            f"http://{host}:{port}/none/{row}.jpg",
        )[row % 10]


def closed_port(host: str) -> int:
    """Return a port where nobody listens."""
    with socket.socket() as probe:
        probe.bind((host, 0))
        return int(probe.getsockname()[1])


class Watch(threading.Thread):
    """Looks at a program and its children until they end: peaks of memory and open files."""

    def __init__(self, pid: int) -> None:
        super().__init__(daemon=True)
        self._pid = pid
        self._ended = threading.Event()
        self.peaks: Counter[str] = Counter()

    def run(self) -> None:
        """Look, a few times a second."""
        while not self._ended.wait(LOOK_SECONDS):
            self._look("parent", self._pid)
            for task in Path(f"/proc/{self._pid}/task").glob("*/children"):
                for child in _text(task).split():
                    # Other children keep the books of shared memory and the like.
                    if b"spawn_main" in _text(Path(f"/proc/{child}/cmdline")).encode():
                        self._look("worker", int(child))

    def _look(self, who: str, pid: int) -> None:
        for line in _text(Path(f"/proc/{pid}/status")).splitlines():
            if line.startswith("VmHWM:"):
                self._note(f"{who}_peak_mb", int(line.split()[1]) // 1000)
        try:
            self._note(f"{who}_open_files", len(os.listdir(f"/proc/{pid}/fd")))
        except OSError:
            return

    def _note(self, name: str, value: int) -> None:
        self.peaks[name] = max(self.peaks[name], value)

    def stop(self) -> None:
        """Look no more."""
        self._ended.set()
        self.join()


def _text(path: Path) -> str:
    try:
        return path.read_text()
    except OSError:
        return ""


def fetch_many(
    folder: Path, hosts: Sequence[str], port: int, *, rows: int, workers: int, limit: float
) -> dict[str, Any]:
    """Fetch the list with headrace; stop after `limit` seconds. The images are served from `folder`/www."""
    if rows % 10:
        raise SystemExit(f"--million-rows must be a multiple of ten, got {rows}")
    free = shutil.disk_usage(folder).free
    if free < rows * BYTES_PER_ROW:
        raise SystemExit(
            f"{rows} rows take up to {rows * BYTES_PER_ROW / 1e9:.1f} GB, {folder} has {free / 1e9:.1f} GB"
        )
    sink = io.BytesIO()
    Image.linear_gradient("L").resize((64, 48)).convert("RGB").save(sink, "JPEG")
    (folder / "www" / "tiny.jpg").write_bytes(sink.getvalue())
    closed = closed_port(hosts[0])
    with tempfile.TemporaryDirectory(dir=folder) as name:
        place = Path(name)
        with (place / "urls.txt").open("w") as file:
            file.writelines(f"{line}\n" for line in lines(rows, hosts, port, closed))
        recipe = {
            "job": f"{place}/job",
            "unsafe_images": "off",
            "input": {"urls": [f"{place}/urls.txt"], "caption_column": None},
            "build": {"blur_faces": False},
            "fetch": {"allow_private": [f"{host}:{one}" for host in hosts for one in (port, closed)], "retries": 0},
            "engine": {"executor": "local", "workers": workers},
        }
        (place / "recipe.yaml").write_text(yaml.safe_dump(recipe))
        found = _watched([sys.executable, "-c", OURS, "fetch", f"{place}/recipe.yaml"], place, limit)
        found["disk_mb"] = sum(path.stat().st_size for path in place.rglob("*") if path.is_file()) // 1_000_000
        stats = [json.loads(path.read_text()) for path in (place / "job/raw").glob("*_stats.json")]
    told = Counter[str]()
    for stat in stats:
        told.update(stat["status_dict"])
    expected = {name: rows // 10 * share for name, share in EXPECTED.items()}
    if not found["cut_short"] and dict(told) != expected:
        raise SystemExit(f"of {expected} the tables hold {dict(told)}")
    done = told.total()
    return {
        "rows": rows,
        "workers": workers,
        "rows_done": done,
        "rows_per_second": done / found["wall_seconds"],
        **found,
    }


def _watched(command: Sequence[str], folder: Path, limit: float) -> dict[str, Any]:
    """Run a program in `folder` for `limit` seconds at most; return what it took."""
    with (folder / "output.log").open("w") as log:
        began = time.perf_counter()
        program = subprocess.Popen(command, stdout=log, stderr=log, cwd=folder)
        watch = Watch(program.pid)
        watch.start()
        stopper = threading.Timer(limit, program.terminate)
        stopper.start()
        _, status, used = os.wait4(program.pid, 0)
        program.returncode = os.waitstatus_to_exitcode(status)
        wall = time.perf_counter() - began
        cut_short = not stopper.is_alive()
        stopper.cancel()
        watch.stop()
    if program.returncode and not cut_short:
        raise SystemExit(f"headrace failed: {(folder / 'output.log').read_text()[-2000:]}")
    return {
        "wall_seconds": wall,
        "cpu_seconds": used.ru_utime + used.ru_stime,
        "cut_short": cut_short,
        **dict(sorted(watch.peaks.items())),
    }
