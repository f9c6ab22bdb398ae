"""Dropped rows to browse: of each step the rows of lowest uid, so many of each reason.

A uid is a hash, so the lowest ones are an arbitrary sample that is the same in every run.
"""

import heapq
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from headrace.curation.job import Job
from headrace.curation.ledger import StepSummary
from headrace.curation.raw.read import read_raw
from headrace.curation.select.steps import step_of

Row = dict[str, Any]

MAX_REASONS = 50
"""Reasons of a step that are told apart, those of most rows."""
MIN_OF_REASON = 5
MAX_TEXT = 1000
"""Letters of a caption or URL: a list of the web may have a million."""


@dataclass(kw_only=True, slots=True)
class DroppedRows:
    """The rows of lowest uid, by step and reason."""

    quotas: dict[str, dict[str, int]]
    """Step -> reason -> rows that are kept of it."""
    found: dict[tuple[str, str], list[Row]] = field(default_factory=dict)

    @classmethod
    def of(cls, steps: Sequence[StepSummary], rows_of_step: int) -> "DroppedRows":
        """Return an empty list of `rows_of_step` rows of each step; rare reasons get some of them too."""
        return cls(quotas={step.name: _quotas(step.dropped, rows_of_step) for step in steps if rows_of_step})

    def add(self, rows: pa.Table) -> None:
        """Look through the ledger's rows of one raw shard."""
        dropped = rows.filter(pc.is_valid(rows["step"]))
        if not dropped.num_rows:
            return
        order = pc.sort_indices(
            dropped, sort_keys=[("step", "ascending"), ("reason", "ascending"), ("uid", "ascending")]
        )
        dropped = dropped.take(order)
        names = pc.binary_join_element_wise(dropped["step"], pc.fill_null(dropped["reason"], ""), "\t").combine_chunks()
        start = 0
        for run in pc.run_end_encode(names).values.to_pylist():
            count = int(pc.sum(pc.equal(names.slice(start), run)).as_py())
            step, reason = run.split("\t", 1)
            quota = self.quotas.get(step, {}).get(reason, 0)
            if quota:
                some = dropped.slice(start, min(count, quota)).to_pylist()
                held = self.found.setdefault((step, reason), [])
                self.found[step, reason] = heapq.nsmallest(
                    quota, [*held, *some], key=lambda row: (row["uid"], row["key"])
                )
            start += count

    def rows(self, step: str) -> list[Row]:
        """Return what was found of a step, by reason and uid."""
        return [row for (name, _), rows in sorted(self.found.items()) if name == step for row in rows]


def _quotas(dropped: dict[str, int], rows_of_step: int) -> dict[str, int]:
    top = sorted(dropped.items(), key=lambda item: (-item[1], item[0]))[:MAX_REASONS]
    total = sum(count for _, count in top) or 1
    shares = {reason: max(MIN_OF_REASON, rows_of_step * count // total) for reason, count in top}
    if sum(dropped.values()) <= rows_of_step:
        return dict(top)
    while sum(shares.values()) > rows_of_step and any(share > 1 for share in shares.values()):
        most = max(shares, key=lambda reason: (shares[reason], reason))
        shares[most] -= 1
    return shares


def described(steps: Sequence[StepSummary], found: DroppedRows, job: Job, count: int) -> list[dict[str, Any]]:
    """Return for each step what the page lists, at most `count` rows: uid, reason, value, URL and caption of each.

    A step whose pictures may not be shown is listed without URLs and captions too.
    """
    listed = {step.name: found.rows(step.name)[:count] for step in steps}
    told = [step for step in steps if step_of(step).shows_dropped]
    captions = _captions(job, [row for step in told for row in listed[step.name]])
    result = []
    for step in steps:
        shows = step in told
        rows = [
            {
                **{name: row[name] for name in ("uid", "reason", "value", "duplicate_of")},
                "url": _cut(row["url"]) if shows else None,
                "caption": _cut(captions.get((row["raw_shard"], row["key"]))) if shows else None,
            }
            for row in listed[step.name]
        ]
        if rows:
            result.append({"step": step.name, "dropped": sum(step.dropped.values()), "told": shows, "rows": rows})
    return result


def _cut(text: str | None) -> str | None:
    return None if text is None else text[:MAX_TEXT]


def _captions(job: Job, rows: Sequence[Row]) -> dict[tuple[str, str], str | None]:
    keys: dict[str, list[str]] = {}
    for row in rows:
        keys.setdefault(row["raw_shard"], []).append(row["key"])
    found = {}
    for shard, wanted in sorted(keys.items()):
        raw = read_raw(job, shard).select(["key", "caption"])
        some = raw.filter(pc.is_in(raw["key"], value_set=pa.array(wanted, pa.string())))
        for key, caption in zip(some["key"].to_pylist(), some["caption"].to_pylist(), strict=True):
            found[shard, key] = caption
    return found
