"""Fetch beside img2dataset: one nginx, many hosts, resize to 256; a list with trickling URLs; what signals cost.

python benchmarks/curation.py [--images TAR] [--rows 3000] [--parts plain steps trickle signals] [--json OUT.json]
python benchmarks/curation.py --parts million [--million-rows 1000000]

Each contestant is a program of its own, from list to finished shards; its CPU time is that of its whole process tree
(wait4), nginx not counted. They run in turn, so what counts are ratios. Hosts are loopback addresses: a name for each
would need the system's resolver. img2dataset must be installed; nginx is the system's, or what HEADRACE_NGINX names.
"""

import argparse
import asyncio
import contextlib
import hashlib
import io
import json
import multiprocessing
import os
import platform
import shutil
import socket
import subprocess
import sys
import tarfile
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from many_rows import OURS, fetch_many
from PIL import Image, ImageFilter

from headrace.config import build_config
from headrace.curation.recipe import Recipe

NUM_PICTURES = 100
CONCURRENCY = 64
PEER = "from fire import Fire; from img2dataset import download; Fire(download)"


@dataclass(frozen=True, slots=True)
class Cost:
    """What one run took."""

    contestant: str
    processes: int
    wall_seconds: float
    cpu_seconds: float
    images: int


@dataclass(frozen=True, slots=True)
class Web:
    """What is served: `hosts` by nginx, `slow` by a server that trickles."""

    folder: Path
    port: int
    hosts: tuple[str, ...]
    slow: str

    def pairs(self) -> list[str]:
        return [f"{host}:{self.port}" for host in (*self.hosts, self.slow)]

    def urls(self, rows: int, *, trickling: float = 0.0) -> list[str]:
        """Return `rows` different URLs, spread over the hosts; of these a share trickles, evenly over the list."""
        every = round(1 / trickling) if trickling else 2 * rows + 2
        return [
            f"http://{self.slow if row % every == every // 2 else self.hosts[row % len(self.hosts)]}:{self.port}"
            f"/{row % NUM_PICTURES}.jpg?{row}"
            for row in range(rows)
        ]


def pictures(tar: Path | None) -> Iterator[bytes]:
    """Yield JPEGs: photographs of a tar, or drawn ones of about 110 kB."""
    if tar is not None:
        with tarfile.open(tar) as archive:
            for member in archive:
                if member.isfile() and member.name.lower().endswith((".jpg", ".jpeg")):
                    file = archive.extractfile(member)
                    assert file is not None
                    yield file.read()
        return
    for seed in range(NUM_PICTURES):
        noise = np.random.default_rng(seed).integers(0, 256, (600, 800, 3), np.uint8)
        sink = io.BytesIO()
        Image.fromarray(noise).filter(ImageFilter.GaussianBlur(0.8)).save(sink, "JPEG", quality=80)
        yield sink.getvalue()


@contextlib.contextmanager
def served(folder: Path, tar: Path | None, num_hosts: int, trickle_seconds: float) -> Iterator[Web]:
    """Serve pictures with nginx at `num_hosts` addresses, and a trickling server at one more."""
    root = folder / "www"
    root.mkdir()
    for number, data in zip(range(NUM_PICTURES), pictures(tar), strict=False):
        (root / f"{number}.jpg").write_bytes(data)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    hosts = tuple(f"127.0.{1 + number // 200}.{1 + number % 200}" for number in range(num_hosts))
    web = Web(folder, port, hosts, "127.0.250.1")
    listen = "".join(f"listen {host}:{port} backlog=4096; " for host in hosts)
    user = "user root;" if os.geteuid() == 0 else ""
    (folder / "nginx.conf").write_text(
        f"{user} daemon off; worker_processes 1; pid nginx.pid; error_log error.log;"
        "events { worker_connections 4096; } http { access_log access.log; types { image/jpeg jpg; }"
        f" client_body_temp_path tmp; proxy_temp_path tmp; fastcgi_temp_path tmp; uwsgi_temp_path tmp;"
        f" scgi_temp_path tmp; server {{ {listen} root {root}; }} }}"
    )
    program = os.environ.get("HEADRACE_NGINX") or shutil.which("nginx", path=f"{os.environ['PATH']}:/usr/sbin")
    if program is None:
        raise SystemExit("needs nginx (Debian: nginx), or HEADRACE_NGINX")
    nginx = subprocess.Popen([program, "-p", str(folder), "-c", "nginx.conf"], stderr=subprocess.DEVNULL)
    trickler = multiprocessing.Process(target=trickle, args=(web.slow, port, trickle_seconds), daemon=True)
    trickler.start()
    try:
        for host in (hosts[0], web.slow):
            _wait_for(host, port)
        yield web
    finally:
        trickler.terminate()
        nginx.terminate()
        nginx.wait()


def _wait_for(host: str, port: int) -> None:
    for _ in range(200):
        with contextlib.suppress(OSError), socket.create_connection((host, port), 1.0):
            return
        time.sleep(0.05)
    raise SystemExit(f"no server at {host}:{port}")


def trickle(host: str, port: int, seconds: float) -> None:
    """Answer everything with one byte a second, for so many seconds."""

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError, asyncio.IncompleteReadError):
            await reader.readuntil(b"\r\n\r\n")
            writer.write(f"HTTP/1.1 200 OK\r\nContent-Length: {int(seconds)}\r\nConnection: close\r\n\r\n".encode())
            for _ in range(int(seconds)):
                await asyncio.sleep(1.0)
                writer.write(b"\xff")
                await writer.drain()
        writer.close()

    async def serve() -> None:
        server = await asyncio.start_server(answer, host, port)
        await server.serve_forever()

    asyncio.run(serve())


def run(contestant: str, command: Sequence[str], processes: int, folder: Path) -> Cost:
    """Run a program and count what it and its children used."""
    with (folder / "output.log").open("w") as log:
        began = time.perf_counter()
        # Compiled once and kept, as where both are installed; else either compiles its sources at each start.
        compiled = {"PYTHONPYCACHEPREFIX": str(folder.parent / "compiled"), "PYTHONDONTWRITEBYTECODE": ""}
        environment = os.environ | compiled | {"NO_ALBUMENTATIONS_UPDATE": "1"}
        program = subprocess.Popen(command, stdout=log, stderr=log, cwd=folder, env=environment)
        _, status, used = os.wait4(program.pid, 0)
        program.returncode = os.waitstatus_to_exitcode(status)
        wall = time.perf_counter() - began
    if program.returncode:
        raise SystemExit(f"{contestant} failed: {(folder / 'output.log').read_text()[-2000:]}")
    stats = [json.loads(path.read_text()) for path in folder.rglob("*_stats.json")]
    return Cost(contestant, processes, wall, used.ru_utime + used.ru_stime, sum(item["successes"] for item in stats))


def ours(web: Web, urls: Sequence[str], processes: int, *, shard: int, signals: dict[str, Any] | None = None) -> Cost:
    """Fetch with headrace."""
    with tempfile.TemporaryDirectory(dir=web.folder) as name:
        folder = Path(name)
        (folder / "urls.txt").write_text("".join(f"{url}\n" for url in urls))
        recipe = {
            "job": f"{folder}/job",
            "unsafe_images": "off",
            "input": {"urls": [f"{folder}/urls.txt"], "caption_column": None},
            "build": {"blur_faces": False},
            "fetch": {
                "allow_private": web.pairs(),
                "samples_per_shard": shard,
                "concurrency": CONCURRENCY,
                "resize": "keep_ratio",
                "image_size": 256,
                "retries": 0,
                "signals": signals or {},
            },
            "engine": {"executor": "local", "workers": processes},
        }
        build_config(Recipe, recipe)
        (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe))
        return run("headrace", [sys.executable, "-c", OURS, "fetch", f"{folder}/recipe.yaml"], processes, folder)


def theirs(web: Web, urls: Sequence[str], processes: int, *, shard: int) -> Cost:
    """Fetch with img2dataset."""
    with tempfile.TemporaryDirectory(dir=web.folder) as name:
        folder = Path(name)
        (folder / "urls.txt").write_text("".join(f"{url}\n" for url in urls))
        options = {
            "url_list": f"{folder}/urls.txt",
            "input_format": "txt",
            "output_format": "webdataset",
            "output_folder": f"{folder}/out",
            "processes_count": processes,
            "thread_count": CONCURRENCY,
            "image_size": 256,
            "resize_mode": "keep_ratio",
            "resize_only_if_bigger": True,
            "encode_quality": 95,
            "number_sample_per_shard": shard,
            "retries": 0,
            "enable_wandb": False,
        }
        command = [sys.executable, "-c", PEER, *(f"--{key}={value}" for key, value in options.items())]
        return run("img2dataset", command, processes, folder)


def plain(web: Web, args: argparse.Namespace) -> dict[str, Any]:
    """A list of ten: what starting costs, the first time not counted; then the same list for both, in turn."""
    start = [fetch(web, web.urls(10), 1, shard=args.shard) for _ in range(2) for fetch in (ours, theirs)][2:]
    costs = [
        fetch(web, web.urls(args.rows), processes, shard=args.shard)
        for processes in args.processes
        for _ in range(args.pairs)
        for fetch in (ours, theirs)
    ]
    found: dict[str, Any] = {"costs": [asdict(cost) for cost in costs], "start": [asdict(cost) for cost in start]}
    found["ratios"] = {
        f"{processes} process(es), {unit}": [
            round(getattr(peer, f"{unit}_seconds") / getattr(own, f"{unit}_seconds"), 2)
            for own, peer in zip(costs[::2], costs[1::2], strict=True)
            if own.processes == processes
        ]
        for processes in args.processes
        for unit in ("cpu", "wall")
    }
    return {"rows": args.rows, "hosts": len(web.hosts), **found}


def steps(web: Web, _args: argparse.Namespace) -> dict[str, Any]:
    """CPU milliseconds of one image, by step, in one thread: ours, our first way, img2dataset's resizer."""
    import cv2
    import simplejpeg

    os.environ["NO_ALBUMENTATIONS_UPDATE"] = "1"
    from img2dataset.resizer import Resizer

    from headrace.curation.fetch.check import check_image
    from headrace.curation.fetch.config import FetchConfig
    from headrace.curation.fetch.encode import encode
    from headrace.curation.fetch.resize import change_image
    from headrace.shards.images.area import shrink

    cv2.setNumThreads(1)
    config = FetchConfig(resize="keep_ratio", image_size=256)
    peer = Resizer(image_size=256, resize_mode="keep_ratio", resize_only_if_bigger=True, encode_quality=95)
    images = [path.read_bytes() for path in sorted((web.folder / "www").glob("*.jpg"))][:16]
    headers = [check_image(data, max_pixels=config.max_pixels) for data in images]
    small = [simplejpeg.decode_jpeg(change_image(*both, config)[0]) for both in zip(images, headers, strict=True)]
    stored = [simplejpeg.decode_jpeg(data, colorspace="RGBX") for data in images]
    rgb = [np.ascontiguousarray(pixels[..., :3]) for pixels in stored]
    buffer = np.empty(max(pixels.size for pixels in stored), np.uint8)
    work: dict[str, Callable[[int], object]] = {
        "check and sha256": lambda n: (check_image(images[n], max_pixels=1 << 30), hashlib.sha256(images[n]).digest()),
        "decode": lambda n: simplejpeg.decode_jpeg(images[n], colorspace="RGBX", buffer=buffer),
        "decode, new memory": lambda n: simplejpeg.decode_jpeg(images[n], colorspace="RGB"),
        "decode, OpenCV": lambda n: cv2.imdecode(np.frombuffer(images[n], np.uint8), cv2.IMREAD_UNCHANGED),
        "shrink": lambda n: shrink(stored[n], *small[n].shape[:2]),
        "shrink, OpenCV": lambda n: cv2.resize(rgb[n], small[n].shape[1::-1], interpolation=cv2.INTER_AREA),
        "encode 4:2:0": lambda n: encode(small[n], "jpeg", 95, "420"),
        "encode 4:4:4": lambda n: encode(small[n], "jpeg", 95, "444"),
        "all, way 2": lambda n: change_image(images[n], headers[n], config),
        "all, way 1": lambda n: change_image(images[n], headers[n], config, resizing=1),
        "all, img2dataset": lambda n: peer(io.BytesIO(images[n])),
    }
    least = dict.fromkeys(work, float("inf"))
    for _ in range(5):  # in turn, and the least of five: the machine may be shared
        for name, step in work.items():
            began = time.thread_time()
            for number in range(len(images)):
                step(number)
            least[name] = min(least[name], 1000 * (time.thread_time() - began) / len(images))
    return {name: round(value, 3) for name, value in least.items()}


def million(web: Web, args: argparse.Namespace) -> dict[str, Any]:
    """Fetch a long list, most of it dead at once."""
    return fetch_many(
        web.folder, web.hosts, web.port, rows=args.million_rows, workers=2, limit=args.million_limit_seconds
    )


def slow(web: Web, args: argparse.Namespace) -> dict[str, Any]:
    """One URL in a hundred trickles."""
    urls = web.urls(args.slow_rows, trickling=0.01)
    costs = [fetch(web, urls, 1, shard=args.slow_rows // 4) for fetch in (ours, theirs)]
    return {"rows": len(urls), "trickle_seconds": args.trickle_seconds, "costs": [asdict(cost) for cost in costs]}


def signals(web: Web, args: argparse.Namespace) -> dict[str, Any]:
    """Three images of each host: what is asked for, and what it takes, with the signals and without."""
    urls = web.urls(3 * len(web.hosts))
    off = {"robots_txt": False, "tdm_file": False, "content_usage": False, "content_signal": False}
    found = {}
    for name, settings in (("on", {}), ("off", {**off, "crawl_delay_seconds": 0.0})):
        (web.folder / "access.log").write_text("")
        cost = ours(web, urls, 1, shard=args.shard, signals=settings)
        asked = Counter(line.split('"')[1].split()[1] for line in (web.folder / "access.log").read_text().splitlines())
        files = {path: count for path, count in asked.items() if path in ("/robots.txt", "/.well-known/tdmrep.json")}
        found[name] = {**asdict(cost), "requests": sum(asked.values()), "for_files_of_sites": files}
    return {"hosts": len(web.hosts), "images": len(urls), **found}


PARTS = {"plain": plain, "steps": steps, "trickle": slow, "signals": signals, "million": million}


def main() -> None:
    """Serve, let the contestants run, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=Path, help="a tar of JPEGs; else pictures are drawn")
    parser.add_argument("--rows", type=int, default=3000)
    parser.add_argument("--shard", type=int, default=1000, help="rows of one shard")
    parser.add_argument("--hosts", type=int, default=100)
    parser.add_argument("--processes", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--slow-rows", type=int, default=1000)
    parser.add_argument("--trickle-seconds", type=float, default=30.0)
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=[name for name in PARTS if name != "million"])
    parser.add_argument("--pairs", type=int, default=1, help="so many runs of each, in turn, for each of --processes")
    parser.add_argument("--million-rows", type=int, default=1_000_000)
    parser.add_argument("--million-limit-seconds", type=float, default=1800.0, help="then it is stopped")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    result: dict[str, Any] = {
        "cpus": os.cpu_count(),
        "machine": platform.machine(),
        "python": platform.python_version(),
        "load_before": os.getloadavg()[0],
    }
    with (
        tempfile.TemporaryDirectory() as folder,
        served(Path(folder), args.images, args.hosts, args.trickle_seconds) as web,
    ):
        result["mean_bytes"] = round(np.mean([path.stat().st_size for path in (Path(folder) / "www").iterdir()]))
        for part in args.parts:
            result[part] = PARTS[part](web, args)
            print(part, json.dumps(result[part], indent=1), flush=True)
    result["load_after"] = os.getloadavg()[0]
    if args.json:
        args.json.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
