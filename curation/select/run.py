"""One run of select: the rows in parts, the steps at the start part by part, the others over what is left."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import duckdb
import numpy as np
import pyarrow as pa

from headrace.curation.ledger import StepSummary
from headrace.curation.select.database import Limits, column_of, show_parquet, work_folder
from headrace.curation.select.expression import Checker
from headrace.curation.select.hamming import Indices
from headrace.curation.select.here import PartedHere
from headrace.curation.select.kept import Kept
from headrace.curation.select.load import MADE_COLUMNS, Inputs, known_columns, sql_types
from headrace.curation.select.parts import Part, SiftUnit, cut_parts, engine_for, find_superseded, sift_parts
from headrace.curation.select.place import SIZE_COLUMN, Placement, cut_by_bytes, place_rows
from headrace.curation.select.sieve import Outcome, Sieve
from headrace.curation.select.step import Bench, ReadyStep, Step, StepResult, read_column, stored_columns
from headrace.curation.select.steps import FIRST_STEPS
from headrace.curation.select.write import LedgerRows, Placed
from headrace.shards.progress import Progress
from headrace.shards.units import EngineConfig, OnProgress

KEPT_ROWS = 100_000
"""Where fewer rows reach a step, running it again takes no longer than reading what it said."""

EvaluationTables = Mapping[str, Mapping[str, pa.Table]]
"""Step name -> evaluation set -> its table of hashes."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Selection:
    """What one run of select decides by, beside the tables."""

    steps: tuple[Step, ...]
    placement: Placement


def prepare_steps(steps: Sequence[Step], checker: Checker) -> list[tuple[Step, ReadyStep]]:
    """Check all steps, and the two that come first, against the columns. Raises ValueError."""
    prepared = []
    for step in (*FIRST_STEPS, *steps):
        checker.require(step.needs_columns(), f"step {step.name!r}")
        prepared.append((step, step.prepare(checker)))
    return prepared


@dataclass(slots=True)
class Run:
    """What a run of select works with."""

    inputs: Inputs
    selection: Selection
    sizes: Sequence[int]
    """Rows of each raw shard."""
    connection: duckdb.DuckDBPyConnection
    limits: Limits
    engine: EngineConfig
    kept: Kept
    evaluation: EvaluationTables
    hints: Mapping[str, str]
    """What to do for a column that is not there."""
    step_digests: Sequence[str]
    """Of each step, the digest of all that its outcome follows from: the tables, the steps before it, itself."""
    on_progress: OnProgress
    _done: int = 0
    _rows: int = 0
    """Rows whose identity was read, and rows written: phases in which nothing else is done."""

    def decide(self) -> tuple[LedgerRows, list[StepSummary]]:
        """Run all steps; return the rows of the ledger, not read yet, and the funnel."""
        known = known_columns(self.inputs)
        steps = prepare_steps(
            self.selection.steps, Checker(self.connection, sql_types(self.connection, known), self.hints)
        )
        parts = cut_parts(self.inputs.shards, self.sizes)
        folder = work_folder(self.connection)
        engine = engine_for(self.engine, sum(self.sizes))
        bare = Inputs(job=self.inputs.job, shards=self.inputs.shards, annotations=())
        superseded = find_superseded(self.connection, bare, parts, folder, engine, self._read)
        leading = _leading(self.selection.steps)
        before = self._kept_outcomes(leading)
        needed = [
            *steps[:leading],
            *(pair for number, pair in enumerate(steps) if number >= leading and number not in before),
        ]
        units = self._units(parts, known, needed, leading, superseded, folder)
        funnel, left = sift_parts(units, engine, lambda part: self.end(len(part.shards)))
        self.end(leading)
        show_parquet(self.connection, "stored", [part.file(folder, "rows") for part in parts])
        self.connection.execute("CREATE VIEW rows AS SELECT * FROM stored")
        sieve = Sieve(self.connection, left)
        num_input = funnel[len(FIRST_STEPS) - 1].rows_out
        for number, (step, prepared) in list(enumerate(steps))[leading:]:
            num_here = funnel[-1].rows_out
            if number in before:
                funnel.append(sieve.recall(step, before.pop(number), num_here))
            else:
                evaluation = self.evaluation.get(step.name, {})
                bench = Bench(
                    *(self.connection, self.limits, num_input, num_here, evaluation, self.engine, self.kept),
                    PartedHere(
                        firsts=[*(part.first for part in parts), sum(self.sizes)],
                        files=[part.file(folder, "rows") for part in parts],
                        left=sieve.left,
                        columns=tuple(stored_columns(prepared.columns)),
                    ),
                )
                funnel.append(sieve.run(step, prepared, bench, self._keeper(number, num_here)))
            self.end(1)
        rows = LedgerRows(
            inputs=self.inputs,
            parts=parts,
            connection=self.connection,
            folder=folder,
            superseded=superseded,
            placed=self._place(sieve),
            merges=any(step.merges_captions() for step in self.selection.steps),
            unnamed=frozenset(step.name for step in self.selection.steps if not step.names_dropped),
            done=self._read,
        )
        return rows, funnel

    def _kept_outcomes(self, leading: int) -> dict[int, Outcome]:
        """Return what steps behind the leading ones said in an earlier run, by number, where that is kept."""
        found = {}
        for number in range(leading, len(FIRST_STEPS) + len(self.selection.steps)):
            kept = self.kept.find("step", self.step_digests[number - len(FIRST_STEPS)])
            if kept is not None:
                rows, facts = kept
                result = StepResult(facts["threshold"], facts["details"])
                found[number] = Outcome(result, rows, facts["takes_captions"])
        return found

    def _keeper(self, number: int, num_here: int) -> Callable[[Outcome], None] | None:
        """Return what keeps the outcome of a step; nothing does where that saves little."""
        place = number - len(FIRST_STEPS)
        if num_here < KEPT_ROWS or place + 1 == len(self.selection.steps):
            return None

        def keep(outcome: Outcome) -> None:
            facts = {"threshold": outcome.result.threshold, "details": outcome.result.details}
            facts["takes_captions"] = outcome.takes_captions
            self.kept.put("step", self.step_digests[place], outcome.rows, facts)

        return keep

    def _units(
        self,
        parts: Sequence[Part],
        known: pa.Schema,
        steps: Sequence[tuple[Step, ReadyStep]],
        leading: int,
        superseded: Indices,
        folder: Path,
    ) -> list[SiftUnit]:
        later = [name for _, ready in steps[leading:] for name in ready.columns]
        later += self.selection.placement.columns
        read = dict.fromkeys(
            read_column(name) for name in [*(name for _, ready in steps[:leading] for name in ready.columns), *later]
        )
        missing = [name for name in read if name not in known.names and name not in MADE_COLUMNS]
        assert not missing, missing
        inputs = self.inputs.narrowed(read)
        edges = np.searchsorted(superseded, [part.first for part in parts] + [sum(self.sizes)])
        return [
            SiftUnit(
                name=f"rows {part.first} to {part.stop - 1}",
                inputs=inputs,
                part=part,
                known=known,
                hints=self.hints,
                read=tuple(read),
                stored=tuple(stored_columns(later)),
                steps=tuple(step for step, _ in steps[:leading]),
                superseded=superseded[start:stop],
                limits=self.limits,
                folder=folder,
            )
            for part, start, stop in zip(parts, edges[:-1], edges[1:], strict=True)
        ]

    def _place(self, sieve: Sieve) -> Placed:
        placement = self.selection.placement
        kept = np.flatnonzero(sieve.left)
        places = place_rows(kept, np.cumsum([0, *self.sizes[:-1]]), placement)
        if placement.bytes_per_shard:
            query = (
                f"SELECT coalesce({SIZE_COLUMN}, 0)::BIGINT FROM rows ANTI JOIN dropped USING (__row) ORDER BY __row"
            )
            places = cut_by_bytes(places, column_of(self.connection, query, np.int64), placement)
        return Placed(rows=kept, places=places, samples_per_shard=placement.samples_per_shard)

    def end(self, number: int) -> None:
        """Tell that so many more raw shards, or steps, or the ledger are done."""
        self._done += number
        self._tell()

    def _read(self, part: Part) -> None:
        self._rows += sum(part.sizes)
        self._tell()

    def _tell(self) -> None:
        total = len(self.inputs.shards) + len(FIRST_STEPS) + len(self.selection.steps) + 1
        counts = {"rows": self._rows // 2}  # each is read once and written once
        self.on_progress(Progress(done=self._done, total=total, noun="steps", counts=counts))


def _leading(steps: Sequence[Step]) -> int:
    """Return how many steps at the start look at each row alone, with the two that always come first."""
    leading = len(FIRST_STEPS)
    for step in steps:
        if not step.each_row:
            break
        leading += 1
    return leading
