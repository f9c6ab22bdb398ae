"""CPU time per image of our stream beside the other loaders, and beside libjpeg-turbo alone.

Same photographs, same cores, same squares out: RandomResizedCrop 224 (antialiased) and flip, uint8 or normalised
float. The crops of each are checked against torchvision first. Each run is a process of its own, and what counts is
the CPU time of its whole tree of processes in steady state: where others work on the machine too,
it moves far less than images/s. Contestants run in turn, several rounds; of each the best round and worker count is
shown. A loader that is not installed is named with the reason.

    python benchmarks/loader.py imagenet-sample.tar [--also flickr8k-sample.tar] [--mosaics "4 MP 4:2:0"] [--json OUT]
"""

import argparse
import importlib
import json
import math
import os
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from loader_data import KINDS, MOSAICS, PhotoSet, mosaic_set, photo_set
from loader_peers import CONTESTANTS, SIDE

CHECKED_CROPS = 40
LEAST_DECIBELS = 40.0
LIMIT_SECONDS = 300
TICKS = os.sysconf("SC_CLK_TCK")

Row = dict[str, Any]


def main() -> None:
    """Prepare the photographs, check every contestant's crops, run them in turn, print and write the table."""
    arguments = _arguments()
    if arguments.child:
        print("\n" + json.dumps(run_here(arguments)))
        return
    rows: list[Row] = []
    with tempfile.TemporaryDirectory() as folder:
        photos = photo_set(Path(arguments.tar).stem, arguments.tar, Path(folder, "0"))
        decibels, absent = check_all(photos, arguments.only)
        for name, reason in absent.items():
            print(f"left out: {name}: {reason}", flush=True)
        for number, name in enumerate([photos.name, *arguments.also, *arguments.mosaics]):
            one = photos if number == 0 else _other_set(name, photos, Path(folder, str(number)))
            for floats in (False, True) if number == 0 and not arguments.no_floats else (False,):
                rows += measure(one, [*decibels], floats=floats, arguments=arguments)
                for row in rows:
                    row["decibels"] = decibels[row["contestant"]]
                show([row for row in rows if row["photographs"] == one.name and row["floats"] == floats])
    if arguments.json:
        host = {"cores": len(os.sched_getaffinity(0)), "seconds": arguments.seconds, "rounds": arguments.rounds}
        Path(arguments.json).write_text(json.dumps({**host, "left_out": absent, "rows": rows}, indent=1) + "\n")


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("tar", help="photographs: a tar of JPEGs")
    parser.add_argument("--also", nargs="*", default=[], metavar="TAR", help="other tars, uint8 only")
    every = [f"{size} {kind}" for size in MOSAICS for kind in KINDS]
    parser.add_argument("--mosaics", nargs="*", default=[], choices=every, help="made of the photographs, uint8 only")
    parser.add_argument("--only", nargs="*", default=[], choices=[*CONTESTANTS], metavar="NAME", help="contestants")
    parser.add_argument("--no-floats", action="store_true", help="leave out the normalised floats")
    parser.add_argument("--seconds", type=float, default=4.0, help="that each run is measured")
    parser.add_argument("--warm", type=float, default=3.0, help="seconds before, after the first batch")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--json", metavar="OUT", help="write all rows to this file")
    parser.add_argument("--child", nargs=3, metavar=("NAME", "WORKERS", "FLOATS"), help=argparse.SUPPRESS)
    return parser.parse_args()


def _other_set(name: str, photos: PhotoSet, folder: Path) -> PhotoSet:
    size, _, kind = name.rpartition(" ")
    if size in MOSAICS and kind in KINDS:
        return mosaic_set(size, kind, photos.payloads(), folder)
    return photo_set(Path(name).stem, name, folder)


def check_all(photos: PhotoSet, only: list[str]) -> tuple[dict[str, float | None], dict[str, str]]:
    """Return the mean PSNR of those that may run (None: no crops), and why the others may not."""
    from torchvision.transforms.v2 import functional

    from headrace.pipeline.augment.crop import choose_window
    from headrace.pipeline.mixture import Augment
    from headrace.shards.images.decode import decode_rgb

    rng, expected = random.Random(0), []
    for data in photos.payloads()[:CHECKED_CROPS]:
        import torch

        pixels = torch.from_numpy(decode_rgb(data)).permute(2, 0, 1)
        window = choose_window(Augment(), [rng.random() for _ in range(41)], *pixels.shape[1:])[:4]
        square = functional.resized_crop(pixels, *window, [SIDE, SIDE], antialias=True).permute(1, 2, 0).numpy()
        expected.append((data, window, square.astype(np.float64)))
    decibels: dict[str, float | None] = {}
    absent: dict[str, str] = {}
    for name, contestant in CONTESTANTS.items():
        if only and name not in only:
            continue
        try:
            importlib.import_module(contestant.module)
        except ImportError as error:
            absent[name] = str(error)
            continue
        crop = contestant.crop
        if crop is None:
            decibels[name] = None
            continue
        mean = float(np.mean([psnr(crop(data, window), square) for data, window, square in expected]))
        if mean < LEAST_DECIBELS:
            absent[name] = f"its crops are {mean:.1f} dB from torchvision's"
        else:
            decibels[name] = mean
    return decibels, absent


def psnr(one: Any, two: Any) -> float:
    """Return decibels, 100 where nothing differs."""
    error = float(((np.asarray(one, np.float64) - two) ** 2).mean())
    return 10 * math.log10(255**2 / error) if error > 1e-5 else 100.0


def measure(photos: PhotoSet, names: list[str], *, floats: bool, arguments: argparse.Namespace) -> list[Row]:
    """Run every contestant at every worker count, in turn; return the best of each."""
    best: dict[str, Row] = {}
    for _ in range(arguments.rounds):
        for name in names:
            if floats and CONTESTANTS[name].crop is None:
                continue
            for workers in CONTESTANTS[name].workers:
                row = run_child(photos, name, workers, floats=floats, arguments=arguments)
                old = best.setdefault(name, row)
                # Both are the loader's best, if at different worker counts: it is asked for little CPU, and for speed.
                if row.get("cpu_ms", math.inf) < old.get("cpu_ms", math.inf):
                    best[name] = {**row, "images_per_s": max(row["images_per_s"], old.get("images_per_s", 0))}
                elif "images_per_s" in row:
                    old["images_per_s"] = max(row["images_per_s"], old["images_per_s"])
    return [best[name] for name in names if name in best]


def run_child(photos: PhotoSet, name: str, workers: int, *, floats: bool, arguments: argparse.Namespace) -> Row:
    """Run one contestant in a process of its own."""
    row: Row = {"photographs": photos.name, "contestant": name, "workers": workers, "floats": floats}
    command = [sys.executable, "-W", "ignore", __file__, "-", "--child", name, str(workers), str(int(floats))]
    try:
        done = subprocess.run(
            [*command, "--seconds", str(arguments.seconds), "--warm", str(arguments.warm)],
            input=photos.to_json(),
            capture_output=True,
            text=True,
            timeout=LIMIT_SECONDS,
            check=True,
        )
        return {**row, **json.loads(done.stdout.splitlines()[-1])}
    except subprocess.TimeoutExpired:
        return {**row, "failed": f"no end after {LIMIT_SECONDS} s"}
    except subprocess.CalledProcessError as error:
        return {**row, "failed": (error.stderr.strip().splitlines() or ["?"])[-1][:300]}


def run_here(arguments: argparse.Namespace) -> Row:
    """Measure one contestant in this process, and what it starts."""
    import torch

    torch.set_num_threads(1)
    name, workers, floats = arguments.child
    contestant, photos = CONTESTANTS[name], PhotoSet.from_json(sys.stdin.read())
    importlib.import_module(contestant.module)
    begun = time.perf_counter()
    batches = contestant.open(photos, int(workers), floats == "1")
    shape = np.shape(next(batches)) if contestant.crop else (photos.batch,)
    first_batch = time.perf_counter() - begun
    assert shape[0] == photos.batch, shape
    while time.perf_counter() - begun < first_batch + arguments.warm:  # until what it keeps ahead is there
        next(batches)
    cpu, begun, images = tree_cpu_seconds(os.getpid()), time.perf_counter(), 0
    while (seconds := time.perf_counter() - begun) < arguments.seconds:
        next(batches)
        images += photos.batch
    cpu = tree_cpu_seconds(os.getpid()) - cpu
    memory = sum(pss_bytes(process) for process in tree(os.getpid())) / 1e6
    sys.stdout.flush()
    return {
        "cpu_ms": cpu / images * 1e3,
        "images_per_s": images / seconds,
        "first_batch_s": first_batch,
        "memory_mb": memory,
    }


def tree(process: int) -> list[int]:
    """Return a process and all that came of it."""
    found = [process]
    for thread in Path(f"/proc/{process}/task").iterdir():
        for child in (thread / "children").read_text().split():
            found += tree(int(child))
    return found


def tree_cpu_seconds(process: int) -> float:
    """Return the CPU time of a process, of those that live of it, and of those that have ended."""
    total = 0
    for one in tree(process):
        fields = Path(f"/proc/{one}/stat").read_text().rpartition(")")[2].split()
        total += sum(map(int, fields[11:15]))
    return total / TICKS


def pss_bytes(process: int) -> int:
    """Return a process's memory; what it shares is divided among the sharers."""
    for line in Path(f"/proc/{process}/smaps_rollup").read_text().splitlines():
        if line.startswith("Pss:"):
            return int(line.split()[1]) * 1024
    return 0


def show(rows: list[Row]) -> None:
    """Print one table, as docs/speed.md has it."""
    good = [row for row in rows if "cpu_ms" in row]
    if not good:
        return
    bare = next((row["cpu_ms"] for row in good if row["decibels"] is None), math.nan)
    peers = [row for row in good if row["decibels"] is not None and not row["contestant"].startswith("headrace")]
    best = min((row["cpu_ms"] for row in peers), default=math.nan)
    kind = "normalised float" if rows[0]["floats"] else "uint8"
    print(f"\n{rows[0]['photographs']}, {kind}, {len(os.sched_getaffinity(0))} cores\n")
    print("| | CPU ms an image | of bare decoding | of the best peer | images/s | first batch s | memory MB | dB |")
    print("| --- | --- | --- | --- | --- | --- | --- | --- |")
    for row in rows:
        if "failed" in row:
            print(f"| {row['contestant']} | failed: {row['failed']} |")
            continue
        cpu, loud = row["cpu_ms"], "" if row["decibels"] is None else f"{row['decibels']:.0f}"
        print(
            f"| {row['contestant']} | {cpu:.2f} | {cpu / bare:.2f} | {cpu / best:.2f} | {row['images_per_s']:.0f} "
            f"| {row['first_batch_s']:.2f} | {row['memory_mb']:.0f} | {loud} |",
            flush=True,
        )


if __name__ == "__main__":
    main()
