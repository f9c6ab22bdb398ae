"""Counts of columns of words and of yes or no (language, format, greyscale), and of pictures by size."""

from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

MAX_WORDS = 1000
"""A column with more different values than this is no category, and is left out."""
SHOWN_WORDS = 25
NOT_CATEGORIES = frozenset({"key", "uid", "url", "caption", "sha256", "decode_error", "error_message", "out_shard"})

SIZE_STEPS_PER_OCTAVE = 2
SIZE_EDGES = np.round(2.0 ** (np.arange(4 * SIZE_STEPS_PER_OCTAVE, 14 * SIZE_STEPS_PER_OCTAVE + 1) / 2)).astype(int)
"""Borders in pixels, 16 to 16,384; smaller and larger sides are in the end bins."""


@dataclass(kw_only=True, slots=True)
class Categories:
    """Column -> value -> rows fetched and rows kept."""

    before: dict[str, Counter[str]] = field(default_factory=dict)
    after: dict[str, Counter[str]] = field(default_factory=dict)
    left_out: set[str] = field(default_factory=set)

    def add(self, table: pa.Table, kept: NDArray[np.bool_], after: pa.Table | None = None) -> None:
        """Count a table; `after` holds the values of the same rows as they are kept, if they may differ."""
        mask = pa.array(kept)
        for item in table.schema:
            if not _is_category(item) or item.name in self.left_out:
                continue
            for side, rows in ((self.before, table), (self.after, (after or table).filter(mask))):
                counts = side.setdefault(item.name, Counter())
                values = pc.fill_null(rows[item.name].cast(pa.string()), "")
                for found in pc.value_counts(values).to_pylist():
                    counts[found["values"]] += found["counts"]
            if len(self.before[item.name]) > MAX_WORDS:
                self.left_out.add(item.name)
                del self.before[item.name], self.after[item.name]

    def as_dicts(self) -> dict[str, list[list[Any]]]:
        """Return column -> [value, rows fetched, rows kept] of the most frequent values; columns of one value not."""
        found = {}
        for name, counts in sorted(self.before.items()):
            top = sorted(counts.items(), key=lambda item: (-item[1], item[0]))
            if len(top) < 2:
                continue
            rows: list[list[Any]] = [[value, count, self.after[name][value]] for value, count in top[:SHOWN_WORDS]]
            rest = top[SHOWN_WORDS:]
            if rest:
                others = [sum(side[value] for value, _ in rest) for side in (counts, self.after[name])]
                rows.append([f"({len(rest)} more)", *others])
            found[name] = rows
        return found


def _is_category(item: pa.Field) -> bool:
    return item.name not in NOT_CATEGORIES and bool(pa.types.is_string(item.type) or pa.types.is_boolean(item.type))


@dataclass(kw_only=True, slots=True)
class Sizes:
    """Pictures by width and height, in half octaves."""

    before: NDArray[np.int64] = field(default_factory=lambda: np.zeros((len(SIZE_EDGES) - 1,) * 2, np.int64))
    after: NDArray[np.int64] = field(default_factory=lambda: np.zeros((len(SIZE_EDGES) - 1,) * 2, np.int64))

    def add(self, width: NDArray[np.float64], height: NDArray[np.float64], kept: NDArray[np.bool_]) -> None:
        """Count pictures, NaN where the size is not known."""
        known = np.isfinite(width) & np.isfinite(height)
        across, down = _size_bin(width), _size_bin(height)
        for counts, rows in ((self.before, known), (self.after, known & kept)):
            np.add.at(counts, (down[rows], across[rows]), 1)

    def as_dict(self) -> dict[str, Any]:
        """Return the borders and the counts, [height bin, width bin]."""
        return {"edges": SIZE_EDGES.tolist(), "before": self.before.tolist(), "after": self.after.tolist()}


def _size_bin(values: NDArray[np.float64]) -> NDArray[np.int64]:
    places = np.searchsorted(SIZE_EDGES, np.nan_to_num(values), "right") - 1
    return np.asarray(np.clip(places, 0, len(SIZE_EDGES) - 2), np.int64)
