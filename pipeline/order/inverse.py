"""From a sample back to its positions: the inverse of the order, without a look at any other position.

A sample comes once an epoch. Chunks, windows and subsets are keyed permutations, which have inverses; which row gives a
lane's n-th draw is one search in the table of the cycle. So a question about one sample costs as many steps as it has
epochs, whether its source has a thousand samples or two billion.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from headrace.pipeline.order.order import Order, Track
from headrace.pipeline.order.segments import Part, Timeline

IntArray = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Occurrences:
    """Where samples stand: arrays side by side, one element an occurrence, by ascending position."""

    which: IntArray
    """Number among the samples that were asked for."""
    position: IntArray
    epoch: IntArray


def occurrences(timeline: Timeline, source: int, sample: IntArray, *, end: int) -> Occurrences:
    """Return every position before `end`, a whole number of steps, where the order has one of `sample`.

    `sample` are numbers in the concatenated index of source number `source`.
    """
    found = [(asked, position, epoch) for asked, position, epoch in _walk(timeline, source, sample, end)]
    empty = np.zeros(0, np.int64)
    which = np.concatenate([empty, *(asked for asked, _, _ in found)])
    position = np.concatenate([empty, *(position for _, position, _ in found)])
    epoch = np.concatenate([empty, *(np.full_like(asked, number) for asked, _, number in found)])
    order = np.argsort(position, kind="stable")
    return Occurrences(which[order], position[order], epoch[order])


def times_given(timeline: Timeline, source: int, sample: IntArray, *, end: int) -> IntArray:
    """Return how often the order has each of `sample` before position `end`; whole epochs are counted at once."""
    times = np.zeros(len(sample), np.int64)
    for part, which, limit in _parts(timeline, source, end):
        assert part.order is not None
        track = part.order.tracks[which]
        ordinal = track.order.ordinal(sample)
        used = np.flatnonzero(ordinal >= 0)
        if not used.size:
            continue
        whole = _whole_epochs(part.order, which, part.start, limit)
        times[used] += len(whole)
        for epoch in _epochs(part.order, which, part.start, limit):
            if epoch not in whole:
                asked, _ = _positions(part, which, ordinal[used], epoch, limit)
                times[used[asked]] += 1
    return times


def _walk(timeline: Timeline, source: int, sample: IntArray, end: int) -> Iterator[tuple[IntArray, IntArray, int]]:
    """Yield (which of `sample`, position, epoch), part by part and epoch by epoch."""
    for part, which, limit in _parts(timeline, source, end):
        assert part.order is not None
        ordinal = part.order.tracks[which].order.ordinal(sample)
        used = np.flatnonzero(ordinal >= 0)
        if used.size:
            for epoch in _epochs(part.order, which, part.start, limit):
                asked, position = _positions(part, which, ordinal[used], epoch, limit)
                yield used[asked], position, epoch


def _parts(timeline: Timeline, source: int, end: int) -> Iterator[tuple[Part, int, int]]:
    """Yield (part, number of the source's track in it, where it ends or `end`)."""
    for part in timeline.parts:
        if part.start >= end:
            return
        for which, track in enumerate(part.order.tracks if part.order else ()):
            if track.source == source:
                yield part, which, end if part.end is None else min(end, part.end)


def _positions(part: Part, which: int, ordinal: IntArray, epoch: int, limit: int) -> tuple[IntArray, IntArray]:
    """Return (which of `ordinal`, position) of those that a part gives in an epoch, before `limit`."""
    order = part.order
    assert order is not None
    track = order.tracks[which]
    if track.drain is None:
        asked, lane, number = track.line.find(ordinal, epoch)
        number = number - track.given[lane]
        behind = number >= 0
        asked, lane, number = asked[behind], lane[behind], number[behind]
        inside = order.lanes.position_of(lane, order.lanes.row_of(which, lane, number))
    else:
        asked, number = track.drain.find(ordinal, epoch)
        number = number - track.drained
        behind = number >= 0
        asked, number = asked[behind], number[behind]
        places = np.flatnonzero(order.lanes.picks == which).astype(np.int64)
        cycles, pick = np.divmod(number, len(places))
        inside = cycles * len(order.lanes.picks) + places[pick]
    position = inside + order.start
    here = (position >= part.start) & (position < limit)
    return asked[here], position[here]


def _epochs(order: Order, which: int, start: int, limit: int) -> range:
    """Return epochs, among which are all that a track gives a sample of between two positions."""
    track = order.tracks[which]
    if track.drain is not None:
        rest = track.drain.leftover
        return range(rest.line.last_epoch(rest.first + np.diff(rest.starts)) + 1)
    before, after = order.given_by_lanes(which, start), order.given_by_lanes(which, limit)
    return range(track.line.first_epoch_behind(before), track.line.last_epoch(after) + 1)


def _whole_epochs(order: Order, which: int, start: int, limit: int) -> range:
    """Return epochs of which a track gives every sample between two positions."""
    track = order.tracks[which]
    epochs = _epochs(order, which, start, limit)
    if track.drain is not None or not epochs:
        return range(0)
    before, after = order.given_by_lanes(which, start), order.given_by_lanes(which, limit)
    first = max(epochs.start, track.line.first_epoch)
    while first < epochs.stop and not _starts_behind(track, first, before):
        first += 1
    last = epochs.stop
    while last > first and not bool(np.all(track.line.draws_before(last) <= after)):
        last -= 1
    return range(first, last)


def _starts_behind(track: Track, epoch: int, before: IntArray) -> bool:
    return bool(np.all(track.line.draws_before(epoch) >= before))
