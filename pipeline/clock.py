"""Seconds by stage, counted by many threads without a lock.

Each thread has a tally of its own, so nothing is ever lost and nobody waits; a reading adds them up. A tally that is
being written is read as it is: a number may be one event behind another.
"""

import math
import threading
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

BUCKETS_PER_OCTAVE = 8
"""A bucket is at most 1/8 wide, so that a percentile, its middle, is within 7 %."""
LOWEST_EXPONENT = -24  # 0.06 microseconds
NUM_BUCKETS = 40 * BUCKETS_PER_OCTAVE  # up to 18 hours


@dataclass(slots=True)
class Tally:
    """How long one stage took, as one thread saw it."""

    count: int = 0
    seconds: float = 0.0
    longest: float = 0.0
    num_bytes: int = 0
    buckets: list[int] = field(default_factory=lambda: [0] * NUM_BUCKETS)

    def add(self, seconds: float, num_bytes: int = 0) -> None:
        """Count one event."""
        self.count += 1
        self.num_bytes += num_bytes
        self.seconds += seconds
        self.longest = max(self.longest, seconds)
        self.buckets[bucket_of(seconds)] += 1


@dataclass(frozen=True, kw_only=True, slots=True)
class StageStats:
    """How long one stage took. Summed over threads, so `seconds` may be more than went by."""

    count: int = 0
    seconds: float = 0.0
    p50_seconds: float = 0.0
    """Half of the events took no longer; within 7 %."""
    p99_seconds: float = 0.0
    max_seconds: float = 0.0
    num_bytes: int = 0
    """Bytes it moved, where that is counted: read."""


class StageClock:
    """The tallies of all threads of a stream, by stage."""

    def __init__(self) -> None:
        self.slowest_read: tuple[float, str] = (0.0, "")
        """Seconds of the longest read of one chunk, and its shard."""
        self._threads = threading.local()
        self._tallies: list[tuple[str, Tally]] = []

    def tally(self, stage: str) -> Tally:
        """Return this thread's own tally of a stage."""
        tally: Tally | None = self._threads.__dict__.get(stage)
        if tally is None:
            tally = self._threads.__dict__[stage] = Tally()
            self._tallies.append((stage, tally))
        return tally

    def note_read(self, shard: str, seconds: float) -> None:
        """Remember the shard of the longest read. Two threads at once may lose the shorter record."""
        if seconds > self.slowest_read[0]:
            self.slowest_read = (seconds, shard)

    def adder(self, stage: str) -> Callable[[float], None]:
        """Return what counts one event of `stage`, in whichever thread it is called."""
        return lambda seconds: self.tally(stage).add(seconds)

    def read(self, stage: str) -> StageStats:
        """Return what all threads have counted of a stage."""
        return add_up(tally for name, tally in list(self._tallies) if name == stage)


def bucket_of(seconds: float) -> int:
    """Return the bucket of a time: its power of two, and the eighth of that."""
    if seconds <= 0:
        return 0
    mantissa, exponent = math.frexp(seconds)  # mantissa in 0.5..1
    place = (exponent - LOWEST_EXPONENT) * BUCKETS_PER_OCTAVE + int((mantissa - 0.5) * 2 * BUCKETS_PER_OCTAVE)
    return min(max(place, 0), NUM_BUCKETS - 1)


def add_up(tallies: Iterable[Tally]) -> StageStats:
    """Return several tallies of a stage as one."""
    parts = list(tallies)
    buckets = np.array([part.buckets for part in parts] or [[0]], np.int64).sum(axis=0)
    longest = max((part.longest for part in parts), default=0.0)
    return StageStats(
        count=sum(part.count for part in parts),
        seconds=sum(part.seconds for part in parts),
        p50_seconds=min(_percentile(buckets, 0.5), longest),
        p99_seconds=min(_percentile(buckets, 0.99), longest),
        max_seconds=longest,
        num_bytes=sum(part.num_bytes for part in parts),
    )


def _percentile(buckets: NDArray[np.int64], share: float) -> float:
    seen = np.cumsum(buckets)
    if not seen[-1]:
        return 0.0
    octave, eighth = divmod(int(np.searchsorted(seen, max(1.0, share * seen[-1]))), BUCKETS_PER_OCTAVE)
    return math.ldexp(0.5 + (eighth + 0.5) / (2 * BUCKETS_PER_OCTAVE), octave + LOWEST_EXPONENT)
