"""Opening, resuming and the first batch of a stream over two billion samples, 200,000 shards and ten sources.

The dataset is synthetic and fits any disk: its manifests name every shard, each with an index of its own sum; tar and
index of a shard are made when a measurement is about to read them (a hard link, and the one real index with the shard's
number written into its last bytes). Every number is taken in a fresh process whose pages of these files were dropped
from the page cache. One thing a reader would get wrong: the index cache on disk is cold in the first round and warm in
the second.

    python benchmarks/open_stream.py imagenet-sample.tar [--shards 200000] [--mosaic PYTHON]

MosaicML Streaming keeps a plan of the epoch in memory, so it is measured at the size that `--mosaic-samples` says; its
first batch decodes nothing.
"""

import argparse
import contextlib
import hashlib
import itertools
import json
import os
import random
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

SAMPLES = 10_000
"""In a shard."""
SOURCES = 10
LANES = 64
RANKS = 8
IMAGES = 256
"""In a batch of one rank."""
MARK = b"SHARD-0000000000"
"""What stands in the last bytes of the index; each shard has its number there."""
TEXTS = {
    "caption": "A photograph number {} of a street in the evening, with people, two dogs and a red bicycle",
    "url": "https://images.example.org/photos/2019/07/{}/original.jpg",
}
MADE_BATCHES = 24
"""Batches whose shards are made; reading ahead beyond them fails, which nobody takes."""
POSITIONS = 3
NAMES = ("cold index cache", "warm index cache")


def main() -> None:
    """Make the dataset, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", help="tar of JPEGs")
    parser.add_argument("--shards", type=int, default=200_000, help="in all sources together")
    parser.add_argument(
        "--folder", default="", help="where the dataset is made, and found again; 4 GB; default: temporary"
    )
    parser.add_argument("--mosaic", default="", help="a python that has mosaicml-streaming: measured beside")
    parser.add_argument("--mosaic-samples", type=int, default=20_000_000)
    parser.add_argument("--measure", default="", help=argparse.SUPPRESS)
    parser.add_argument("--position", type=int, default=0, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.measure and arguments.position < 0:
        print(json.dumps(measure_mosaic(Path(arguments.measure), arguments.source, arguments.mosaic_samples)))
        return
    if arguments.measure:
        print(json.dumps(measure(Path(arguments.measure), arguments.position)))
        return
    with contextlib.ExitStack() as stack:
        folder = Path(arguments.folder or stack.enter_context(tempfile.TemporaryDirectory()))
        begun = time.perf_counter()
        if not (folder / "index.parquet").exists():
            make(folder, arguments.source, arguments.shards // SOURCES)
        print(f"{arguments.shards} shards, {arguments.shards * SAMPLES:,} samples, {SOURCES} sources, {IMAGES} images")
        print(f"a batch on rank 0 of {RANKS}, {LANES} lanes; made in {time.perf_counter() - begun:.0f} s")
        show(folder, arguments.shards * SAMPLES)
        if not arguments.mosaic:
            print("\nMosaicML Streaming: left out, as --mosaic names no python that has it")
            return
        sized = ["--mosaic-samples", str(arguments.mosaic_samples), "--position", "-1"]
        command = [arguments.mosaic, __file__, arguments.source, "--measure", str(folder / "mosaic"), *sized]
        run = subprocess.run(command, check=False, capture_output=True, text=True)
        print("\nMosaicML Streaming:", run.stdout.strip() or run.stderr.strip().splitlines()[-1])


def show(folder: Path, num_samples: int) -> None:
    """Measure at the beginning and at random positions, with an index cache that is cold, then warm."""
    draw = random.Random(5)
    steps = [0, *(draw.randrange(num_samples // (IMAGES * RANKS)) for _ in range(POSITIONS))]
    for step in steps:
        materialise(folder, step)
    found: dict[str, list[dict[str, float]]] = {name: [] for name in NAMES}
    for name, step in itertools.product(NAMES, steps):
        drop_pages(folder)
        command = [sys.executable, __file__, "-", "--measure", str(folder), "--position", str(step)]
        out = subprocess.run(command, check=True, capture_output=True, text=True, env=environment(folder)).stdout
        found[name].append(json.loads(out))
    for name in NAMES:
        start, *resumed = found[name]
        print(f"\n{name:<44} {'from the start':>16} {'after a resume':>16}")
        for key in start:
            worst = max(entry[key] for entry in resumed)
            print(f"{key:<44} {start[key]:>16.3f} {worst:>16.3f}")


def environment(folder: Path) -> dict[str, str]:
    """Return this environment with an index cache of the benchmark's own."""
    return {**os.environ, "XDG_CACHE_HOME": str(folder / "cache"), "OMP_NUM_THREADS": "1"}


def measure(folder: Path, step: int) -> dict[str, float]:
    """Open, resume at `step` and take two batches; in a process of its own."""
    from headrace.pipeline import open_stream

    mixture = mixture_of(folder)
    before, peak = status("VmRSS"), 0.0
    begun = time.perf_counter()
    with open_stream(mixture, global_batch=IMAGES * RANKS, rank=0, world_size=RANKS) as stream:
        opened, used, peak = time.perf_counter() - begun, cpu(), status("VmHWM")
        state = json.dumps({**stream.state_dict(), "position": step * IMAGES * RANKS})
        begun = time.perf_counter()
        stream.load_state_dict(json.loads(state))
        resumed, read = time.perf_counter() - begun, read_bytes()
        used = cpu()
        begun = time.perf_counter()
        next(stream)
        first, first_read, first_used = time.perf_counter() - begun, read_bytes() - read, cpu() - used
        begun = time.perf_counter()
        for _ in range(4):
            next(stream)
        later = (time.perf_counter() - begun) / 4
    return {
        "opening, s": opened,
        "process before opening, MB": before / 1e6,
        "process after opening, peak MB": peak / 1e6,
        "state, bytes": float(len(state)),
        "resume, s": resumed,
        "first batch, s": first,
        "first batch, CPU s": first_used,
        "read until it came, MB": first_read / 1e6,
        "each of the next four batches, s": later,
    }


def measure_mosaic(folder: Path, source: str, num_samples: int) -> dict[str, float]:
    """Open MosaicML's dataset over hard links of one real shard of 1,000 and take one batch; in its own python."""
    from streaming import MDSWriter, StreamingDataset
    from torch.utils.data import DataLoader

    if not (folder / "index.json").exists():
        columns = {"image": "bytes", "label": "int"}
        with MDSWriter(out=str(folder / "one"), columns=columns, size_limit=None) as out:
            for number, image in zip(range(1000), itertools.cycle(list(read_images(source)))):
                out.write({"image": image, "label": number})
        facts = json.loads((folder / "one/index.json").read_text())
        (shard,) = facts["shards"]
        shards = []
        for number in range(num_samples // 1000):
            name = f"shard.{number:06d}.mds"
            os.link(folder / "one" / shard["raw_data"]["basename"], folder / name)
            shards.append({**shard, "raw_data": {**shard["raw_data"], "basename": name}})
        (folder / "index.json").write_text(json.dumps({**facts, "shards": shards}))
    before, begun = status("VmHWM"), time.perf_counter()
    dataset = StreamingDataset(local=str(folder), shuffle=True, batch_size=IMAGES, num_canonical_nodes=1)
    opened = time.perf_counter()
    next(iter(DataLoader(dataset, batch_size=IMAGES, collate_fn=len)))
    return {
        "samples": num_samples,
        "opening, s": opened - begun,
        "first batch, s": time.perf_counter() - opened,
        "process before opening, MB": before / 1e6,
        "peak MB": status("VmHWM") / 1e6,
    }


def mixture_of(folder: Path) -> Any:
    """Return the mixture of the made sources."""
    from headrace.pipeline import Mixture, Source

    sources = [
        Source(name=f"s{number}", url=str(folder / f"s{number}"), weight=number + 1) for number in range(SOURCES)
    ]
    return Mixture(lanes=LANES, sources=tuple(sources))


def status(field: str) -> float:
    """Return a field of /proc/self/status, bytes."""
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(field))
    return float(line.split()[1]) * 1024


def read_bytes() -> float:
    """Return the bytes that this process has asked files for, from disk or page cache."""
    return float(Path("/proc/self/io").read_text().split("rchar: ")[1].split()[0])


def cpu() -> float:
    """Return the CPU seconds of this process."""
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


def make(folder: Path, source: str, shards_per_source: int) -> None:
    """Write one real shard, and the manifests of all."""
    from headrace.shards.index import read_index
    from headrace.shards.manifest import OWN_LAYOUT
    from headrace.shards.parquet import parquet_bytes
    from headrace.shards.write import Sample, write_manifest, write_shard

    images = list(read_images(source))
    samples = (
        Sample(f"{number:09d}", image, "jpg", {name: text.format(number) for name, text in TEXTS.items()})
        for number, image in zip(range(SAMPLES), itertools.cycle(images))
    )
    record = write_shard(str(folder / "real"), "0", samples)
    table = read_index(str(folder / "real/shards/0.parquet")).replace_schema_metadata({"shard": MARK.decode()})
    index = parquet_bytes(table)
    head, tail = cut(index)
    sum_of_head = hashlib.sha256(head)
    for number in range(SOURCES):
        rows = []
        for shard in range(shards_per_source):
            digest = sum_of_head.copy()
            digest.update(marked(tail, number, shard))
            tar = hashlib.sha256(f"{number} {shard}".encode()).hexdigest()
            rows.append({**record, "name": f"{shard:08d}", "sha256": tar, "index_sha256": digest.hexdigest()})
        write_manifest(str(folder / f"s{number}"), rows, {"recipe_digest": "made", "layout": OWN_LAYOUT})
    (folder / "index.parquet").write_bytes(index)


def read_images(source: str) -> Iterator[bytes]:
    """Yield the JPEGs of a tar."""
    import tarfile

    with tarfile.open(source) as tar:
        for member in tar:
            if member.name.lower().endswith((".jpg", ".jpeg")):
                file = tar.extractfile(member)
                assert file is not None
                yield file.read()


def cut(index: bytes) -> tuple[bytes, bytes]:
    """Return the index before and from the mark that its last bytes hold; Arrow's own copy of the schema is base64."""
    at = index.rindex(MARK)
    return index[:at], index[at:]


def marked(tail: bytes, source: int, shard: int) -> bytes:
    """Return the tail with the number of a shard in it: another file, another sum, the same rows."""
    return f"SHARD-{source:02d}{shard:08d}".encode() + tail[len(MARK) :]


def materialise(folder: Path, step: int) -> None:
    """Make tar and index of the shards that the batches from `step` on need."""
    from headrace.pipeline import open_stream

    head, tail = cut((folder / "index.parquet").read_bytes())
    with open_stream(mixture_of(folder), global_batch=IMAGES * RANKS, rank=0, world_size=RANKS) as stream:
        needed: set[tuple[int, int]] = set()
        for number in range(step, step + MADE_BATCHES):
            placed = stream.plan.batch(number).placed
            for source, sample in zip(placed.source.tolist(), placed.sample.tolist(), strict=True):
                chunk = stream.plan.chunk_samples(source)
                first = sample // chunk * chunk
                needed |= {(source, first // SAMPLES), (source, (first + chunk - 1) // SAMPLES)}
    for source, shard in needed:
        base = folder / f"s{source}/shards/{shard:08d}"
        if base.with_suffix(".tar").exists():
            continue
        base.parent.mkdir(parents=True, exist_ok=True)
        os.link(folder / "real/shards/0.tar", base.with_suffix(".tar"))
        base.with_suffix(".parquet").write_bytes(head + marked(tail, source, shard))


def drop_pages(folder: Path) -> None:
    """Drop the pages of everything that was made from the page cache."""
    os.sync()
    for path in folder.rglob("*"):
        if path.is_file():
            handle = os.open(path, os.O_RDONLY)
            os.posix_fadvise(handle, 0, 0, os.POSIX_FADV_DONTNEED)
            os.close(handle)


if __name__ == "__main__":
    main()
