"""Damaged samples: counted by reason, written down, and judged against the budget.

Judged when a batch is delivered, in order, so a run stops at the same step every time. A position whose own sample
was damaged counts once, however many damaged replacements were passed over: each of those stands at a position of its
own. After a restart from a checkpoint the lines of repeated steps are written again, equal to the first ones.
"""

import json
import logging
import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

from headrace.pipeline.budget import ALPHA, Budget, ChunkKey, DamageTally
from headrace.text import one_line, shown

log = logging.getLogger(__name__)


def check_path(path: str) -> None:
    """Raise ValueError if `path` cannot be written: a run must not learn that from its first damaged sample."""
    file = Path(path)
    folder = next(parent for parent in file.absolute().parents if parent.exists())
    if file.is_dir() or not folder.is_dir() or not os.access(file if file.exists() else folder, os.W_OK):
        raise ValueError(f"quarantine {path} cannot be written; give a file in a folder of yours")


@dataclass(frozen=True, kw_only=True, slots=True)
class DamagedSample:
    """One damaged sample, and what was given in its place (no key: nothing)."""

    position: int
    source: str
    shard: str
    key: str
    offset: int
    reason: str
    message: str
    replaced_by: str


@dataclass(frozen=True, slots=True)
class DamageReport:
    """The damage in one batch, item by item: only items that are samples, not the padding of the end."""

    damaged: Sequence[Sequence[DamagedSample]]
    """For each item its own sample if that was damaged, then the replacements that were damaged too."""
    chunk: Sequence[tuple[ChunkKey, int]]
    """For each item the chunk of its own sample, and the size of it."""


@dataclass(frozen=True, slots=True)
class DamageCount:
    """The damage in the batches that were delivered. A value, as `DamageTally`."""

    tally: DamageTally = field(default_factory=DamageTally)
    in_a_row: int = 0
    reasons: Counter[str] = field(default_factory=Counter)
    """Damaged samples by reason."""
    last: DamagedSample | None = None


class Quarantine:
    """Where the damaged samples of one stream are written, and the budget they are judged by."""

    def __init__(self, path: str, *, max_fraction: float, max_consecutive: int) -> None:
        self._path = path
        self._budget = Budget(max_fraction)
        self._max_consecutive = max_consecutive
        self._written = -1

    def write(self, step: int, report: DamageReport) -> None:
        """Write the lines of a step, unless it is the one that was written last."""
        lines = "".join(json.dumps(asdict(one), ensure_ascii=True) + "\n" for item in report.damaged for one in item)
        if lines and self._path and step != self._written:
            Path(self._path).parent.mkdir(parents=True, exist_ok=True)
            with Path(self._path).open("a", encoding="utf-8") as file:
                file.write(lines)
            self._written = step

    def count(self, count: DamageCount, report: DamageReport) -> DamageCount:
        """Return `count` with a batch more. Raises ValueError if the budget is spent."""
        own = [(item[0], chunk) for item, chunk in zip(report.damaged, report.chunk, strict=True) if item]
        tally = self._budget.add(
            count.tally,
            seen=len(report.chunk),
            chunks_seen=sum(1 / size for _, size in report.chunk),
            damaged=[chunk for _, chunk in own],
        )
        reasons = count.reasons + Counter(one.reason for one, _ in own)
        last = own[-1][0] if own else count.last
        in_a_row = count.in_a_row
        for item in report.damaged:
            in_a_row = in_a_row + 1 if item else 0
            # As many damaged replacements: there may be no whole sample to give.
            run = max(in_a_row, len(item))
            if run >= self._max_consecutive:
                _stop(f"{run} in a row, max_bad_consecutive is {self._max_consecutive}", reasons, item[-1])
        self._refuse_if_spent(tally, reasons, last)
        return DamageCount(tally, in_a_row, reasons, last)

    def count_whole(self, count: DamageCount, samples: Sequence[tuple[int, int]]) -> DamageCount:
        """As `count`, of a batch without damage: for each source its samples, and the samples of its chunks.

        Raises ValueError if the budget is spent: damage is judged only when enough samples were seen.
        """
        tally = self._budget.add(
            count.tally,
            seen=sum(number for number, _ in samples),
            chunks_seen=sum(number / size for number, size in samples),
            damaged=(),
        )
        self._refuse_if_spent(tally, count.reasons, count.last)
        return DamageCount(tally, 0 if samples else count.in_a_row, count.reasons, count.last)

    def _refuse_if_spent(self, tally: DamageTally, reasons: Counter[str], last: DamagedSample | None) -> None:
        if self._budget.is_spent(tally):
            _stop(
                f"{tally.damaged} of {tally.seen}, max_bad_fraction is {self._budget.max_fraction} "
                f"and chance gives so many once in {round(1 / ALPHA):,} runs",
                reasons,
                last,
            )


def log_new_reasons(before: DamageCount, after: DamageCount, report: DamageReport) -> None:
    """Say of the first damaged sample of each reason what it is and what replaced it."""
    said = set(before.reasons)
    for one in (item[0] for item in report.damaged if item):
        if one.reason not in said:
            said.add(one.reason)
            log.warning(
                "damaged sample (%s; others like it are counted): %s: sample %s at byte %d: %s; %s",
                one.reason,
                one_line(one.shard),
                one_line(one.key),
                one.offset,
                one_line(one.message),
                f"replaced by {one_line(one.replaced_by)}" if one.replaced_by else "left out",
            )
    assert said == set(after.reasons)


def _stop(count: str, reasons: Counter[str], last: DamagedSample | None) -> None:
    named = ", ".join(f"{number} {reason}" for reason, number in reasons.most_common())
    example = (
        f"; last: {one_line(last.shard)}: sample {shown(last.key)} at byte {last.offset}: {one_line(last.message)}"
        if last
        else ""
    )
    raise ValueError(f"too many damaged samples: {count} ({named}){example}")
