"""What a stream delivers."""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from headrace.pipeline.collate import Column
from headrace.pipeline.decode import Images
from headrace.pipeline.prefetch import WaitedFor


@dataclass(frozen=True, slots=True)
class Batch:
    """One rank's part of one global batch, by ascending position."""

    images: Images
    """[B, S, S, 3], RGB, upright: view 0. With `decoder: none` [B, 0, 0, 3]."""
    columns: dict[str, Column]
    """Columns of the index that were asked for, as `collate` makes them: numbers as arrays (missing: -1 or NaN),
    everything else as lists."""
    position: NDArray[np.int64]
    """[B] global position."""
    source: NDArray[np.int32]
    """[B] number of the source in the mixture."""
    key: list[str]
    valid: NDArray[np.bool_]
    """[B] False only in a finite pass: the padding of its end, and damaged samples."""
    waited_seconds: float = 0.0
    """How long the caller waited for this batch."""
    waited_for: WaitedFor = "none"
    other_views: tuple[Images, ...] = ()
    """Views 1 and up, each of its own size."""
    data: list[bytes] = dataclasses.field(default_factory=list)
    """With `decoder: none` the image of each row as it lies in its shard, nothing where not valid; else empty."""
    num_replaced: int = 0
    """Rows that hold another sample, as their own was damaged."""
    lane: NDArray[np.int64] = dataclasses.field(default_factory=lambda: np.zeros(0, np.int64))
    """[B] lane that gave each row. A rank has whole lanes, so rows of one lane meet at any world size."""

    @property
    def views(self) -> tuple[Images, ...]:
        """Every view of every sample, in the order of the mixture's `views`; the first is `images`."""
        return (self.images, *self.other_views)

    def rows(self, part: slice) -> "Batch":
        """Return the batch of some rows in a row. It shares the memory of this one; nothing is copied.

        What is said of the whole batch (`num_replaced`, the waiting) it says of the whole.
        """
        return dataclasses.replace(
            self,
            images=self.images[part],
            other_views=tuple(view[part] for view in self.other_views),
            columns={name: column[part] for name, column in self.columns.items()},
            position=self.position[part],
            source=self.source[part],
            key=self.key[part],
            data=self.data[part],
            valid=self.valid[part],
            lane=self.lane[part],
        )

    def split(self, num_rows: int) -> "Sequence[Batch]":
        """Cut the batch into parts of `num_rows` consecutive rows, the last one shorter where that does not go up.

        Parts share the batch's memory, as `rows` does. Raises ValueError for fewer than one row.
        """
        if num_rows < 1:
            raise ValueError(f"a part of a batch has at least 1 row, got {num_rows}")
        if num_rows >= len(self.position):
            return [self]
        return [self.rows(slice(start, start + num_rows)) for start in range(0, len(self.position), num_rows)]
