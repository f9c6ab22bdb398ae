"""Select on synthetic rows: seconds by step, memory, spill, and how many planted near-duplicates are found.

    python benchmarks/select_rows.py [ROWS] [--memory-gb GB] [--threads N] [--folder DIR] [--tables DIR] [--out FILE]

Rows hold random PDQ hashes; one row in ten is a copy of an earlier row at distance 2 to 31 (uniform), and clusters
whose sizes follow Zipf's law up to ROWS / 1000 share one centre. The recipe: two rules, exact duplicates, near-
duplicates at distance 31, top 30 %. `--memory-gb` is for all processes together: the database gets half of it.
`--tables` keeps the tables, so that another run of as many rows need not make them again: at 1e8 rows that takes eight
minutes and 10 GB.
"""

import argparse
import hashlib
import json
import os
import shutil
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from headrace.curation.job import Job
from headrace.curation.ledger import latest_decision
from headrace.curation.select.database import Limits
from headrace.curation.select.load import find_inputs
from headrace.curation.select.place import Placement
from headrace.curation.select.stage import Selection, select_rows
from headrace.curation.select.steps import ExactDuplicates, NearDuplicates, Rule, TopFraction
from headrace.shards.parquet import open_parquet, parquet_bytes
from headrace.shards.progress import Progress
from headrace.shards.units import EngineConfig

ROWS_PER_SHARD = 10_000
PLANTED_SHARE = 0.1
DISTANCE = 31
WATCH_SECONDS = 0.5


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("rows", type=float, nargs="?", default=1e6)
    parser.add_argument("--memory-gb", type=float, default=8.0)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--folder", default=None, help="where the tables, a few hundred bytes a row, are written")
    parser.add_argument("--tables", type=Path, default=None, help="a folder of tables to use, or to make and keep")
    parser.add_argument("--out", type=Path, default=None, help="a file for the result, beside the terminal")
    arguments = parser.parse_args()
    folder = arguments.tables or Path(tempfile.mkdtemp(prefix="headrace-select-", dir=arguments.folder))
    try:
        making = make_tables(folder, int(arguments.rows))
        found = measure(folder, int(arguments.rows), arguments.memory_gb, arguments.threads)
        text = json.dumps(found | {"cpu_seconds_to_make_the_tables": making}, indent=1)
        print(text)
        if arguments.out:
            arguments.out.write_text(text + "\n")
    finally:
        shutil.rmtree(folder / "ledger" if arguments.tables else folder, ignore_errors=True)


def make_tables(folder: Path, num_rows: int) -> float:
    """Write the tables of a crawl, and what was planted in them; return processor seconds, 0 if they are there."""
    planted = folder / "planted.npz"
    if planted.exists():
        rows = len(np.load(planted)["bits"])
        if rows != num_rows:
            raise SystemExit(f"{folder} holds tables of {rows} rows, not of {num_rows}: give another --tables")
        return 0.0
    start = time.process_time()
    hashes, copy_of, bits = make_hashes(num_rows)
    write_tables(folder, hashes)
    np.savez(planted, copy_of=copy_of, bits=bits)
    return round(time.process_time() - start, 1)


def measure(folder: Path, num_rows: int, memory_gb: float, threads: int) -> dict[str, object]:
    """Run select on the tables, compare with what was planted."""
    annotations = {name: str(folder / "annotations" / f"{name}-0") for name in ("image", "hashes", "clip")}
    plan = Selection(
        steps=(
            Rule(name="size", keep="least(image_width, image_height) >= 200"),
            Rule(name="aspect", keep="aspect <= 3"),
            ExactDuplicates(order=("image_width * image_height desc",)),
            NearDuplicates(distance=DISTANCE, order=("image_width * image_height desc", "clip_score desc")),
            TopFraction(score="clip_score", fraction=0.3, of="input"),
        ),
        placement=Placement(seed=0, shuffle_window=16, samples_per_shard=10_000),
    )
    marks: list[tuple[int, float, float]] = []
    watch = Watch(folder / "ledger")
    start, before = time.perf_counter(), cpu_seconds()

    def mark(progress: Progress) -> None:
        marks.append((progress.done, time.perf_counter() - start, cpu_seconds() - before))

    with watch:
        summary = select_rows(
            find_inputs(Job(str(folder)), annotations),
            plan,
            limits=Limits(memory_bytes=int(memory_gb * 2**29), threads=threads),
            engine=EngineConfig(workers=threads),
            on_progress=mark,
        )
    return {
        "rows": num_rows,
        "seconds": round(marks[-1][1], 1),
        "cpu_seconds": round(marks[-1][2], 1),
        "phases": phases(marks, summary.steps, watch.samples),
        "peak_memory_mb": {name: size >> 20 for name, size in watch.peaks.items()},
        "near_duplicates": summary.steps[5].details | {"dropped": summary.steps[5].dropped},
        "recall_of_planted_pairs": recall(folder),
        "kept": summary.kept,
        "load_average": os.getloadavg()[1],
    }


def phases(
    marks: list[tuple[int, float, float]], steps: list[Any], memory: list[tuple[float, int]]
) -> dict[str, dict[str, float]]:
    """Return seconds and peak memory of the parts of a run, from the times at which so much was done."""
    total = marks[-1][0]
    later = [step.name for step in steps[4:]]
    ends = {"identities": 0, "rules, part by part": total - 1 - len(later)}
    ends |= {name: total - len(later) + number for number, name in enumerate(later)} | {"ledger": total}
    found, last = {}, (0.0, 0.0)
    for name, end in ends.items():
        # What is written after the last step is told with as much done as at its end.
        _, wall, cpu = next(mark for mark in (reversed(marks) if not end else marks) if mark[0] == end)
        peak = max((size for at, size in memory if last[0] <= at < wall), default=0)
        found[name] = {"wall": round(wall - last[0], 1), "cpu": round(cpu - last[1], 1), "memory_mb": peak >> 20}
        last = wall, cpu
    return found


def cpu_seconds() -> float:
    """Return processor seconds of this process and of its children, running ones too."""
    times = os.times()
    running = 0.0
    for process in children():
        try:
            fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
        except OSError:
            continue
        running += (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
    return times.user + times.system + times.children_user + times.children_system + running


def children() -> list[int]:
    """Return the processes that this one has started."""
    listed = Path(f"/proc/self/task/{os.getpid()}/children")
    return [int(process) for process in listed.read_text().split()]


class Watch(threading.Thread):
    """Notes the most memory of the process tree, and of files in the work folder."""

    def __init__(self, ledgers: Path) -> None:
        super().__init__(daemon=True)
        self.peaks = {"own": 0, "with_mapped_files": 0, "work_folder": 0, "spill": 0}
        self.samples: list[tuple[float, int]] = []
        """Seconds since the start, and bytes that the processes had for themselves."""
        self._ledgers = ledgers
        self._stopped = threading.Event()

    def __enter__(self) -> "Watch":
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stopped.set()
        self.join()

    def run(self) -> None:
        start = time.perf_counter()
        while not self._stopped.wait(WATCH_SECONDS):
            own = mapped = 0
            for process in (os.getpid(), *children()):
                try:
                    lines = Path(f"/proc/{process}/smaps_rollup").read_text().splitlines()
                except OSError:
                    continue
                sizes = {line.split()[0]: int(line.split()[1]) << 10 for line in lines[1:]}
                own += sizes["Anonymous:"]
                mapped += sizes["Pss:"]
            self.samples.append((time.perf_counter() - start, own))
            work = list((self._ledgers / ".work").rglob("*"))
            found = {"own": own, "with_mapped_files": mapped, "work_folder": 0, "spill": 0}
            for path in work:
                try:
                    size = path.stat().st_size if path.is_file() else 0
                except OSError:
                    continue
                found["spill" if path.parent.name == "spill" else "work_folder"] += size
            self.peaks = {name: max(self.peaks[name], size) for name, size in found.items()}


def make_hashes(num_rows: int) -> tuple[NDArray[np.uint64], NDArray[np.int64], NDArray[np.uint8]]:
    """Return hashes [n, 4], for each row the row it copies (or -1), and the bits in which the two differ."""
    rng = np.random.Generator(np.random.Philox(key=1))
    hashes = rng.integers(0, 1 << 64, (num_rows, 4), np.uint64)
    sizes = np.minimum(rng.zipf(2.0, num_rows // 100), max(2, num_rows // 1000))
    sizes = sizes[np.cumsum(sizes) < num_rows // 10]
    firsts = np.repeat(np.cumsum(sizes) - sizes, sizes)
    members = np.flatnonzero(firsts != np.arange(firsts.size))
    flip(rng, hashes, members, firsts[members], rng.integers(1, 11, members.size))
    copy_of = np.full(num_rows, -1)
    bits = np.zeros(num_rows, np.uint8)
    copies = rng.permutation(np.arange(num_rows // 2, num_rows))[: int(num_rows * PLANTED_SHARE)]
    copy_of[copies] = rng.integers(num_rows // 4, num_rows // 2, copies.size)
    bits[copies] = rng.integers(2, DISTANCE + 1, copies.size)
    flip(rng, hashes, copies, copy_of[copies], bits[copies])
    return hashes, copy_of, bits


def flip(
    rng: np.random.Generator,
    hashes: NDArray[np.uint64],
    rows: NDArray[np.int64],
    sources: NDArray[np.int64],
    bits: NDArray[np.integer[Any]],
) -> None:
    """Make each row's hash that of its source with so many bits changed."""
    for start in range(0, rows.size, 100_000):
        some = slice(start, start + 100_000)
        words = hashes[sources[some]]
        # The first places of a random order of the bits: no bit twice.
        order = rng.random((len(words), 256), np.float32).argpartition(np.arange(DISTANCE), axis=1)
        for place in range(int(bits[some].max(initial=0))):
            changed = np.flatnonzero(bits[some] > place)
            bit = order[changed, place]
            words[changed, bit // 64] ^= np.uint64(1) << (bit % 64).astype(np.uint64)
        hashes[rows[some]] = words


def write_tables(folder: Path, hashes: NDArray[np.uint64]) -> None:
    """Write raw shards and annotations with the contract's columns."""
    rng = np.random.Generator(np.random.Philox(key=2))
    for number, start in enumerate(range(0, len(hashes), ROWS_PER_SHARD)):
        rows = np.arange(start, min(start + ROWS_PER_SHARD, len(hashes)))
        text = pa.array(rows).cast(pa.string())
        keys = pa.array([f"{number:05d}{place:05d}" for place in range(rows.size)])
        pdq = pa.FixedSizeBinaryArray.from_buffers(
            pa.binary(32), rows.size, [None, pa.py_buffer(hashes[rows].tobytes())]
        )
        wide, high = rng.integers(150, 1200, (2, rows.size)).astype(np.int32)
        # One row in twenty repeats the bytes of another.
        codes = np.where(rng.random(rows.size) < 0.05, rng.integers(0, len(hashes), rows.size), rows)
        sha256 = hexadecimal(codes, 64)
        raw = {
            "key": keys,
            "uid": hexadecimal(uid_numbers(rows), 32),
            "url": pc.binary_join_element_wise(
                "http://host", pa.array(rows % 997).cast(pa.string()), ".example/", text, ".jpg", ""
            ),
            "caption": pc.binary_join_element_wise("caption", text, " "),
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
        write(folder / "raw", number, raw)
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
            write(folder / "annotations" / name, number, {"key": keys, **columns})


def hexadecimal(values: NDArray[np.int64], digits: int) -> pa.Array:
    """Return whole numbers as text of so many hexadecimal digits."""
    letters = np.full((values.size, digits), ord("0"), np.uint8)
    for digit in range(min(digits, 16)):
        letters[:, digits - 1 - digit] = np.frombuffer(b"0123456789abcdef", np.uint8)[values >> 4 * digit & 15]
    offsets = np.arange(0, letters.size + 1, digits, dtype=np.int32)
    return pa.StringArray.from_buffers(values.size, pa.py_buffer(offsets), pa.py_buffer(letters))


def write(folder: Path, number: int, columns: dict[str, Any]) -> None:
    """Write one table and its commit record."""
    (folder / "commits").mkdir(parents=True, exist_ok=True)
    data = parquet_bytes(pa.table(columns))
    (folder / f"{number:05d}.parquet").write_bytes(data)
    sums = {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    rows = len(columns["key"])
    raw = {"schema": 2, "count": rows, "successes": rows, "table": sums, "tar": {"bytes": 0}}
    record = raw if folder.name == "raw" else {"rows": rows, "errors": {}, **sums}
    (folder / "commits" / f"{number:05d}.json").write_text(json.dumps(record))


def recall(folder: Path) -> dict[str, object]:
    """Return the share of planted pairs that lie in one group, among those whose rows both reached the step."""
    planted = np.load(folder / "planted.npz")
    copy_of, bits = planted["copy_of"], planted["bits"]
    reached, group = np.zeros(copy_of.size, bool), uid_numbers(np.arange(copy_of.size))
    with open_parquet(latest_decision(Job(str(folder))).ledger.table) as file:
        for batch in file.batches(1 << 17, ["input_row", "step", "duplicate_of"]):
            step = batch["step"].fill_null("kept")
            rows = batch["input_row"].to_numpy()
            before = pc.is_in(step, pa.array(["size", "aspect", "exact_duplicates"]))
            reached[rows] = ~before.to_numpy(zero_copy_only=False)
            near = pc.equal(step, "near_duplicates")
            dropped = near.to_numpy(zero_copy_only=False)
            group[rows[dropped]] = [int(uid, 16) for uid in batch["duplicate_of"].filter(near).to_pylist()]
    rows = np.flatnonzero(copy_of >= 0)
    rows = rows[reached[rows] & reached[copy_of[rows]]]
    found = group[rows] == group[copy_of[rows]]
    ranges = {"2-8": (2, 8), "9-15": (9, 15), "16-20": (16, 20), "20": (20, 20), "21-25": (21, 25), "26-31": (26, 31)}
    shares = {
        name: round(float(found[(bits[rows] >= low) & (bits[rows] <= high)].mean()), 5)
        for name, (low, high) in ranges.items()
    }
    return {"pairs": int(rows.size), "all": round(float(found.mean()), 5), **shares}


def uid_numbers(rows: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return what the uids of rows are as whole numbers, in no order of the rows."""
    return rows * 2654435761 % 2**61


if __name__ == "__main__":
    main()
