"""Lay out the parts of a mixture that changes: segments of the user, and the ends of sources that have one.

A source with `repeat: N` ends in three parts. Up to the last step before which no lane would begin epoch N, it is as
any other. From there its rest is given by whichever lane has its next pick (a drain). The step in which the rest runs
out has a cycle of its own, which holds exactly what is left; behind it the others go on in proportion.
"""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from headrace.pipeline.order.epoch import SourceOrder
from headrace.pipeline.order.lanes import deal
from headrace.pipeline.order.line import Drain, Line
from headrace.pipeline.order.order import Order, Track, order_of_tracks
from headrace.pipeline.order.quota import integer_parts, spread
from headrace.pipeline.order.segments import (
    MAX_POSITION,
    Part,
    Segment,
    Timeline,
    given_at,
    last_safe_step,
    steps_of_picks,
)

IntArray = NDArray[np.int64]


@dataclass(slots=True)
class _Source:
    """Where one source stands while parts are laid out."""

    order: SourceOrder
    repeat: int
    line: Line | None = None
    given: IntArray | None = None
    """[L] draws each lane has given in `line`."""
    drain: Drain | None = None
    drained_from: int | None = None
    drained: int = 0
    """Draws of the drain given so far."""
    ended: bool = False

    @property
    def has_end(self) -> bool:
        """True if `repeat` ends it where a stream may come."""
        return 0 < self.repeat * self.order.num_samples < MAX_POSITION

    @property
    def left(self) -> int:
        """Draws left in the drain."""
        return self.drain.leftover.size - self.drained if self.drain else 0


def lay_out(
    sources: Sequence[SourceOrder], repeats: Sequence[int], segments: Sequence[Segment], *, global_batch: int
) -> Timeline:
    """Return the parts of a mixture. `sources` get the lanes of each segment; `repeats` are 0 for no end.

    Raises ValueError for a source with fewer samples than a segment has lanes, or a weight too small to be met.
    """
    layout = _Layout([_Source(*pair) for pair in zip(sources, repeats, strict=True)], global_batch)
    ends = [*(segment.start for segment in segments[1:]), None]
    for number, (segment, end) in enumerate(zip(segments, ends, strict=True)):
        layout.add(number, segment, end)
    return Timeline(tuple(layout.parts), tuple(source.drained_from for source in layout.sources))


class _Layout:
    """Parts so far, and where each source stands at their end."""

    def __init__(self, sources: list[_Source], global_batch: int) -> None:
        self.sources = sources
        self.parts: list[Part] = []
        self._global_batch = global_batch
        self._position = 0
        self._given = (0,) * len(sources)

    def add(self, number: int, segment: Segment, end: int | None) -> None:
        """Add the parts of a segment, up to `end`."""
        for source, weight in zip(self.sources, segment.weights, strict=True):
            if weight:  # one that rests keeps its lanes until it comes back
                _take_lanes(source, segment.num_lanes)
        while end is None or self._position < end:
            weights = [0.0 if source.ended else w for source, w in zip(self.sources, segment.weights, strict=True)]
            if not any(weights):
                self._emit(number, None, end)
                return
            for source, weight in zip(self.sources, weights, strict=True):
                if weight:
                    _begin(source, segment.num_lanes)
            tracks = [self._track(which, weight) for which, weight in enumerate(weights) if weight]
            order = order_of_tracks(tracks, segment.num_lanes, start=self._position)
            if self._run(number, order, end):
                return

    def _run(self, number: int, order: Order, end: int | None) -> bool:
        """Add the parts of one cycle; True if it goes on to `end`, False if a source ended before."""
        while True:
            limits = {which: self._limit(order, which, end) for which in range(len(order.tracks))}
            near = [position for position in limits.values() if position is not None]
            if not near:
                self._emit(number, order, end)
                return True
            stop = min(near)
            self._emit(number, order, stop)
            at_end = [which for which, position in limits.items() if position == stop]
            running = [which for which in at_end if order.tracks[which].drain is None]
            if running:
                order = self._begin_drains(order, running)
                continue
            if any(self.sources[order.tracks[which].source].left for which in at_end):
                self._last_step(number, order, {order.tracks[which].source for which in at_end})
            for which in at_end:
                self.sources[order.tracks[which].source].ended = True
            return False

    def _limit(self, order: Order, which: int, end: int | None) -> int | None:
        """Return how far a source may go on in this cycle as it does now; None = to the end of the segment."""
        track, source = order.tracks[which], self.sources[order.tracks[which].source]
        if not source.has_end:
            return None
        if track.drain is None:
            return last_safe_step(order, which, self._position, source.repeat, self._global_batch, end)
        steps = steps_of_picks(order, which, self._position, source.left, self._global_batch)
        limit = self._position + steps * self._global_batch
        return limit if end is None or limit < end else None

    def _begin_drains(self, order: Order, running: Sequence[int]) -> Order:
        tracks = list(order.tracks)
        for which in running:
            source = self.sources[tracks[which].source]
            assert source.line is not None
            assert source.given is not None
            source.drain = Drain(source.line.rest(source.given, source.repeat))
            source.drained_from = self._position
            before = order.given(self._position)[which]
            tracks[which] = dataclasses.replace(tracks[which], drain=source.drain, drained=-before)
        return dataclasses.replace(order, tracks=tuple(tracks))

    def _last_step(self, number: int, order: Order, ending: set[int]) -> None:
        """Add the step that holds the last samples of sources, and of the others what is in proportion."""
        while True:
            tracks = [self._track(track.source, track.weight) for track in order.tracks]
            wanted = self._shares(tracks, ending)
            if wanted is None:  # nothing fills the step up: the stream ends here
                for track in tracks:
                    self.sources[track.source].ended = True
                return
            kept = [track for track, share in zip(tracks, wanted, strict=True) if share]
            lanes = deal(spread([share for share in wanted if share]), order.lanes.num_lanes)
            step = Order(lanes, tuple(kept), self._position)
            late = [which for which in range(len(kept)) if self._would_begin(step, which)]
            if not late:
                self._emit(number, step, self._position + self._global_batch)
                return
            self._begin_drains(step, late)

    def _would_begin(self, step: Order, which: int) -> bool:
        """True if a source that is not drained would begin an epoch that it does not have in this step."""
        track, source = step.tracks[which], self.sources[step.tracks[which].source]
        end = self._position + self._global_batch
        return (
            source.has_end
            and track.drain is None
            and last_safe_step(step, which, self._position, source.repeat, self._global_batch, end) is not None
        )

    def _shares(self, tracks: Sequence[Track], ending: set[int]) -> list[int] | None:
        """Return the picks of each track in a step: all that is left of those that end, the others in proportion."""
        most = {which: self.sources[track.source].left for which, track in enumerate(tracks) if track.drain}
        fixed = {which: most[which] for which, track in enumerate(tracks) if track.source in ending}
        while True:
            free = [which for which in range(len(tracks)) if which not in fixed]
            rest = self._global_batch - sum(fixed.values())
            if not free:
                return None if rest else [fixed[which] for which in range(len(tracks))]
            parts = dict(zip(free, integer_parts([tracks[which].weight for which in free], rest), strict=True))
            over = [which for which in free if which in most and parts[which] > most[which]]
            if not over:
                return [fixed.get(which, parts.get(which, 0)) for which in range(len(tracks))]
            fixed |= {which: most[which] for which in over}

    def _track(self, which: int, weight: float) -> Track:
        source = self.sources[which]
        assert source.line is not None
        assert source.given is not None
        return Track(which, weight, source.line, source.given, source.drain, source.drained)

    def _emit(self, number: int, order: Order | None, end: int | None) -> None:
        """Add the part from here to `end`, and stand there."""
        if end == self._position:
            return
        part = Part(start=self._position, end=end, segment=number, order=order, given=self._given)
        self.parts.append(part)
        if end is None:
            return
        self._given, before = given_at(part, end), self._given
        for which, track in enumerate(order.tracks if order else ()):
            source = self.sources[track.source]
            if source.drain is not None:
                source.drained += self._given[track.source] - before[track.source]
            else:
                assert order is not None
                source.given = order.given_by_lanes(which, end)
        self._position = end


def _begin(source: _Source, num_lanes: int) -> None:
    """Give a source that begins here its line."""
    if source.line is None:
        source.line = Line(dataclasses.replace(source.order, num_lanes=num_lanes))
        source.given = np.zeros(num_lanes, np.int64)


def _take_lanes(source: _Source, num_lanes: int) -> None:
    """Bring a source that has begun to another number of lanes; what is drained has none."""
    if source.line is None or source.drain is not None or source.line.order.num_lanes == num_lanes:
        return
    assert source.given is not None
    source.line = source.line.in_lanes(num_lanes, source.given)
    source.given = np.zeros(num_lanes, np.int64)
