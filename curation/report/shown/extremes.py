"""Kept rows at the ends: the darkest, most blurred, longest and greyest pictures, the captions of least score."""

import heapq
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
import pyarrow as pa

Row = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Extreme:
    """One end of one number."""

    title: str
    column: str
    highest: bool
    of_caption: bool = False
    """True if what is looked at is the caption."""


EXTREMES = (
    Extreme("Darkest", "mean_brightness", False),
    Extreme("Brightest", "mean_brightness", True),
    Extreme("Most blurred", "sharpness", False),
    Extreme("Greyest", "colourfulness", False),
    Extreme("Most extreme aspect", "aspect", True),
    Extreme("Lowest scores", "clip_score", False, True),
    Extreme("Highest scores", "clip_score", True, True),
    Extreme("Shortest captions", "caption_chars", False, True),
    Extreme("Longest captions", "caption_chars", True, True),
)


@dataclass(kw_only=True, slots=True)
class Ends:
    """The rows at each end."""

    count: int
    found: dict[Extreme, list[Row]] = field(default_factory=dict)

    def add(self, column: str, rows: pa.Table) -> None:
        """Look through some rows with their `value` of a column."""
        values = rows["value"].to_numpy()
        finite = np.flatnonzero(np.isfinite(values))
        for extreme in of_column(column):
            order = np.argsort(-values[finite] if extreme.highest else values[finite], kind="stable")[: self.count]
            some = rows.take(pa.array(finite[order])).to_pylist()
            held = [*self.found.get(extreme, []), *some]
            self.found[extreme] = heapq.nsmallest(self.count, held, key=partial(_rank, highest=extreme.highest))

    def shown(self) -> Iterable[tuple[Extreme, list[Row]]]:
        """Yield each end that has rows, in the order of `EXTREMES`."""
        return ((extreme, self.found[extreme]) for extreme in EXTREMES if self.found.get(extreme))


def _rank(row: Row, *, highest: bool) -> tuple[float, str, str]:
    return (-row["value"] if highest else row["value"]), row["uid"] or "", row["key"]


def of_column(column: str) -> Iterable[Extreme]:
    """Return the ends of one column."""
    return (extreme for extreme in EXTREMES if extreme.column == column)


def columns(present: Iterable[str] | None = None) -> Mapping[str, str]:
    """Return the columns that are looked at, as names of themselves."""
    names = dict.fromkeys(extreme.column for extreme in EXTREMES)
    return {name: name for name in names if present is None or name in set(present)}
