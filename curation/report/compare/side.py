"""One of two datasets that are compared: its samples by shard, and the funnel that led to them."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from headrace.curation.datasets import Explained
from headrace.curation.ledger import Decision, ledger_by_shard
from headrace.curation.raw.read import read_raw
from headrace.curation.report.tables import measured, read_annotations
from headrace.curation.report.values import facts_taken, joined, with_taken
from headrace.shards.dataset import Dataset


@dataclass(frozen=True, kw_only=True, slots=True)
class Side:
    """What is compared: a dataset, or what a ledger keeps where no dataset is built from it."""

    name: str
    """What the user called it."""
    dataset: Dataset | None
    explained: Explained | None

    def tables(self) -> Iterator[pa.Table]:
        """Yield the samples with every scalar column that is known of them: `uid`, `url`, `sha256`, numbers."""
        if self.dataset is not None:
            for number in range(len(self.dataset.shards)):
                yield measured(self.dataset.index(number))
        elif self.explained is not None:
            yield from _kept(self.explained.decision)

    def facts(self) -> dict[str, Any]:
        """Return its totals."""
        found: dict[str, Any] = {}
        if self.explained is not None:
            found["input_rows"] = self.explained.decision.summary.rows
            found["kept"] = self.explained.decision.summary.kept
        if self.dataset is not None:
            found["num_shards"] = len(self.dataset.shards)
            found["num_samples"] = self.dataset.num_samples
            found["num_bytes"] = int(self.dataset.shards.num_bytes.sum())
        return found

    def funnel(self) -> list[dict[str, Any]]:
        """Return the steps of its ledger; none of a dataset without one."""
        steps = [] if self.explained is None else self.explained.decision.summary.steps
        return [
            {"name": step.name, "rows_in": step.rows_in, "rows_out": step.rows_out, "threshold": step.threshold}
            for step in steps
        ]


def _kept(decision: Decision) -> Iterator[pa.Table]:
    folders = decision.annotation_folders()
    for shard, rows in ledger_by_shard(decision.ledger, ["uid", "raw_shard", "key", "kept", "caption_facts"]):
        kept = rows.filter(pc.fill_null(rows["kept"], False))
        if kept.num_rows:
            facts = facts_taken(kept)
            raw, annotated = read_raw(decision.job, shard), read_annotations(folders, shard)
            yield joined(with_taken(raw, facts), with_taken(annotated, facts), kept["key"])
