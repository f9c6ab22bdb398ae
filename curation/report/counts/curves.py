"""How many rows another threshold would keep: exact counts at thresholds written with six digits.

A curve counts the rows that reach its step, by the number that the step compares. It is what select would find at that
step with the other threshold, where the step looks at this number alone (`exact` says whether it does).
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from headrace.curation.ledger import StepSummary
from headrace.curation.report.sketch import Floats, Scale
from headrace.curation.report.values import cuts_of

NUM_SHOWN = 60
"""Thresholds of a curve that are shown, about as many rows between each two."""

NUM_EVEN = 24
"""Further ones, over the whole range, so that a line stands for what is between them."""

Side = Literal["at least", "more than", "at most", "less than"]
"""What a row's number must be, against the threshold, to be kept."""

SIDES: tuple[Side, ...] = ("at least", "at most", "less than", "more than")

Steps = NDArray[np.int64]
"""[rows] of one table: the number of the step that dropped the row, or how many steps there are."""


@dataclass(kw_only=True, slots=True)
class Curve:
    """Counts of one number that one step compares."""

    step: str
    number: int
    """Of the step in the funnel."""
    expression: str
    threshold: float
    edges: Floats
    """Sorted thresholds, `threshold` among them."""
    passed: NDArray[np.int64]
    """[2, edges + 1] of the rows that the step let pass: by how many edges are under, and how many at most, them."""
    dropped: NDArray[np.int64]
    """The same of the rows that the step dropped."""
    kept: NDArray[np.int64]
    """The same of the rows that are kept in the end."""
    alone: bool = True
    """False if the step compares further numbers, so that the value in the ledger may be of another."""
    sees_taken: bool = False
    """True if a step before it let rows take the captions of others, and what follows from them."""
    missing: int = 0
    """Rows that reached the step without a number."""

    def add(self, values: Floats, steps: Steps, num_steps: int) -> None:
        """Count the rows of a table, NaN where there is no number."""
        finite = np.isfinite(values)
        self.missing += int((~finite & (steps >= self.number)).sum())
        for counts, rows in (
            (self.passed, steps > self.number),
            (self.dropped, steps == self.number),
            (self.kept, steps == num_steps),
        ):
            found = values[finite & rows]
            for line, side in enumerate(("left", "right")):
                places = np.searchsorted(self.edges, found, "left" if side == "left" else "right")
                counts[line] += np.bincount(places, minlength=len(self.edges) + 1)

    def side(self) -> Side:
        """Return what the step asks, as its verdicts show it: the side that agrees with most of them."""
        at = int(np.searchsorted(self.edges, self.threshold))

        def wrong(side: Side) -> int:
            drops = int(self.passed[0].sum() - self._kept(side, self.passed)[at])
            return drops + int(self._kept(side, self.dropped)[at])

        return min(SIDES, key=wrong)

    def _ties(self, at: int) -> tuple[int, int]:
        """Return how many rows that were dropped, and that passed, stand at the threshold itself."""
        found = [
            int(self._kept("at least", counts)[at] - self._kept("more than", counts)[at])
            for counts in (self.dropped, self.passed)
        ]
        return found[0], found[1]

    def _kept(self, side: Side, counts: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return for each edge how many rows are on that side of it."""
        under, at_most = np.cumsum(counts[0]), np.cumsum(counts[1])
        total = int(under[-1])
        # A row lies at or under edge i where at most i edges are under it, and under it where at most i are not over.
        found = {
            "at most": under[:-1],
            "less than": at_most[:-1],
            "more than": total - under[:-1],
            "at least": total - at_most[:-1],
        }
        return np.asarray(found[side], np.int64)

    def as_dict(self) -> dict[str, Any]:
        """Return the points that are shown, each [threshold, rows left after the step, of them kept in the end]."""
        side = self.side()
        reach = self.passed + self.dropped
        left, kept = self._kept(side, reach), self._kept(side, self.kept)
        total = int(reach[0].sum())
        at = int(np.searchsorted(self.edges, self.threshold))
        under = np.cumsum(reach[0])[:-1]
        marks = np.linspace(0, total, NUM_SHOWN + 1)
        last = len(self.edges) - 1
        even = np.linspace(0, last, NUM_EVEN + 1).astype(int)
        places = sorted({at, *even.tolist(), *np.clip(np.searchsorted(under, marks), 0, last).tolist()})
        here = int(left[at])
        return {
            "step": self.step,
            "expression": self.expression,
            "threshold": self.threshold,
            "keeps": side,
            "without_number": self.missing,
            "exact": here == int(self.passed[0].sum()) + (self._ties(at)[0] if side in ("at least", "at most") else 0),
            "points": [[float(self.edges[place]), int(left[place]), int(kept[place])] for place in places],
        }


@dataclass(kw_only=True, slots=True)
class Curves:
    """The curves of a ledger."""

    num_steps: int
    curves: list[Curve] = field(default_factory=list)

    @classmethod
    def of(cls, steps: Sequence[StepSummary], ranges: dict[str, Scale]) -> "Curves":
        """Return empty curves for every number that a step compares and that some row has."""
        found = cls(num_steps=len(steps))
        taken = False
        for number, step in enumerate(steps):
            cuts = cuts_of(step)
            for cut in cuts:
                scale = ranges.get(cut.expression)
                if cut.threshold is None or not np.isfinite(cut.threshold) or scale is None:
                    continue
                edges = _edges(scale, float(cut.threshold))
                counts = [np.zeros((2, len(edges) + 1), np.int64) for _ in range(3)]
                found.curves.append(
                    Curve(
                        step=step.name,
                        number=number,
                        expression=cut.expression,
                        threshold=float(cut.threshold),
                        edges=edges,
                        passed=counts[0],
                        dropped=counts[1],
                        kept=counts[2],
                        alone=len(cuts) == 1,
                        sees_taken=taken,
                    )
                )
            taken = taken or bool(step.details.get("captions_taken"))
        return found

    def as_dicts(self) -> list[dict[str, Any]]:
        """Return those that have a row, in the order of the funnel."""
        return [curve.as_dict() for curve in self.curves if (curve.passed + curve.dropped).any()]


def _edges(scale: Scale, threshold: float) -> Floats:
    # Six digits, so that a threshold taken from the page is the one that was counted.
    rounded = [float(f"{edge:.6g}") for edge in scale.edges()]
    return np.unique(np.array([*rounded, threshold], np.float64))
