"""Parts of a batch, and batches that count only some of their rows.

A part keeps each sample's global position, so its crop, prefix and place in the loss do not depend on how a batch is
cut. Parts share the memory of the batch; nothing is copied.
"""

import dataclasses
from collections.abc import Sequence

import numpy as np

from headrace.pipeline import Batch


def micro_batches(batch: Batch, images: int | None) -> Sequence[Batch]:
    """Cut `batch` into parts of at most `images` rows; None = one part."""
    return [batch] if images is None else batch.split(images)


def first_samples(batch: Batch, samples: int) -> Batch:
    """Return the batch with every row at position `samples` or later marked as not valid; 0 = leave all."""
    if not samples:
        return batch
    return dataclasses.replace(batch, valid=np.logical_and(batch.valid, batch.position < samples))
