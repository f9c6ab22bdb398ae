"""Damaged samples: counted by reason, written down, and judged against the budget.

Judged when a batch is delivered, in order, so a run stops at the same step every time. The one thing a reader would get
wrong: after a restart from a checkpoint the lines of repeated steps are written again, equal to the first ones.
"""

import json
import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

JUDGED_AFTER = 100


def check_path(path: str) -> None:
    """Raise ValueError if `path` cannot be written: a run must not learn that from its first damaged sample."""
    file = Path(path)
    folder = next(parent for parent in file.absolute().parents if parent.exists())
    if file.is_dir() or not folder.is_dir() or not os.access(file if file.exists() else folder, os.W_OK):
        raise ValueError(f"quarantine {path} cannot be written; give a file in a folder of yours")


@dataclass(frozen=True, kw_only=True, slots=True)
class Bad:
    """One damaged sample, and what was given in its place (no key: nothing)."""

    position: int
    source: str
    shard: str
    key: str
    offset: int
    reason: str
    message: str
    replaced_by: str


class Quarantine:
    """The damaged samples of one stream, against its budget."""

    def __init__(self, path: str, *, max_fraction: float, max_consecutive: int) -> None:
        self.reasons: Counter[str] = Counter()
        self._path = path
        self._max_fraction = max_fraction
        self._max_consecutive = max_consecutive
        self._seen = 0
        self._bad = 0
        self._in_a_row = 0
        self._last: Bad | None = None

    def deliver(self, bad: Sequence[Sequence[Bad]]) -> None:
        """Note the damaged samples behind each item of a batch. Raises ValueError if the budget is spent."""
        lines = [one for item in bad for one in item]
        if lines and self._path:
            Path(self._path).parent.mkdir(parents=True, exist_ok=True)
            with Path(self._path).open("a", encoding="utf-8") as file:
                file.writelines(json.dumps(asdict(one), ensure_ascii=True) + "\n" for one in lines)
        self.reasons.update(one.reason for one in lines)
        for item in bad:
            self._seen += 1
            self._bad += bool(item)
            self._last = item[-1] if item else self._last
            self._in_a_row = self._in_a_row + len(item) if item else 0
            if self._in_a_row >= self._max_consecutive:
                self._stop(f"{self._in_a_row} in a row, max_bad_consecutive is {self._max_consecutive}", item[-1])
        if self._seen >= JUDGED_AFTER and self._bad > self._max_fraction * self._seen:
            self._stop(f"{self._bad} of {self._seen}, max_bad_fraction is {self._max_fraction}", self._last)

    def _stop(self, count: str, last: Bad | None) -> None:
        reasons = ", ".join(f"{number} {reason}" for reason, number in self.reasons.most_common())
        example = f"; last: {last.shard}: sample {last.key!r} at byte {last.offset}: {last.message}" if last else ""
        raise ValueError(f"too many damaged samples: {count} ({reasons}){example}")
