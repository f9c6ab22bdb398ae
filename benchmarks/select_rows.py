"""Select on synthetic rows: seconds by step, peak memory, and how many planted near-duplicates are found.

    python benchmarks/select_rows.py [ROWS] [--memory-gb GB] [--threads N]

Rows hold random PDQ hashes; one row in ten is a copy of an earlier row at distance 2 to 20 (uniform), and clusters
whose sizes follow Zipf's law up to ROWS / 1000 share one centre. The recipe: two rules, exact duplicates, near-
duplicates, top 30 %.
"""

import argparse
import json
import resource
import shutil
import tempfile
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from headrace.curation.annotate.unit import write_annotations
from headrace.curation.job import Job
from headrace.curation.ledger import latest_decision
from headrace.curation.select.database import Limits
from headrace.curation.select.load import find_inputs
from headrace.curation.select.place import Placement
from headrace.curation.select.stage import Selection, select_rows
from headrace.curation.select.steps import ExactDuplicates, NearDuplicates, Rule, TopFraction
from headrace.shards.units import EngineConfig

ROWS_PER_SHARD = 10_000
PLANTED_SHARE = 0.1


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("rows", type=float, nargs="?", default=1e6)
    parser.add_argument("--memory-gb", type=float, default=4.0)
    parser.add_argument("--threads", type=int, default=0)
    arguments = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="headrace-select-"))
    try:
        print(json.dumps(measure(folder, int(arguments.rows), arguments.memory_gb, arguments.threads), indent=1))
    finally:
        shutil.rmtree(folder)


def measure(folder: Path, num_rows: int, memory_gb: float, threads: int) -> dict[str, object]:
    """Write the tables, run select, compare with what was planted."""
    hashes, copy_of, bits = make_hashes(num_rows)
    write_tables(folder, hashes)
    annotations = {name: str(folder / "annotations" / f"{name}-0") for name in ("image", "hashes", "clip")}
    plan = Selection(
        steps=(
            Rule(name="size", keep="least(image_width, image_height) >= 200"),
            Rule(name="aspect", keep="aspect <= 3"),
            ExactDuplicates(order=("image_width * image_height desc",)),
            NearDuplicates(order=("image_width * image_height desc", "clip_score desc")),
            TopFraction(score="clip_score", fraction=0.3, of="input"),
        ),
        placement=Placement(seed=0, shuffle_window=16, samples_per_shard=10_000),
    )
    limits = Limits(memory_bytes=int(memory_gb * 2**30), threads=threads)
    marks: list[float] = []
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    start, start_cpu = time.perf_counter(), time.process_time()
    summary = select_rows(
        find_inputs(Job(str(folder)), annotations),
        plan,
        limits=limits,
        engine=EngineConfig(executor="inline"),
        on_progress=lambda _: marks.append(time.perf_counter() - start),
    )
    seconds, cpu_seconds = time.perf_counter() - start, time.process_time() - start_cpu
    names = [step.name for step in summary.steps]
    steps = np.diff([*marks[-len(names) - 2 :]]).round(2).tolist()
    return {
        "rows": num_rows,
        "seconds": round(seconds, 2),
        "cpu_seconds": round(cpu_seconds, 2),
        "load_seconds": round(marks[-len(names) - 2], 2),
        "step_seconds": dict(zip([*names, "write"], steps, strict=True)),
        "peak_memory_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024,
        "memory_before_mb": before // 1024,
        "near_duplicates": summary.steps[5].details | {"dropped": summary.steps[5].dropped},
        "recall_of_planted_pairs": recall(folder, copy_of, bits),
        "kept": summary.kept,
    }


def make_hashes(num_rows: int) -> tuple[NDArray[np.uint8], NDArray[np.int64], NDArray[np.int64]]:
    """Return hashes [n, 32], for each row the row it copies (or -1), and the bits in which the two differ."""
    rng = np.random.Generator(np.random.Philox(key=1))
    hashes = rng.integers(0, 256, (num_rows, 32), dtype=np.uint8)
    clusters = np.minimum(rng.zipf(2.0, num_rows // 100), max(2, num_rows // 1000))
    first = 0
    for size in clusters[np.cumsum(clusters) < num_rows // 10].tolist():
        for row in range(first + 1, first + size):
            hashes[row] = flipped(hashes[first], rng.choice(256, int(rng.integers(1, 11)), replace=False))
        first += size
    copy_of = np.full(num_rows, -1)
    bits = np.zeros(num_rows, np.int64)
    copies = rng.permutation(np.arange(num_rows // 2, num_rows))[: int(num_rows * PLANTED_SHARE)]
    for row in copies.tolist():
        source = int(rng.integers(num_rows // 4, num_rows // 2))
        bits[row] = rng.integers(2, 21)
        hashes[row] = flipped(hashes[source], rng.choice(256, bits[row], replace=False))
        copy_of[row] = source
    return hashes, copy_of, bits


def flipped(data: NDArray[np.uint8], bits: NDArray[np.int64]) -> NDArray[np.uint8]:
    """Return a hash that differs in these bits."""
    changed = data.copy()
    np.bitwise_xor.at(changed, bits // 8, (1 << bits % 8).astype(np.uint8))
    return changed


def write_tables(folder: Path, hashes: NDArray[np.uint8]) -> None:
    """Write raw shards and annotations with the contract's columns."""
    rng = np.random.Generator(np.random.Philox(key=2))
    for number in range(-(-len(hashes) // ROWS_PER_SHARD)):
        start = number * ROWS_PER_SHARD
        rows = np.arange(start, min(start + ROWS_PER_SHARD, len(hashes)))
        keys = pa.array([f"{number:05d}{row - start:04d}" for row in rows])
        pdq = pa.array([row.tobytes() for row in hashes[rows]], pa.binary(32))
        wide, high = rng.integers(150, 1200, (2, rows.size)).astype(np.int32)
        # One row in twenty repeats the bytes of another.
        codes = np.where(rng.random(rows.size) < 0.05, rng.integers(0, len(hashes), rows.size), rows)
        sha256 = pa.array([f"{code:064x}" for code in codes])
        raw = {
            "key": keys,
            "uid": pa.array([f"{row * 2654435761 % 2**32:08x}{row:024x}" for row in rows]),
            "url": pa.array([f"http://host{row % 997}.example/{row}.jpg" for row in rows]),
            "caption": pa.array([f"caption {row}" for row in rows]),
            "status": pa.array(["success"] * rows.size),
            "error_class": pa.nulls(rows.size, pa.string()),
            "error_message": pa.nulls(rows.size, pa.string()),
            "width": wide,
            "height": high,
            "original_width": wide,
            "original_height": high,
            "format": pa.array(["jpeg"] * rows.size),
            "sha256": sha256,
            "input_file": pa.array(["list.parquet"] * rows.size),
            "input_row": rows,
        }
        write(folder / "raw" / f"{number:05d}.parquet", raw)
        (folder / "raw" / "commits").mkdir(exist_ok=True)
        (folder / "raw" / "commits" / f"{number:05d}.json").write_text("{}")
        image = {
            "image_width": wide,
            "image_height": high,
            "aspect": (np.maximum(wide, high) / np.minimum(wide, high)).astype(np.float32),
            "decode_error": pa.nulls(rows.size, pa.string()),
        }
        quality = np.full(rows.size, 90, np.int16)
        tables = {
            "image-0": image,
            "hashes-0": {"sha256": sha256, "pdq": pdq, "pdq_trimmed": pdq, "pdq_quality": quality},
            "clip-0": {"clip_score": rng.normal(0.25, 0.05, rows.size).astype(np.float32)},
        }
        for name, columns in tables.items():
            write_annotations(
                str(folder / "annotations" / name), f"{number:05d}", pa.table({"key": keys, **columns}), {}
            )


def write(path: Path, columns: dict[str, object]) -> None:
    """Write one parquet file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table(columns), path)


def recall(folder: Path, copy_of: NDArray[np.int64], bits: NDArray[np.int64]) -> dict[str, object]:
    """Return the share of planted pairs of which one was dropped, among those whose rows both reached the step."""
    url = latest_decision(Job(str(folder))).ledger.table
    table = pq.read_table(url, columns=["input_row", "step"]).sort_by("input_row")
    step = np.array(table["step"].fill_null("kept").to_pylist())
    reached = ~np.isin(step, ["size", "aspect", "exact_duplicates"])
    dropped = step == "near_duplicates"
    rows = np.flatnonzero(copy_of >= 0)
    rows = rows[reached[rows] & reached[copy_of[rows]]]
    found = dropped[rows] | dropped[copy_of[rows]]
    ranges = {"2-8": (2, 8), "9-15": (9, 15), "16-20": (16, 20)}
    shares = {
        name: round(float(found[(bits[rows] >= low) & (bits[rows] <= high)].mean()), 5)
        for name, (low, high) in ranges.items()
    }
    return {"pairs": int(rows.size), "all": round(float(found.mean()), 5), **shares}


if __name__ == "__main__":
    main()
