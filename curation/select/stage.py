"""The stage: what select would do, and running the steps over the tables and writing the ledger.

The ledger follows from the tables, the steps, the placement and `limits.max_bucket` alone; memory, threads and engine
never change a byte.
"""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import compress, product
from typing import Any

import duckdb
import pyarrow as pa

from headrace import atomic, files, urlpath
from headrace.config import config_to_dict
from headrace.curation.annotate.annotators import column_hints
from headrace.curation.forgotten import tombstones_digest
from headrace.curation.job import Job, fence_of_owner
from headrace.curation.ledger import (
    MERGED_SCHEMA_VERSION,
    SCHEMA_VERSION,
    Decision,
    LedgerSummary,
    StepSummary,
    digest_of,
    find_decision,
    ledger_digest,
    ledger_named,
    set_latest,
    write_ledger,
    write_summary,
)
from headrace.curation.select.database import Limits, open_database, remove_leftovers, shares_folder
from headrace.curation.select.evaluation import EvaluationSet, hash_evaluation_set
from headrace.curation.select.evaluation_facts import with_fact
from headrace.curation.select.expression import UNKNOWN, Checker
from headrace.curation.select.forecast import forecast
from headrace.curation.select.kept import FOLDER as KEPT_FOLDER
from headrace.curation.select.kept import Kept
from headrace.curation.select.load import Inputs, NotReadyError, find_inputs, known_columns, sql_types
from headrace.curation.select.place import SIZE_COLUMN
from headrace.curation.select.run import EvaluationTables, Run, Selection, prepare_steps
from headrace.curation.select.step import Step
from headrace.curation.select.steps import check_steps
from headrace.curation.select.write import LedgerRows
from headrace.lease import Fence
from headrace.shards.units import EngineConfig, OnProgress, no_progress

__all__ = [
    "Selection",
    "check_columns",
    "check_selection",
    "decision_digest",
    "plan_select",
    "run_select",
    "select_rows",
]

log = logging.getLogger(__name__)

# Raised whenever the same inputs would give another ledger.
VERSION = 1


def plan_select(
    job: Job,
    selection: Selection,
    annotations: Mapping[str, str],
    *,
    limits: Limits,
    engine: EngineConfig,
    annotate_first: bool = False,
) -> list[str]:
    """Say what select would do: each step, whether it fits the columns there are (or will be), what it takes and keeps.

    `annotations`: annotator -> folder of its tables; with `annotate_first` they are still to be written.
    """
    lines = [f"{len(selection.steps)} steps after fetch and decode; ledgers at {job.ledgers}"]
    for number, step in enumerate(selection.steps):
        settings = {name: value for name, value in config_to_dict(step).items() if name not in ("step", "name")}
        shown = ", ".join(f"{name}={value!r}" for name, value in settings.items())
        lines.append(f"  {number + 1}. {step.name} ({step.step}): {shown}")
    try:
        inputs = find_inputs(job, annotations)
        columns = check_selection(inputs, selection)
        expected = forecast(inputs, selection, limits=limits, engine=engine, hints=column_hints())
    except NotReadyError as error:
        return [*lines, "from the rows that fetch and annotate will write" if annotate_first else f"not ready: {error}"]
    return [*lines, *expected, f"from {len(inputs.shards)} raw shards with the columns {', '.join(columns)}"]


def run_select(
    job: Job,
    selection: Selection,
    annotations: Mapping[str, str],
    *,
    limits: Limits,
    engine: EngineConfig,
    on_progress: OnProgress = no_progress,
) -> LedgerSummary:
    """Write the ledger; nothing is done where it already follows from the same inputs and selection."""
    inputs = find_inputs(job, annotations)
    return select_rows(inputs, selection, limits=limits, engine=engine, on_progress=on_progress)


def select_rows(
    inputs: Inputs, selection: Selection, *, limits: Limits, engine: EngineConfig, on_progress: OnProgress = no_progress
) -> LedgerSummary:
    """Write the ledger of a job; nothing is done if one is there that follows from the same inputs.

    Raises ValueError for a step that does not fit the columns, before any row is read, and OSError once another process
    owns the job.
    """
    fence = fence_of_owner(inputs.job)
    check_steps(selection.steps)
    columns = check_selection(inputs, selection)
    fence.check()
    remove_leftovers(inputs.job.ledgers)
    for name in files.list_names(inputs.job.ledgers):
        atomic.remove_leftovers(urlpath.join(inputs.job.ledgers, name))
    tables = _evaluation_tables(inputs, selection.steps, engine, on_progress, fence)
    sizes = inputs.sizes()
    digests = _digests(inputs, selection, tables, sum(sizes), limits)
    found = (find_decision(inputs.job, name) for name in (digests.ledger, *digests.older))
    decision = next(filter(None, found), None)
    if decision is not None:
        decision = _measured_again(decision, selection.steps, tables, columns, fence)
        fence.check()
        set_latest(decision)
        return decision.summary
    with open_database(inputs.job.ledgers, limits) as connection:
        if engine.executor == "ray" and not shares_folder(connection, inputs.job.ledgers):
            engine = EngineConfig(workers=engine.workers)  # other machines could not read the work folder
        kept = Kept(urlpath.join(inputs.job.ledgers, KEPT_FOLDER), fence)
        run = Run(
            *(inputs, selection, sizes, connection, limits, engine, kept, tables),
            hints=column_hints(),
            step_digests=digests.steps,
            on_progress=on_progress,
        )
        rows, funnel = run.decide()
        summary = _write(rows, selection, digests.ledger, funnel, fence)
        run.end(1)
        return summary


def _measured_again(
    decision: Decision, steps: Sequence[Step], tables: EvaluationTables, columns: Sequence[str], fence: Fence
) -> Decision:
    """Return a ledger that is there with what its summary measures as it is asked for now; no verdict changes."""
    asked = {step.name: step for step in steps if step.summary_settings}
    lines = []
    for line in decision.summary.steps:
        step = asked.get(line.name)
        settings = {} if step is None else {name: config_to_dict(step)[name] for name in step.summary_settings}
        # A summary of before there was a setting stays as it is.
        if step is not None and any(line.settings.get(name, value) != value for name, value in settings.items()):
            log.info("ledger %s: step %s is measured anew", decision.ledger.name, step.name)
            details = {name: value for name, value in line.details.items() if name != "measured"}
            details |= step.measured_now(tables.get(step.name, {}), columns)
            line = replace(line, settings={**line.settings, **settings}, details=details)
        lines.append(line)
    if lines == list(decision.summary.steps):
        return decision
    summary = replace(decision.summary, steps=lines)
    fence.check()
    write_summary(decision.ledger, summary)
    return replace(decision, summary=summary)


def check_selection(inputs: Inputs, selection: Selection) -> list[str]:
    """Check every step against the columns and what made them; return the known columns. Raises ValueError."""
    names = check_columns(selection.steps, known_columns(inputs))
    if not set(names).issuperset(selection.placement.columns):
        raise ValueError(f"placement.bytes_per_shard needs the column {SIZE_COLUMN}: add annotate.quality, or say 0")
    for step in selection.steps:
        step.check_annotations({item.name: item.url for item in inputs.annotations})
    return names


def check_columns(steps: Sequence[Step], schema: pa.Schema, untyped: Sequence[str] = ()) -> list[str]:
    """Check every expression against columns and return their names; the types of `untyped` ones are not known yet."""
    with duckdb.connect() as connection:
        types = sql_types(connection, schema) | dict.fromkeys(untyped, UNKNOWN)
        checker = Checker(connection, types, column_hints())
        prepare_steps(steps, checker)
        return checker.names()


def _evaluation_tables(
    inputs: Inputs, steps: Sequence[Step], engine: EngineConfig, on_progress: OnProgress, fence: Fence
) -> EvaluationTables:
    folder = urlpath.join(inputs.job.ledgers, "evaluation")
    return {
        step.name: {item.name: _evaluation_table(step, item, folder, engine, on_progress, fence) for item in sets}
        for step in steps
        if (sets := step.evaluation_sets())
    }


def _evaluation_table(
    step: Step, evaluation: EvaluationSet, folder: str, engine: EngineConfig, on_progress: OnProgress, fence: Fence
) -> pa.Table:
    table = hash_evaluation_set(evaluation, folder, engine, on_progress, fence=fence)
    for fact in step.evaluation_facts():
        table = with_fact(table, evaluation, fact, folder, engine, on_progress, fence=fence)
    return table


@dataclass(frozen=True, kw_only=True, slots=True)
class _Digests:
    ledger: str
    """Of all that the ledger follows from."""
    older: tuple[str, ...]
    """Of ledgers that older versions of the steps made: a job goes on with the one it has."""
    steps: tuple[str, ...]
    """Of all that the outcome of each step follows from."""


def _digests(inputs: Inputs, selection: Selection, tables: EvaluationTables, num_rows: int, limits: Limits) -> _Digests:
    evaluation = {
        step: {
            name: digest_of({"rows": table.select(["name", "sha256"]).to_pylist()}) for name, table in of_step.items()
        }
        for step, of_step in tables.items()
    }
    versions, *before = _versions(selection.steps, num_rows)
    read = {step.name: list(digests) for step in selection.steps if (digests := step.read_digests())}

    def parts_of(steps: Sequence[Step]) -> dict[str, Any]:
        names = {step.name for step in steps}
        parts = {"version": VERSION, "steps": [step.decides_by() for step in steps]}
        parts["evaluation"] = {name: of_step for name, of_step in evaluation.items() if name in names}
        files_read = {name: digests for name, digests in read.items() if name in names}
        return parts | ({"files": files_read} if files_read else {})

    def measured_by(step: Step) -> dict[str, Any]:
        settings = config_to_dict(step)
        return {"measured": {name: settings[name] for name in step.summary_settings}} if step.summary_settings else {}

    raw = {"tables": inputs.digests()}
    parts = parts_of(selection.steps) | raw | {"placement": selection.placement.settings()}

    def ledger_by(made: Mapping[str, int]) -> str:
        return digest_of(parts | ({"versions": made} if made else {}))

    prefix = {"tables": digest_of(raw), "max_bucket": limits.max_bucket, "versions": versions}
    prefix |= {"forgotten": tombstones_digest(inputs.job.url)}
    return _Digests(
        ledger=ledger_by(versions),
        older=tuple(map(ledger_by, before)),
        steps=tuple(
            digest_of(parts_of(selection.steps[: number + 1]) | prefix | measured_by(step))
            for number, step in enumerate(selection.steps)
        ),
    )


def _versions(steps: Sequence[Step], num_rows: int) -> list[dict[str, int]]:
    """Return step -> its version, where over 1: as of now, then as older ones were, of any of the kinds of steps."""
    now = [(step, made) for step in steps if (made := step.version(num_rows)) > 1]
    kinds = sorted({step.step for step, _ in now})
    newer = (set(compress(kinds, chosen)) for chosen in product((True, False), repeat=len(kinds)))
    return [{step.name: made for step, made in now if step.step in of_now} for of_now in newer]


def decision_digest(selection: Selection, annotations: Mapping[str, str]) -> str:
    """Return what `decided_by` of a ledger is; `annotations`: annotator -> name of its folder."""
    steps = [step.decides_by() for step in selection.steps]
    return digest_of({"steps": steps, "placement": selection.placement.settings(), "annotations": dict(annotations)})


def _write(
    rows: LedgerRows, selection: Selection, digest: str, funnel: Sequence[StepSummary], fence: Fence
) -> LedgerSummary:
    inputs = rows.inputs
    ledger = ledger_named(inputs.job, digest)
    sha256 = write_ledger(ledger, rows.tables(), rows.schema, fence=fence)
    annotations = {item.name: urlpath.basename(item.url) for item in inputs.annotations}
    summary = LedgerSummary(
        schema=MERGED_SCHEMA_VERSION if rows.merges else SCHEMA_VERSION,
        decided_by=decision_digest(selection, annotations),
        digest=ledger_digest(digest, sha256),
        inputs=digest,
        ledger_sha256=sha256,
        rows=funnel[0].rows_in,
        kept=funnel[-1].rows_out,
        out_shards=rows.placed.num_shards,
        samples_per_shard=selection.placement.samples_per_shard,
        annotations=annotations,
        steps=list(funnel),
    )
    fence.check()
    write_summary(ledger, summary)
    fence.check()
    set_latest(Decision(inputs.job, ledger, summary))
    return summary
