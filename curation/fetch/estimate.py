"""What a fetch will take: bytes and hours, from what its finished shards say, else from stated assumptions."""

import os
from dataclasses import dataclass

from headrace.curation.fetch.config import FetchConfig
from headrace.curation.job import Job
from headrace.shards.commit import committed, read_commit
from headrace.shards.units import EngineConfig

ALIVE = 0.65
"""Share of links that give an image: CC12M's were 62 to 64 % alive, younger lists more."""
IMAGE_BYTES = 120_000
"""Of one image, with its caption and JSON in the tar."""
SECONDS_PER_URL = 2.0
"""That one URL holds its slot, dead hosts and their deadlines included."""
MEASURED_SHARDS = 20


@dataclass(frozen=True, slots=True)
class Measured:
    """What finished raw shards say."""

    alive: float
    bytes_per_image: float


def measure(job: Job) -> Measured | None:
    """Return the share of rows with an image and the bytes of one, of the first finished shards; None without any."""
    rows = images = num_bytes = 0
    for name in committed(job.raw)[:MEASURED_SHARDS]:
        record = read_commit(job.raw, name)
        rows += int(record.get("count", 0))
        images += int(record.get("successes", 0))
        num_bytes += int(record.get("tar", {}).get("bytes", 0))
    return Measured(images / rows, num_bytes / images) if rows and images else None


def estimate(rows: int, config: FetchConfig, engine: EngineConfig, measured: Measured | None) -> str:
    """Say how many bytes and hours `rows` take, and what that stands on."""
    processes = _processes(engine)
    slots = processes * config.concurrency
    alive, size = (measured.alive, measured.bytes_per_image) if measured else (ALIVE, IMAGE_BYTES)
    hours = rows * SECONDS_PER_URL / max(1, min(slots, rows)) / 3600
    basis = "as in the finished shards" if measured else "an assumption"
    smaller = "; less after resizing" if config.resize != "none" and not measured else ""
    return (
        f"about {readable_bytes(rows * alive * size)} and {readable_hours(hours)}: {alive:.0%} of the links give an "
        f"image, each {readable_bytes(size)} ({basis}{smaller}); a link takes {SECONDS_PER_URL:g} s (an assumption), "
        f"{processes} process{'es' if processes > 1 else ''} of {config.concurrency} links at a time"
    )


def _processes(engine: EngineConfig) -> int:
    if engine.executor == "inline":
        return 1
    return engine.workers or len(os.sched_getaffinity(0))


def readable_bytes(count: float) -> str:
    """Return a number of bytes for a person: `1.2 TB`."""
    for unit in ("bytes", "kB", "MB", "GB", "TB"):
        if count < 1000:
            return f"{count:.0f} {unit}" if unit == "bytes" or count >= 100 else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.1f} PB"


def readable_hours(hours: float) -> str:
    """Return a time for a person: seconds, minutes, hours or days."""
    for least, factor, unit in ((48.0, 1 / 24, "days"), (1.0, 1.0, "hours"), (1 / 60, 60.0, "minutes")):
        if hours >= least:
            return f"{hours * factor:.1f} {unit}"
    return f"{hours * 3600:.0f} seconds"
