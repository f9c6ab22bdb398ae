"""What `headrace audit` costs: the inverse of the order at two billion samples, and a look through indexes.

    python benchmarks/audit.py

CPU seconds of this process. The order is the whole work of `--key`; the indexes are that of `--url` and of the hosts.
Indexes are written for it: 10,000 rows of uid, URL and caption each, no tars.
"""

import hashlib
import json
import resource
import tempfile
import time
from pathlib import Path

import numpy as np
import pyarrow as pa

from headrace.pipeline import Mixture, Source
from headrace.pipeline.order.epoch import SourceOrder
from headrace.pipeline.order.inverse import occurrences, times_given
from headrace.pipeline.order.layout import lay_out
from headrace.pipeline.order.segments import Segment
from headrace.shards.index import INDEX_SCHEMA, write_index
from headrace.shards.write import write_manifest
from headrace.trace.find import Asked, find_samples
from headrace.trace.history import History
from headrace.trace.lookup import open_sources
from headrace.trace.replaced import read_replacements
from headrace.trace.tally import count_samples, new_tally

NUM_SAMPLES, GLOBAL_BATCH, STEPS = 2_000_000_003, 4096, 900_000
SHARDS, ROWS = 100, 10_000


def main() -> None:
    """Print one line a measurement."""
    order = SourceOrder(
        name="big", num_samples=NUM_SAMPLES, chunk_samples=64, shuffle_window=1 << 20, num_lanes=1, seed=1
    )
    timeline = lay_out([order], [0], [Segment(start=0, num_lanes=64, weights=(1.0,))], global_batch=GLOBAL_BATCH)
    for count in (1, 1000, 100_000):
        sample = np.arange(count, dtype=np.int64) * (NUM_SAMPLES // count)
        begun = time.process_time()
        found = occurrences(timeline, 0, sample, end=STEPS * GLOBAL_BATCH)
        spent = time.process_time() - begun
        print(f"positions of {count:>7,} samples of {NUM_SAMPLES:,}: {len(found.position):,} in {1e3 * spent:,.1f} ms")
    sample = np.arange(ROWS, dtype=np.int64)
    begun = time.process_time()
    for start in range(0, 100):
        times_given(timeline, 0, sample + start * ROWS, end=STEPS * GLOBAL_BATCH)
    spent = time.process_time() - begun
    print(f"counts of {100 * ROWS:,} samples: {1e9 * spent / (100 * ROWS):,.0f} ns each")
    with tempfile.TemporaryDirectory() as folder:
        look_through(Path(folder))


def look_through(folder: Path) -> None:
    """Measure a search for URLs, and the counts by host, over indexes in a folder."""
    num_bytes = sum(_write_index(folder, number) for number in range(SHARDS))
    records = [
        {
            "name": f"{number:05d}",
            "num_samples": ROWS,
            "num_bytes": 1,
            "sha256": "0" * 64,
            "index_sha256": hashlib.sha256((folder / "shards" / f"{number:05d}.parquet").read_bytes()).hexdigest(),
        }
        for number in range(SHARDS)
    ]
    write_manifest(str(folder), records, {"recipe_digest": "", "layout": "headrace"})
    mixture = Mixture(lanes=64, sources=(Source(name="data", url=str(folder)),))
    history = History(
        name="bench", is_run=False, mixture=mixture, global_batch=GLOBAL_BATCH, done=0, lines=(), skipped={},
        quarantines=(), state=None,
    )  # fmt: skip
    opened = open_sources(history)
    total = SHARDS * ROWS
    asked = Asked({"url": [f"https://example{n % 977}.org/pictures/{n}.jpg" for n in range(0, total, 1000)]})
    begun, wall = time.process_time(), time.perf_counter()
    found = list(find_samples(opened, asked))
    spent, wall = time.process_time() - begun, time.perf_counter() - wall
    print(
        f"{asked.size:,} URLs in {SHARDS} indexes ({num_bytes / total:.0f} bytes a row): {len(found):,} found; "
        f"{1e6 * spent / total:.2f} CPU s and {1e6 * wall / total:.2f} s of wall time a million rows"
    )
    replacements = read_replacements(opened)
    begun = time.process_time()
    tally = new_tally(opened, replacements, last=400)
    for counted in count_samples(opened, replacements, last=400, texts=False):
        tally.add("data", counted)
    spent = time.process_time() - begun
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10
    print(f"counts by source and host: {1e6 * spent / total:.2f} CPU s a million rows; {most} MiB resident at most")


def _write_index(folder: Path, number: int) -> int:
    first = number * ROWS
    rows = range(first, first + ROWS)
    columns = {
        "key": [f"{number:05d}{row - first:06d}" for row in rows],
        "uid": [hashlib.md5(json.dumps(row).encode()).hexdigest() for row in rows],
        "offset": list(range(ROWS)),
        "size": [1] * ROWS,
        "caption": [f"a photograph of the thing number {row} in a place that has a name" for row in rows],
        "url": [f"https://example{row % 977}.org/pictures/{row}.jpg" for row in rows],
    }
    table = pa.table(
        {item.name: pa.array(columns.get(item.name, [None] * ROWS), item.type) for item in INDEX_SCHEMA},
        schema=INDEX_SCHEMA,
    )
    path = folder / "shards" / f"{number:05d}.parquet"
    write_index(str(path), table)
    return path.stat().st_size


if __name__ == "__main__":
    main()
