"""What each batch of one rank holds, and which samples are worth reading together.

Two plans: the endless mixture, and the finite pass that gives every sample once. In the finite pass positions are
places in the sources laid end to end, and lanes play no part.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from headrace.pipeline.order.order import Placements, lanes_of_rank
from headrace.pipeline.order.segments import Part, Timeline
from headrace.pipeline.order.subset import Subset

IntArray = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class BatchPlan:
    """One rank's part of one global batch."""

    position: IntArray
    valid: NDArray[np.bool_]
    placed: Placements
    part: int = 0
    """Number of the part of the stream it lies in: windows may not go on into the next."""


class StreamPlan(Protocol):
    """Batches by number."""

    @property
    def replaces(self) -> bool:
        """Whether a damaged sample is replaced, or left out as not valid."""

    @property
    def num_batches(self) -> int | None:
        """Batches in all; None = endless."""

    def shares(self, position: int) -> list[float]:
        """Return the share of each source in what stands from `position` on."""

    def weight_errors(self, position: int) -> list[float]:
        """Return for each source its share as it is met minus as asked for; after N samples it is off by that x N."""

    def given(self, position: int) -> list[int]:
        """Return how many samples of each source stand before `position`."""

    def batch(self, number: int) -> BatchPlan:
        """Return the batch of a step."""

    def batches(self, number: int, most: int) -> list[BatchPlan]:
        """Return the batches of a step and of those behind it, at most so many: cheaper than one by one."""

    def chunk_samples(self, source: int) -> int:
        """Return how many consecutive samples of a source are read at once."""

    def chunk_of(self, batch: BatchPlan, item: int) -> tuple[int, int, int]:
        """Return (source, epoch, number) of the chunk an item lies in."""

    def together(self, batch: BatchPlan, item: int) -> list[IntArray]:
        """Return the samples of the item's source that its lane gives next, by the chunk in which they are read."""

    def stale(self, before: int, after: int) -> set[int]:
        """Return the sources of which nothing goes on from part `before` to a later one: read ahead, it is not used."""

    def replacement(self, batch: BatchPlan, item: int, steps: int) -> int:
        """Return the sample that stands `steps` after the item in the same lane share."""


@dataclass(frozen=True, kw_only=True, slots=True)
class EndlessPlan:
    """The mixture, for ever."""

    timeline: Timeline
    chunks: Sequence[int]
    """Samples of a chunk, of each source."""
    global_batch: int
    rank: int
    world_size: int

    @property
    def replaces(self) -> bool:
        """Yes: by the next sample of the same lane share."""
        return True

    @property
    def num_batches(self) -> int | None:
        """Endless."""
        return None

    def shares(self, position: int) -> list[float]:
        """Return the weights as they are met."""
        order = self.timeline.parts[self.timeline.part_at(position)].order
        met = {t.source: p / sum(order.parts) for t, p in zip(order.tracks, order.parts, strict=True)} if order else {}
        return [met.get(source, 0.0) for source in range(len(self.chunks))]

    def weight_errors(self, position: int) -> list[float]:
        """Return how far the whole numbers of the cycle are from the weights."""
        order = self.timeline.parts[self.timeline.part_at(position)].order
        off = {t.source: e for t, e in zip(order.tracks, order.weight_errors, strict=True)} if order else {}
        return [off.get(source, 0.0) for source in range(len(self.chunks))]

    def given(self, position: int) -> list[int]:
        """Return the samples of each source before `position`."""
        return self.timeline.given(position)

    def batch(self, number: int) -> BatchPlan:
        """Return the batch of step `number`, by ascending position."""
        return self.batches(number, 1)[0]

    def batches(self, number: int, most: int) -> list[BatchPlan]:
        """Return the batches of steps `number`.., at most so many and none behind the end of a part.

        Raises ValueError where the world size does not divide the lanes, or no source is left.
        """
        position = number * self.global_batch
        which = self.timeline.part_at(position)
        part = self.timeline.parts[which]
        if part.order is None:
            raise ValueError(_no_source(part))
        lanes = self._lanes(part)
        steps = most if part.end is None else min(most, (part.end - position) // self.global_batch)
        rows = self.global_batch // part.num_lanes
        first = (position - part.order.start) // part.num_lanes
        positions = part.order.positions(first, steps * rows, lanes)
        placed = part.order.sample_at(positions)
        size = rows * len(lanes)
        valid = np.ones(size, np.bool_)
        cuts = [slice(step * size, (step + 1) * size) for step in range(steps)]
        return [BatchPlan(positions[cut], valid, placed[cut], which) for cut in cuts]

    def _lanes(self, part: Part) -> range:
        try:
            return lanes_of_rank(part.num_lanes, rank=self.rank, world_size=self.world_size)
        except ValueError as error:
            raise ValueError(f"from position {part.start}: {error}") from error

    def chunk_samples(self, source: int) -> int:
        """Return the chunk of a source."""
        return self.chunks[source]

    def chunk_of(self, batch: BatchPlan, item: int) -> tuple[int, int, int]:
        """Return the chunk of an item in its epoch."""
        source, epoch, sample = (
            int(column[item]) for column in (batch.placed.source, batch.placed.epoch, batch.placed.sample)
        )
        return source, epoch, sample // self.chunk_samples(source)

    def together(self, batch: BatchPlan, item: int) -> list[IntArray]:
        """Return what is left of the lane's window, this item among it."""
        order = self.timeline.parts[batch.part].order
        assert order is not None
        return order.together(*_draw(batch.placed, item))

    def stale(self, before: int, after: int) -> set[int]:
        """Return the sources that change lanes, leave, or come to their end."""
        return self.timeline.stale(before, after)

    def replacement(self, batch: BatchPlan, item: int, steps: int) -> int:
        """Return the next sample of the same lane share; round its end."""
        order = self.timeline.parts[batch.part].order
        assert order is not None
        return order.replacement(*_draw(batch.placed, item), steps)


def _draw(placed: Placements, item: int) -> tuple[int, int, int]:
    return int(placed.source[item]), int(placed.lane[item]), int(placed.number[item])


def _no_source(part: Part) -> str:
    return (
        f"at position {part.start} every source has come to its end (repeat), or what is left does not fill a batch; "
        "let the run end there, or leave `repeat` out of a source"
    )


@dataclass(frozen=True, slots=True)
class OncePlan:
    """Every sample of every source once, in the order of the index."""

    sizes: Sequence[int]
    chunks: Sequence[int]
    subsets: Sequence[Subset | None]
    global_batch: int
    rank: int
    world_size: int

    @property
    def replaces(self) -> bool:
        """No: a replacement would come twice."""
        return False

    @property
    def num_batches(self) -> int | None:
        """Global batches, the last one padded."""
        return -(-sum(self.sizes) // self.global_batch)

    def shares(self, position: int) -> list[float]:  # noqa: ARG002  everywhere the same
        """Return the samples of each source over all samples."""
        return [size / sum(self.sizes) for size in self.sizes]

    def weight_errors(self, position: int) -> list[float]:  # noqa: ARG002  everywhere the same
        """Return nothing: weights play no part."""
        return [0.0] * len(self.sizes)

    def given(self, position: int) -> list[int]:
        """Return the samples of each source before `position`."""
        starts = np.cumsum([0, *self.sizes[:-1]], dtype=np.int64)
        return [int(np.clip(position - start, 0, size)) for start, size in zip(starts, self.sizes, strict=True)]

    def batch(self, number: int) -> BatchPlan:
        """Return the rank's slice of global batch `number`; what lies behind the end is not valid."""
        share = self.global_batch // self.world_size
        start = number * self.global_batch + self.rank * share
        position = np.arange(start, start + share, dtype=np.int64)
        valid = position < sum(self.sizes)
        starts = np.cumsum([0, *self.sizes], dtype=np.int64)
        source = np.where(valid, np.searchsorted(starts, position, side="right") - 1, 0).astype(np.int64)
        ordinal = np.where(valid, position - starts[source], 0)
        sample = ordinal.copy()
        for which, subset in enumerate(self.subsets):
            here = np.flatnonzero(valid & (source == which))
            if subset is not None and here.size:
                sample[here] = subset.in_order(ordinal[here])
        nothing = np.zeros_like(position)
        placed = Placements(source, nothing, ordinal, np.full_like(position, number), ordinal, sample)
        return BatchPlan(position, valid, placed)

    def batches(self, number: int, most: int) -> list[BatchPlan]:
        """Return the batches of steps `number`.., at most so many and none behind the end."""
        assert self.num_batches is not None
        return [self.batch(step) for step in range(number, min(number + most, self.num_batches))]

    def chunk_samples(self, source: int) -> int:
        """Return the chunk of a source."""
        return self.chunks[source]

    def chunk_of(self, batch: BatchPlan, item: int) -> tuple[int, int, int]:
        """Return the chunk of an item; there is one epoch."""
        source, sample = int(batch.placed.source[item]), int(batch.placed.sample[item])
        return source, 0, sample // self.chunks[source]

    def together(self, batch: BatchPlan, item: int) -> list[IntArray]:
        """Return the rest of the chunk that lies in this batch."""
        placed, chunk = batch.placed, self.chunks[int(batch.placed.source[item])]
        same = (
            batch.valid
            & (placed.source == placed.source[item])
            & (placed.place // chunk == placed.place[item] // chunk)
        )
        same[:item] = False
        return [placed.sample[same]]

    def stale(self, before: int, after: int) -> set[int]:  # noqa: ARG002  there is one part
        """Return nothing: a pass has one part."""
        return set()

    def replacement(self, batch: BatchPlan, item: int, steps: int) -> int:
        """Never asked: a finite pass leaves damaged samples out."""
        raise AssertionError(f"no replacement in a finite pass: {batch.placed.sample[item]} + {steps}")
