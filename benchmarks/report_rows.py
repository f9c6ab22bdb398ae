"""The report of a job of many rows: seconds and peak memory of its process.

    python benchmarks/report_rows.py [ROWS] [--keep FOLDER]

Rows, annotations and a ledger are drawn as select would have written them: 8 % are not fetched, a rule, near-duplicates
at distance 0 to 20 and a top fraction drop two thirds of the rest. There are no tars, so no pictures: their number is
bounded, the walk over the rows is not.
"""

import argparse
import json
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from headrace.config import config_to_dict
from headrace.curation.annotate.unit import write_annotations
from headrace.curation.job import Job
from headrace.curation.ledger import (
    LEDGER_SCHEMA,
    Decision,
    Ledger,
    LedgerSummary,
    StepSummary,
    set_latest,
    write_ledger,
    write_summary,
)
from headrace.curation.select.steps.near_duplicates import NearDuplicates
from headrace.curation.select.steps.rule import Rule
from headrace.curation.select.steps.top_fraction import TopFraction
from headrace.shards.commit import commit

ROWS_PER_SHARD = 10_000
THRESHOLD = 0.25
STEPS = ("fetch", "decode", "size", "near_duplicates", "top_fraction")
REASONS = ("http-4xx", "", "false", "near-duplicate", "below-cut")
CLASSES = ("http-4xx", "dns", "timeout", "not-image")
LANGUAGES = ("en", "de", "fr", "es", "zh", "")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("rows", type=float, nargs="?", default=1e6)
    parser.add_argument("--keep", type=Path, help="Leave the job in this folder.")
    arguments = parser.parse_args()
    folder = arguments.keep or Path(tempfile.mkdtemp(prefix="headrace-report-"))
    try:
        write_job(folder, int(arguments.rows))
        start = time.perf_counter()
        command = [sys.executable, "-m", "headrace.cli.app", "-q", "report", str(folder), "--json"]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        seconds, used = time.perf_counter() - start, resource.getrusage(resource.RUSAGE_CHILDREN)
        found = {
            "rows": int(arguments.rows),
            "seconds": round(seconds, 1),
            "cpu_seconds": round(used.ru_utime + used.ru_stime, 1),
            "peak_memory_mb": used.ru_maxrss // 1024,
            "page_bytes": (folder / "report" / "report.html").stat().st_size,
        }
        print(json.dumps(found, indent=1))
    finally:
        if arguments.keep is None:
            shutil.rmtree(folder)


def write_job(folder: Path, num_rows: int) -> None:
    """Write raw tables, annotations and a ledger."""
    job, rng = Job(str(folder)), np.random.Generator(np.random.Philox(key=1))
    ledger = Ledger(f"{job.ledgers}/bench")
    dropped = np.zeros(len(STEPS) + 1, np.int64)

    def tables() -> object:
        for number in range(-(-num_rows // ROWS_PER_SHARD)):
            count = min(ROWS_PER_SHARD, num_rows - number * ROWS_PER_SHARD)
            yield write_shard(job, number, count, dropped, rng)

    digest = write_ledger(ledger, tables())  # type: ignore[arg-type]
    settings = {
        "size": Rule(name="size", keep="image_width >= 200", value="image_width", threshold=200),
        "near_duplicates": NearDuplicates(),
        "top_fraction": TopFraction(score="clip_score", fraction=0.5),
    }
    thresholds = {"size": 200.0, "near_duplicates": 20.0, "top_fraction": THRESHOLD}
    steps, left = [], num_rows
    for number, name in enumerate(STEPS):
        gone = int(dropped[number])
        by_reason = {REASONS[number]: gone} if gone else {}
        steps.append(
            StepSummary(
                name=name,
                step="rule" if name == "size" else name,
                settings=config_to_dict(settings[name]) if name in settings else {},
                rows_in=left,
                dropped=by_reason,
                rows_out=left - gone,
                threshold=thresholds.get(name),
            )
        )
        left -= gone
    summary = LedgerSummary(
        digest=digest,
        inputs=digest,
        decided_by=digest,
        ledger_sha256=digest,
        rows=num_rows,
        kept=left,
        out_shards=-(-left // ROWS_PER_SHARD),
        samples_per_shard=ROWS_PER_SHARD,
        annotations={name: f"{name}-0" for name in ("image", "hashes", "caption", "clip", "language")},
        steps=steps,
    )
    write_summary(ledger, summary)
    set_latest(Decision(job, ledger, summary))
    (folder / "job.json").write_text('{"schema": 2}\n')


def write_shard(
    job: Job, number: int, count: int, dropped: "np.ndarray[tuple[int], np.dtype[np.int64]]", rng: np.random.Generator
) -> pa.Table:
    """Write one raw shard and its annotations; return its rows of the ledger."""
    rows = np.arange(number * ROWS_PER_SHARD, number * ROWS_PER_SHARD + count)
    name = f"{number:05d}"
    keys = [f"{name}{row - rows[0]:04d}" for row in rows]
    uids = [f"{row * 2654435761 % 2**32:08x}{row:024x}" for row in rows]
    urls = [f"http://host{row * 7919 % 50021}.example/{row}.jpg" for row in rows]
    wide, high = rng.integers(100, 1200, (2, count)).astype(np.int32)
    score = rng.normal(0.25, 0.05, count).astype(np.float32)
    # 0 not fetched, 2 too small, 3 a copy, 4 under the cut, 5 kept.
    step = np.where(score < THRESHOLD, 4, 5)
    step = np.where(rng.random(count) < 0.06, 3, step)
    step = np.where(wide < 200, 2, step)
    step = np.where(rng.random(count) < 0.08, 0, step)
    np.add.at(dropped, step, 1)
    fetched = step != 0
    classes = np.array(CLASSES)[rng.integers(0, len(CLASSES), count)]
    raw = {
        "key": keys,
        "uid": uids,
        "url": urls,
        "caption": [f"caption {row}" for row in rows],
        "status": np.where(fetched, "success", "failed_to_download"),
        "error_class": pa.array(classes, mask=fetched),
        "error_message": pa.nulls(count, pa.string()),
        "width": wide,
        "height": high,
        "original_width": wide,
        "original_height": high,
        "format": ["jpeg"] * count,
        "sha256": [f"{row:064x}" for row in rows],
        "stored_sha256": pa.nulls(count, pa.string()),
        "reused_from": pa.nulls(count, pa.string()),
        "input_file": ["list.parquet"] * count,
        "input_row": rows,
    }
    Path(job.raw).mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table(raw), f"{job.raw}/{name}.parquet")
    commit(job.raw, name, {"count": count, "successes": int(fetched.sum())})
    write_tables(
        job, name, [keys[at] for at in np.flatnonzero(fetched)], (wide[fetched], high[fetched], score[fetched]), rng
    )
    reasons = [REASONS[at] if at in (2, 3, 4) else None for at in step]
    kept = step == 5
    value = np.select([step == 2, step == 3, step == 4], [wide, rng.integers(0, 21, count), score], np.nan)
    return pa.table(
        {
            "uid": uids,
            "input_file": raw["input_file"],
            "input_row": rows,
            "url": urls,
            "raw_shard": [name] * count,
            "key": keys,
            "kept": kept,
            "step": [STEPS[at] if at < 5 else None for at in step],
            "reason": [classes[place] if step[place] == 0 else reasons[place] for place in range(count)],
            "value": pa.array(value, mask=np.isnan(value)),
            "threshold": pa.array(np.where(step == 3, 20.0, np.nan), mask=step != 3),
            "duplicate_of": pa.array([uids[0]] * count, mask=step != 3),
            "out_shard": pa.array([name] * count, mask=~kept),
            "out_index": pa.array(np.cumsum(kept) - 1, pa.int32(), mask=~kept),
            "caption_of": pa.nulls(count, pa.string()),
            "caption_facts": pa.nulls(count, pa.string()),
        },
        schema=LEDGER_SCHEMA,
    )


def write_tables(job: Job, name: str, keys: list[str], sizes: tuple[np.ndarray, ...], rng: np.random.Generator) -> None:
    """Write the annotations of one raw shard."""
    wide, high, score = sizes
    count = len(keys)
    hashes = rng.integers(0, 256, (count, 32), dtype=np.uint8)
    # One in fifty is 24 bits from the one before.
    for place in range(50, count, 50):
        hashes[place] = hashes[place - 1]
        hashes[place, :3] ^= 255
    found = {
        "image": {
            "image_width": wide,
            "image_height": high,
            "aspect": (np.maximum(wide, high) / np.minimum(wide, high)).astype(np.float32),
            "mean_brightness": rng.uniform(0, 255, count).astype(np.float32),
            "image_format": ["jpeg"] * count,
            "decode_error": pa.nulls(count, pa.string()),
        },
        "hashes": {
            "sha256": [f"{key:>064}" for key in keys],
            "pdq": pa.array([row.tobytes() for row in hashes], pa.binary(32)),
            "pdq_quality": np.full(count, 90, np.int16),
        },
        "caption": {"caption_chars": rng.integers(5, 200, count).astype(np.int32)},
        "clip": {"clip_score": score},
        "language": {"language": np.array(LANGUAGES)[rng.integers(0, len(LANGUAGES), count)]},
    }
    for annotator, columns in found.items():
        write_annotations(f"{job.url}/annotations/{annotator}-0", name, pa.table({"key": keys, **columns}), {})


if __name__ == "__main__":
    main()
