"""What each batch of one rank holds, and which samples are worth reading together.

Two plans: the endless mixture, and the finite pass that gives every sample once. In the finite pass positions are
places in the sources laid end to end, and lanes play no part.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from headrace.pipeline.order.epoch import Draws
from headrace.pipeline.order.order import Order, Placements

IntArray = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class BatchPlan:
    """One rank's part of one global batch."""

    position: IntArray
    valid: NDArray[np.bool_]
    placed: Placements


class StreamPlan(Protocol):
    """Batches by number."""

    @property
    def replaces(self) -> bool:
        """Whether a damaged sample is replaced, or left out as not valid."""

    @property
    def num_batches(self) -> int | None:
        """Batches in all; None = endless."""

    @property
    def shares(self) -> list[float]:
        """Share of each source in the whole."""

    @property
    def weight_errors(self) -> list[float]:
        """For each source its share as it is met minus the one asked for; after N samples it is off by that times N."""

    def given(self, position: int) -> list[int]:
        """Return how many samples of each source stand before `position`."""

    def batch(self, number: int) -> BatchPlan:
        """Return the batch of a step."""

    def chunk_samples(self, source: int) -> int:
        """Return how many consecutive samples of a source are read at once."""

    def chunk_of(self, batch: BatchPlan, item: int) -> tuple[int, int, int]:
        """Return (source, epoch, number) of the chunk an item lies in."""

    def together(self, batch: BatchPlan, item: int) -> IntArray:
        """Return the samples of the item's source to read with it: those its lane gives next."""

    def replacement(self, placed: Placements, item: int, steps: int) -> int:
        """Return the sample that stands `steps` after the item in the same lane share."""


@dataclass(frozen=True, slots=True)
class EndlessPlan:
    """The mixture, for ever."""

    order: Order
    lanes: range
    rows_per_batch: int

    @property
    def replaces(self) -> bool:
        """Yes: by the next sample of the same lane share."""
        return True

    @property
    def num_batches(self) -> int | None:
        """Endless."""
        return None

    @property
    def shares(self) -> list[float]:
        """The weights as they are met."""
        return [part / sum(self.order.parts) for part in self.order.parts]

    @property
    def weight_errors(self) -> list[float]:
        """How far the whole numbers of the cycle are from the weights."""
        return self.order.weight_errors

    def given(self, position: int) -> list[int]:
        """Return the samples of each source before `position`."""
        return self.order.given(position)

    def batch(self, number: int) -> BatchPlan:
        """Return the batch of step `number`, by ascending position."""
        position = self.order.positions(number * self.rows_per_batch, self.rows_per_batch, self.lanes)
        return BatchPlan(position, np.ones(len(position), np.bool_), self.order.sample_at(position))

    def chunk_samples(self, source: int) -> int:
        """Return the chunk of a source."""
        return self.order.sources[source].chunk_samples

    def chunk_of(self, batch: BatchPlan, item: int) -> tuple[int, int, int]:
        """Return the chunk of an item in its epoch."""
        source, epoch, sample = (
            int(column[item]) for column in (batch.placed.source, batch.placed.epoch, batch.placed.sample)
        )
        return source, epoch, sample // self.chunk_samples(source)

    def together(self, batch: BatchPlan, item: int) -> IntArray:
        """Return what is left of the lane's window, this item first."""
        placed = batch.placed
        source = self.order.sources[int(placed.source[item])]
        here = slice(item, item + 1)
        _, _, end = source.window(Draws(placed.lane[here], placed.epoch[here], placed.place[here]))
        place = np.arange(placed.place[item], end[0], dtype=np.int64)
        lane, epoch = np.full_like(place, placed.lane[item]), np.full_like(place, placed.epoch[item])
        return source.samples(Draws(lane, epoch, place))

    def replacement(self, placed: Placements, item: int, steps: int) -> int:
        """Return the next sample of the same lane share; round its end."""
        draw = (int(placed.lane[item]), int(placed.epoch[item]), int(placed.place[item]))
        return self.order.replacement(int(placed.source[item]), draw, steps)


@dataclass(frozen=True, slots=True)
class OncePlan:
    """Every sample of every source once, in the order of the index."""

    sizes: Sequence[int]
    chunks: Sequence[int]
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

    @property
    def shares(self) -> list[float]:
        """Samples of each source over all samples."""
        return [size / sum(self.sizes) for size in self.sizes]

    @property
    def weight_errors(self) -> list[float]:
        """None: weights play no part."""
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
        sample = np.where(valid, position - starts[source], 0)
        nothing = np.zeros_like(position)
        return BatchPlan(position, valid, Placements(source, nothing, position // self.global_batch, nothing, sample))

    def chunk_samples(self, source: int) -> int:
        """Return the chunk of a source."""
        return self.chunks[source]

    def chunk_of(self, batch: BatchPlan, item: int) -> tuple[int, int, int]:
        """Return the chunk of an item; there is one epoch."""
        source, sample = int(batch.placed.source[item]), int(batch.placed.sample[item])
        return source, 0, sample // self.chunks[source]

    def together(self, batch: BatchPlan, item: int) -> IntArray:
        """Return the rest of the chunk that lies in this batch."""
        placed = batch.placed
        source, sample = placed.source[item], int(placed.sample[item])
        last = int(placed.sample[batch.valid & (placed.source == source)].max())
        chunk = self.chunks[source]
        return np.arange(sample, min(last + 1, (sample // chunk + 1) * chunk), dtype=np.int64)

    def replacement(self, placed: Placements, item: int, steps: int) -> int:
        """Never asked: a finite pass leaves damaged samples out."""
        raise AssertionError(f"no replacement in a finite pass: {placed.sample[item]} + {steps}")
