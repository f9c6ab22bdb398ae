"""What the opening of a mixture tells its operator: numbers that are off, and the number to change.

Nothing here changes the order; it says in advance what would be seen only after days.
"""

import dataclasses
import logging
from collections.abc import Sequence

import numpy as np
import pyarrow as pa

from headrace.pipeline.catalog import OpenedSource
from headrace.pipeline.order.epoch import SourceOrder
from headrace.text import one_line

LOUD_WEIGHT_ERROR = 1e-3
"""A source further from its weight than this, as a part of that weight, is warned of."""
SORTED = 0.25
"""Neighbours of different labels, as a part of those that a shuffled shard has: below it looks sorted by class."""
MIN_LABELS = 64
SHOWN_SAMPLES = 1_000_000_000

log = logging.getLogger(__name__)


def is_loud(weight: float, error: float) -> bool:
    """True if a weight that is met as `weight`, `error` more than was asked for, is too far off to stay silent."""
    return abs(error) > LOUD_WEIGHT_ERROR * (weight - error)


def describe_weight_error(name: str, weight: float, error: float) -> str:
    """Say how far a source is from its weight, and what that makes of many samples."""
    asked = weight - error
    return (
        f"source {name}: its weight {asked:.6g} is met as {weight:.6g} ({error / asked:+.2%}); after "
        f"{SHOWN_SAMPLES:,} samples it is {abs(error) * SHOWN_SAMPLES + 1:,.0f} off at most; fewer lanes, or weights "
        "that are small fractions, come closer"
    )


def fitting_window(orders: Sequence[SourceOrder], mean_bytes: Sequence[int], *, num_lanes: int, memory: int) -> int:
    """Return the largest shuffle_window that fits if every source has it; 0 if not even single chunks do."""

    def fits(window: int) -> bool:
        changed = [dataclasses.replace(order, shuffle_window=window) for order in orders]
        return sum(num_lanes * o.window_samples * size for o, size in zip(changed, mean_bytes, strict=True)) <= memory

    low, high = 0, max(order.shuffle_window for order in orders)
    if not fits(low):
        return 0
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if fits(middle) else (low, middle - 1)
    return low


def warn_if_sorted(source: OpenedSource, labels: pa.ChunkedArray) -> None:
    """Warn if the labels of a shard stand in runs: then a batch holds few classes, whatever the seed."""
    numbers = np.asarray(labels.cast(pa.int64()).fill_null(-1).to_numpy())
    _, counts = np.unique(numbers, return_counts=True)
    expected = (len(numbers) - 1) * (1 - float(((counts / max(1, len(numbers))) ** 2).sum()))
    if len(numbers) < MIN_LABELS or len(counts) < 2 or np.count_nonzero(np.diff(numbers)) > SORTED * expected:
        return
    log.warning(
        "source %s looks sorted by label (%d labels in a shard of %d, in runs), so a batch holds few classes: set its "
        "chunk_samples to 1..16 (each chunk is of another place), raise shuffle_window, or import it with --shuffle",
        one_line(source.config.name),
        len(counts),
        len(numbers),
    )
