"""The global order: position k -> (source, epoch, sample), a pure function of (seed, mixture, k).

Nothing here reads, remembers or depends on the world size; opening costs the same for a thousand samples and for two
billion. Positions are dealt to lanes and lanes to ranks, so a rank's positions are not an arithmetic sequence; ask
`positions`.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from headrace.pipeline.order.epoch import Draws, SourceOrder
from headrace.pipeline.order.lanes import Lanes, deal
from headrace.pipeline.order.quota import choose_rows, integer_parts, spread, weight_errors

IntArray = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Placements:
    """What stands at some positions: arrays side by side, one element a position."""

    source: IntArray
    lane: IntArray
    epoch: IntArray
    place: IntArray
    """Place inside the lane's share of the epoch."""
    sample: IntArray
    """Number in the source's concatenated index."""


@dataclass(frozen=True, slots=True)
class Order:
    """The order of a mixture: its cycle dealt to lanes, and the order of each source."""

    lanes: Lanes
    sources: tuple[SourceOrder, ...]
    weights: tuple[float, ...]
    """As they were asked for."""

    @property
    def weight_errors(self) -> list[float]:
        """For each source its share of the cycle minus its share of the weights."""
        return weight_errors(self.weights, self.parts)

    @property
    def parts(self) -> list[int]:
        """The weights as they are met: picks of each source in one cycle."""
        return [int(number) for number in self.lanes.counts[:, -1]]

    def positions(self, row: int, num_rows: int, lanes: range) -> IntArray:
        """Return the positions of rows `row`.. of some lanes, ascending."""
        rows = np.arange(row, row + num_rows, dtype=np.int64)
        lane = np.array(lanes, np.int64)
        every = self.lanes.position_of(np.tile(lane, num_rows), np.repeat(rows, len(lane)))
        return np.sort(every)

    def sample_at(self, position: IntArray) -> Placements:
        """Return what stands at each of `position`, a 1-D array."""
        lane, row = self.lanes.lane_of(position)
        source = self.lanes.picks[position % len(self.lanes.picks)].astype(np.int64)
        number = self.lanes.given(source, lane, row)
        epoch, place, sample = (np.empty_like(position) for _ in range(3))
        for which, order in enumerate(self.sources):
            here = np.flatnonzero(source == which)
            if here.size:
                draws = order.draws(lane[here], number[here])
                epoch[here], place[here] = draws.epoch, draws.place
                sample[here] = order.samples(draws)
        return Placements(source, lane, epoch, place, sample)

    def replacement(self, source: int, draw: tuple[int, int, int], steps: int) -> int:
        """Return the sample `steps` after (lane, epoch, place) in the same lane share: what replaces a damaged one."""
        lane, epoch, place = (np.array([value], np.int64) for value in draw)
        order = self.sources[source]
        later = Draws(lane, epoch, place).after(steps, order.share_size(lane, epoch))
        return int(order.samples(later)[0])

    def given(self, position: int) -> list[int]:
        """Return how many samples of each source stand before `position`."""
        cycles, rest = divmod(position, len(self.lanes.picks))
        partial = np.bincount(self.lanes.picks[:rest], minlength=len(self.sources))
        return [cycles * part + int(more) for part, more in zip(self.parts, partial, strict=True)]


def build_order(sources: Sequence[SourceOrder], weights: Sequence[float], num_lanes: int) -> Order:
    """Return the order of `sources` mixed by `weights`. Raises ValueError for a weight too small to be met."""
    rows = choose_rows(weights, num_lanes)
    parts = integer_parts(weights, rows * num_lanes)
    for source, part in zip(sources, parts, strict=True):
        if not part:
            raise ValueError(
                f"source {source.name!r}: its weight is under one pick in {rows * num_lanes}; raise it or leave it out"
            )
    return Order(lanes=deal(spread(parts), num_lanes), sources=tuple(sources), weights=tuple(weights))


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
