"""What each step changed: the distribution of every number among the rows that reach the step and those that pass it.

Kept as counts in the fine bins of the number's histogram, by the step that dropped the row; everything else follows
from sums of them. Medians and means are those of the bins' centres.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from headrace.curation.report.sketch import NUM_FINE, Histogram, binned

SHOWN_NUMBERS = 3
"""Numbers shown for each step: those whose distribution it moved most."""
MIN_SHIFT = 0.01
"""Largest difference of the two cumulative shares, under which nothing is shown."""

Counted = NDArray[np.int64]


@dataclass(kw_only=True, slots=True)
class Effects:
    """Counts by number and step."""

    steps: Sequence[str]
    counts: dict[str, Counted] = field(default_factory=dict)
    """Number -> [steps + 1, fine bins]: rows dropped at each step, last those that are kept."""

    def add(self, name: str, bins: NDArray[np.int64], steps: NDArray[np.int64]) -> None:
        """Count the fine bins of a table's rows, each with the step that dropped it."""
        lines = len(self.steps) + 1
        counts = self.counts.setdefault(name, np.zeros((lines, NUM_FINE), np.int64))
        counts += np.bincount(steps * NUM_FINE + bins, minlength=lines * NUM_FINE).reshape(lines, NUM_FINE)

    def as_dicts(self, histograms: Mapping[str, Histogram]) -> list[dict[str, Any]]:
        """Return for each step that dropped rows with numbers the ones it moved most, before and after."""
        found = []
        for number, name in enumerate(self.steps):
            moved = [
                (_shift(counts[number:].sum(axis=0), counts[number + 1 :].sum(axis=0)), column)
                for column, counts in self.counts.items()
            ]
            top = sorted((-shift, column) for shift, column in moved if shift >= MIN_SHIFT)[:SHOWN_NUMBERS]
            if top:
                shown = [self._moved(column, number, -shift, histograms[column]) for shift, column in top]
                found.append({"step": name, "numbers": shown})
        return found

    def _moved(self, column: str, number: int, shift: float, histogram: Histogram) -> dict[str, Any]:
        counts = self.counts[column]
        before, after = counts[number:].sum(axis=0), counts[number + 1 :].sum(axis=0)
        edges = histogram.scale.edges()
        centres = edges[:-1] if histogram.integral else (edges[:-1] + edges[1:]) / 2
        shown, (low, high) = binned(histogram, [before, after])
        return {
            "number": column,
            "shift": round(shift, 4),
            "median": [_median(centres, before), _median(centres, after)],
            "mean": [_mean(centres, before), _mean(centres, after)],
            "edges": shown,
            "before": low,
            "after": high,
        }


def _shift(before: Counted, after: Counted) -> float:
    """Return the largest difference of the cumulative shares (Kolmogorov and Smirnov); 0 where a side has none."""
    if not before.sum() or not after.sum() or before.sum() == after.sum():
        return 0.0
    return float(np.abs(np.cumsum(before) / before.sum() - np.cumsum(after) / after.sum()).max())


def _median(centres: NDArray[np.float64], counts: Counted) -> float:
    place = int(np.searchsorted(np.cumsum(counts), counts.sum() / 2))
    return float(f"{centres[min(place, len(centres) - 1)]:.4g}")


def _mean(centres: NDArray[np.float64], counts: Counted) -> float:
    return float(f"{float((centres * counts).sum()) / max(int(counts.sum()), 1):.4g}")
