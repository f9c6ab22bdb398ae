"""One cycle's order: position k -> (source, epoch, sample), a pure function of (seed, mixture, k).

Nothing here reads, remembers or depends on the world size; opening costs the same for a thousand samples and for two
billion. Positions are dealt to lanes and lanes to ranks, so a rank's positions are not an arithmetic sequence; ask
`positions`. A mixture that changes at a position is several of these: see `segments`.
"""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from headrace.pipeline.order.epoch import SourceOrder
from headrace.pipeline.order.lanes import Lanes, deal
from headrace.pipeline.order.line import Drain, Found, Line
from headrace.pipeline.order.quota import choose_rows, integer_parts, spread, weight_errors

IntArray = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Placements:
    """What stands at some positions: arrays side by side, one element a position."""

    source: IntArray
    """Number of the source in the mixture."""
    lane: IntArray
    number: IntArray
    """Which draw of its source: the lane's, or, where the source is drained, the whole mixture's."""
    epoch: IntArray
    place: IntArray
    """Place inside the lane's share of the epoch."""
    sample: IntArray
    """Number in the source's concatenated index."""

    def __getitem__(self, part: slice) -> "Placements":
        return Placements(*(getattr(self, field.name)[part] for field in dataclasses.fields(self)))


@dataclass(frozen=True, slots=True, eq=False)
class Track:
    """One source in one cycle."""

    source: int
    """Number of the source in the mixture."""
    weight: float
    """As it was asked for."""
    line: Line
    given: IntArray
    """[L] draws each lane had given of it when the cycle began."""
    drain: Drain | None = None
    """What is left of it, if it ends within or behind this cycle and its end has begun."""
    drained: int = 0
    """Draws of the drain that stand before the cycle's begin; negative if the drain begins within the cycle."""

    @property
    def order(self) -> SourceOrder:
        """The arithmetic of its epochs."""
        return self.line.order


@dataclass(frozen=True, slots=True, eq=False)
class Order:
    """The order of a cycle that is repeated from a position on: its picks dealt to lanes, and the lines of sources."""

    lanes: Lanes
    tracks: tuple[Track, ...]
    start: int = 0
    """The position where the first cycle begins."""

    @property
    def sources(self) -> tuple[SourceOrder, ...]:
        """The arithmetic of each source that takes part."""
        return tuple(track.order for track in self.tracks)

    @property
    def weight_errors(self) -> list[float]:
        """For each source that takes part its share of the cycle minus its share of the weights."""
        return weight_errors([track.weight for track in self.tracks], self.parts)

    @property
    def parts(self) -> list[int]:
        """The weights as they are met: picks of each source in one cycle."""
        return [int(number) for number in self.lanes.counts[:, -1]]

    def positions(self, row: int, num_rows: int, lanes: range) -> IntArray:
        """Return the positions of rows `row`.. of some lanes, ascending; row 0 is the first of this order."""
        rows = np.arange(row, row + num_rows, dtype=np.int64)
        lane = np.array(lanes, np.int64)
        every = self.lanes.position_of(np.tile(lane, num_rows), np.repeat(rows, len(lane)))
        return np.sort(every) + self.start

    def sample_at(self, position: IntArray) -> Placements:
        """Return what stands at each of `position`, a 1-D array."""
        inside = position - self.start
        lane, row = self.lanes.lane_of(inside)
        pick = self.lanes.picks[inside % len(self.lanes.picks)].astype(np.int64)
        number = self.lanes.given(pick, lane, row)
        source, epoch, place, sample = (np.empty_like(position) for _ in range(4))
        for which, track in enumerate(self.tracks):
            here = np.flatnonzero(pick == which)
            if here.size:
                number[here], found = self._look_up(which, inside[here], lane[here], number[here])
                epoch[here], place[here] = found.epoch, found.place
                sample[here] = track.order.index(found.ordinal)
                source[here] = track.source
        return Placements(source, lane, number, epoch, place, sample)

    def _look_up(self, which: int, inside: IntArray, lane: IntArray, number: IntArray) -> tuple[IntArray, Found]:
        track = self.tracks[which]
        if track.drain is None:
            draw = track.given[lane] + number
            return draw, track.line.look_up(lane, draw)
        draw = track.drained + self._picks_before(which, inside)
        return draw, track.drain.look_up(draw)

    def track(self, source: int) -> Track:
        """Return the track of a source of the mixture."""
        return next(track for track in self.tracks if track.source == source)

    def together(self, source: int, lane: int, number: int) -> list[IntArray]:
        """Return the samples that the lane gives next in the same window, this one among them, by chunk."""
        track = self.track(source)
        if track.drain is not None:
            return [track.order.index(track.drain.look_up(np.array([number], np.int64)).ordinal)]
        draws = number + np.arange(track.line.run(lane, number), dtype=np.int64)
        ordinal = np.sort(track.line.look_up(np.full_like(draws, lane), draws).ordinal)
        cuts = np.flatnonzero(np.diff(ordinal // track.order.chunk_samples)) + 1
        return np.split(track.order.index(ordinal), cuts)

    def replacement(self, source: int, lane: int, number: int, steps: int) -> int:
        """Return the sample `steps` after a draw in the same lane share: what replaces a damaged one."""
        track = self.track(source)
        if track.drain is not None:
            ordinal = track.drain.replacement(number, steps)
        else:
            ordinal = track.line.replacement(lane, number, steps)
        return int(track.order.index(np.array([ordinal], np.int64))[0])

    def given(self, position: int) -> list[int]:
        """Return how many samples of each source that takes part stand before `position`, from `start` on."""
        cycles, rest = divmod(position - self.start, len(self.lanes.picks))
        partial = np.bincount(self.lanes.picks[:rest], minlength=len(self.tracks))
        return [cycles * part + int(more) for part, more in zip(self.parts, partial, strict=True)]

    def given_by_lanes(self, which: int, position: int) -> IntArray:
        """Return [L]: draws of the `which`-th track that each lane has given before `position`, a whole row."""
        lane = np.arange(self.lanes.num_lanes, dtype=np.int64)
        row = np.full_like(lane, (position - self.start) // self.lanes.num_lanes)
        return self.tracks[which].given + self.lanes.given(np.full_like(lane, which), lane, row)

    def _picks_before(self, which: int, inside: IntArray) -> IntArray:
        cycles, place = np.divmod(inside, len(self.lanes.picks))
        places = np.flatnonzero(self.lanes.picks == which)
        picks: IntArray = cycles * len(places) + np.searchsorted(places, place)
        return picks


def build_order(sources: Sequence[SourceOrder], weights: Sequence[float], num_lanes: int) -> Order:
    """Return the order of a mixture that never changes. Raises ValueError for a weight too small to be met at all."""
    nothing = np.zeros(num_lanes, np.int64)
    tracks = [
        Track(number, weight, Line(source), nothing)
        for number, (source, weight) in enumerate(zip(sources, weights, strict=True))
    ]
    return order_of_tracks(tracks, num_lanes, start=0)


def order_of_tracks(tracks: Sequence[Track], num_lanes: int, *, start: int) -> Order:
    """Return the order that repeats a cycle of these. Raises ValueError for a weight too small for any cycle."""
    weights = [track.weight for track in tracks]
    rows = choose_rows(weights, num_lanes)
    parts = integer_parts(weights, rows * num_lanes)
    for track, part in zip(tracks, parts, strict=True):
        if not part:
            raise ValueError(
                f"source {track.order.name!r}: its weight is under one pick in {rows * num_lanes}; "
                "raise it or leave it out"
            )
    return Order(lanes=deal(spread(parts), num_lanes), tracks=tuple(tracks), start=start)


def lanes_of_rank(num_lanes: int, *, rank: int, world_size: int) -> range:
    """Return the lanes a rank owns. Raises ValueError if the world size does not divide them, naming some that do."""
    if world_size < 1 or not 0 <= rank < world_size:
        raise ValueError(f"rank must be in 0..world_size-1, got rank {rank} of world size {world_size}")
    if num_lanes % world_size:
        raise ValueError(
            f"world size {world_size} does not divide the {num_lanes} lanes of the mixture; "
            f"nearest that do: {nearest_divisors(num_lanes, world_size)}"
        )
    share = num_lanes // world_size
    return range(rank * share, (rank + 1) * share)


def nearest_divisors(number: int, wanted: int) -> str:
    """Return the divisors of `number` on both sides of `wanted`, as text."""
    divisors = [value for value in range(1, number + 1) if number % value == 0]
    below = [value for value in divisors if value <= wanted][-1:]
    above = [value for value in divisors if value > wanted][:1]
    return ", ".join(str(value) for value in below + above)
