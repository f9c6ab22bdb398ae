"""A mixture that changes at positions: parts of the endless stream, each with an order of its own.

Parts are laid out once, from the first to the last, which has no end. What each lane has given of each source is
carried from part to part, in arithmetic: nothing is read, and nothing depends on how many steps a part has.
"""

import bisect
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from headrace.pipeline.order.order import Order

IntArray = NDArray[np.int64]

MAX_POSITION = 1 << 62
"""No stream comes so far; numbers up to here, and a batch beyond, fit into 64 bits."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Segment:
    """What a user says of the stream from a position on."""

    start: int
    num_lanes: int
    weights: tuple[float, ...]
    """Of every source of the mixture; 0 = not in this segment."""


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Part:
    """A stretch of the stream with one order."""

    start: int
    end: int | None
    """None = endless."""
    segment: int
    """Number of the user's segment it lies in."""
    order: Order | None
    """None where no source is left."""
    given: tuple[int, ...]
    """Samples of each source of the mixture before it."""

    @property
    def num_lanes(self) -> int:
        """Lanes of this part."""
        return self.order.lanes.num_lanes if self.order else 1


@dataclass(frozen=True, slots=True, eq=False)
class Timeline:
    """The parts of a stream, by position."""

    parts: tuple[Part, ...]
    drained_from: tuple[int | None, ...]
    """For each source of the mixture the position from which its end is given; None = it has none in sight."""

    def part_at(self, position: int) -> int:
        """Return the number of the part a position lies in."""
        return bisect.bisect_right(self.parts, position, key=lambda part: part.start) - 1

    def given(self, position: int) -> list[int]:
        """Return how many samples of each source of the mixture stand before `position`."""
        number = self.part_at(position)
        return list(given_at(self.parts[number], position))

    def stale(self, before: int, after: int) -> set[int]:
        """Return the sources whose windows do not go on from one part to a later one."""
        old, new = (self.parts[number].order for number in (before, after))
        if old is None:
            return set()
        goes_on = {track.source: (track.line, track.drain) for track in new.tracks} if new else {}
        return {track.source for track in old.tracks if goes_on.get(track.source) != (track.line, track.drain)}

    def steps_before(self, source: int, epoch: int, global_batch: int) -> int | None:
        """Return the number of the first step that gives a sample of an epoch of a source; None = no step does."""
        for part in self.parts:
            position = first_of_epoch(part, source, epoch, global_batch)
            if position is not None:
                return position // global_batch
        return None

    def last_step(self, source: int, total: int, global_batch: int) -> int | None:
        """Return the number of the step that gives the last of `total` samples of a source; None = no step does."""
        if self.drained_from[source] is None or self.given(self.parts[-1].start)[source] < total:
            return None
        low, high = 0, self.parts[-1].start // global_batch
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (middle, high) if self.given(middle * global_batch)[source] < total else (low, middle)
        return high - 1


def given_at(part: Part, position: int) -> tuple[int, ...]:
    """Return the samples of each source before a position of the part, or its end."""
    given = list(part.given)
    if part.order is not None:
        before, now = part.order.given(part.start), part.order.given(position)
        for track, one, other in zip(part.order.tracks, before, now, strict=True):
            given[track.source] += other - one
    return tuple(given)


def first_of_epoch(part: Part, source: int, epoch: int, global_batch: int) -> int | None:
    """Return the position of the first step of a part that gives a sample of `epoch` or later; None = none does."""
    order = part.order
    which = next((n for n, track in enumerate(order.tracks) if track.source == source), None) if order else None
    if order is None or which is None:
        return None
    drain = order.tracks[which].drain
    if drain is None:
        limit = last_safe_step(order, which, part.start, epoch, global_batch, part.end)
        return None if limit == part.end else limit
    first = drain.first_of(epoch)
    if first is None:
        return None
    before = order.tracks[which].drained + order.given(part.start)[which]
    limit = part.start + global_batch * steps_of_picks(order, which, part.start, first - before, global_batch)
    return None if part.end is not None and limit >= part.end else limit


def last_safe_step(
    order: Order, which: int, position: int, epoch: int, global_batch: int, end: int | None
) -> int | None:
    """Return the last position, a whole number of steps from `position`, up to which no lane begins `epoch`.

    None if that is behind `end`, or `MAX_POSITION`: there all is still well. Found by doubling and halving: a lane
    never takes back.
    """
    line = order.tracks[which].line
    if line.first_epoch > epoch:
        return position  # lanes that changed have left it behind
    total = line.draws_before(epoch)

    def is_safe(steps: int) -> bool:
        return bool(np.all(order.given_by_lanes(which, position + steps * global_batch) <= total))

    most = ((MAX_POSITION if end is None else end) - position) // global_batch
    low, high = 0, 1
    while is_safe(min(high, most)):
        if high >= most:
            return None
        low, high = high, high * 2
    high = min(high, most)
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if is_safe(middle) else (low, middle)
    return position + low * global_batch


def steps_of_picks(order: Order, which: int, position: int, picks: int, global_batch: int) -> int:
    """Return the most whole steps from `position` in which a track has at most so many picks."""
    before = order.given(position)[which]
    low, high = 0, 1
    while order.given(position + high * global_batch)[which] - before <= picks:
        low, high = high, high * 2
    while high - low > 1:
        middle = (low + high) // 2
        fits = order.given(position + middle * global_batch)[which] - before <= picks
        low, high = (middle, high) if fits else (low, middle)
    return low
