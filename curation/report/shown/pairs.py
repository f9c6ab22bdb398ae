"""A row that was dropped as a copy, and what it is a copy of: every one of a step, or so many that show its range.

Where a step dropped more rows than are shown, half are those nearest to its threshold, the least certain, and half
those of lowest uid, which is a hash.
"""

import heapq
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from headrace.curation.ledger import Ledger, StepSummary, ledger_by_shard

Row = dict[str, Any]

COLUMNS = (
    *("uid", "url", "raw_shard", "key", "kept", "step", "reason", "value", "threshold"),
    *("duplicate_of", "out_shard", "out_index"),
)


@dataclass(kw_only=True, slots=True)
class DroppedCopies:
    """Rows dropped as copies, by step."""

    count: int
    """Of each kind, at most."""
    least_certain: dict[str, list[Row]] = field(default_factory=dict)
    lowest: dict[str, list[Row]] = field(default_factory=dict)

    @classmethod
    def of(cls, steps: Iterable[StepSummary], count: int) -> "DroppedCopies":
        """Return an empty list for these steps."""
        names = [step.name for step in steps]
        return cls(count=count, least_certain={name: [] for name in names}, lowest={name: [] for name in names})

    def add(self, rows: pa.Table) -> None:
        """Look through the ledger's rows of one raw shard."""
        for name in self.lowest:
            wanted = pc.and_(pc.fill_null(pc.equal(rows["step"], name), False), pc.is_valid(rows["duplicate_of"]))
            mine = rows.filter(wanted)
            if not mine.num_rows:
                continue
            first = mine.take(
                pc.sort_indices(mine, sort_keys=[("uid", "ascending"), ("key", "ascending")])[: self.count]
            )
            self.lowest[name] = heapq.nsmallest(self.count, [*self.lowest[name], *first.to_pylist()], key=_by_uid)
            near = mine.take(pa.array(np.argsort(_distances(mine), kind="stable")[: self.count]))
            held = [*self.least_certain[name], *near.to_pylist()]
            self.least_certain[name] = heapq.nsmallest(self.count, held, key=_by_certainty)

    def rows(self, name: str) -> list[Row]:
        """Return what is shown of a step, the least certain first; nothing of one that drops no copies."""
        lowest, near = self.lowest.get(name, []), self.least_certain.get(name, [])
        chosen = {_place(row): row for row in (near if len(lowest) < self.count else near[: self.count // 2])}
        for row in lowest:
            if len(chosen) < self.count:
                chosen.setdefault(_place(row), row)
        return sorted(chosen.values(), key=_by_certainty)


def _place(row: Row) -> tuple[str, str]:
    return row["raw_shard"], row["key"]


def _by_uid(row: Row) -> tuple[str, str]:
    return row["uid"], row["key"]


def _by_certainty(row: Row) -> tuple[float, str, str]:
    known = row["value"] is not None and row["threshold"] is not None
    return (abs(row["value"] - row["threshold"]) if known else np.inf), row["uid"], row["key"]


def _distances(rows: pa.Table) -> np.ndarray[Any, np.dtype[np.float64]]:
    apart = np.abs(pc.subtract(rows["value"], rows["threshold"]).to_numpy().astype(np.float64))
    return np.where(np.isfinite(apart), apart, np.inf)


def find_rows(ledger: Ledger, uids: Sequence[str]) -> dict[str, Row]:
    """Return the rows of these uids; of several with one uid the one that was not dropped as a copy, then the first."""
    wanted, found = pa.array(sorted(set(uids)), pa.string()), dict[str, Row]()
    if not len(wanted):
        return found
    for _, rows in ledger_by_shard(ledger, list(COLUMNS)):
        for row in rows.filter(pc.is_in(rows["uid"], value_set=wanted)).to_pylist():
            held = found.get(row["uid"])
            if held is None or (held["duplicate_of"] is not None and row["duplicate_of"] is None):
                found[row["uid"]] = row
    return found
