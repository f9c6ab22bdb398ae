"""What a stream delivers."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from headrace.pipeline.decode import Images
from headrace.pipeline.prefetch import WaitedFor


@dataclass(frozen=True, slots=True)
class Batch:
    """One rank's part of one global batch, by ascending position."""

    images: Images
    """[B, S, S, 3], RGB, upright: view 0."""
    columns: dict[str, NDArray[np.generic] | list[Any]]
    """Columns of the index that were asked for: numbers as arrays (missing: -1 or NaN), everything else as lists."""
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
    num_replaced: int = 0
    """Rows that hold another sample, as their own was damaged."""

    @property
    def views(self) -> tuple[Images, ...]:
        """Every view of every sample, in the order of the mixture's `views`; the first is `images`."""
        return (self.images, *self.other_views)
