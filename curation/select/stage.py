"""The stage: what select would do, and running the steps over the tables and writing the ledger.

The state between steps is one table, `alive`; every drop goes into `dropped` with its step. The ledger follows from the
tables, the steps and the placement alone; limits and engine never change a byte.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

import duckdb
import pyarrow as pa

from headrace import files
from headrace.config import canonical_json, config_to_dict
from headrace.curation.annotate.annotators import column_hints
from headrace.curation.job import Job
from headrace.curation.ledger import (
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
from headrace.curation.select.database import Limits, count, insert, open_database, read_batches, remove_leftovers
from headrace.curation.select.evaluation import hash_evaluation_set
from headrace.curation.select.expression import TEXT_HINT, UNKNOWN, Checker, first_line, quoted
from headrace.curation.select.load import (
    Inputs,
    NotReadyError,
    caption_columns,
    caption_facts,
    find_inputs,
    known_columns,
    load_rows,
    sql_types,
)
from headrace.curation.select.place import Placement, place_rows
from headrace.curation.select.step import Bench, ReadyStep, Step, StepResult, stored_columns
from headrace.curation.select.steps import FIRST_STEPS, check_steps
from headrace.shards.progress import Progress
from headrace.shards.units import EngineConfig, OnProgress, no_progress

# Raised whenever the same inputs would give another ledger.
VERSION = 1

NOTED_SCHEMA = pa.schema([("__row", pa.int64()), ("caption_of", pa.string()), ("caption_facts", pa.string())])

EvaluationTables = Mapping[str, Mapping[str, pa.Table]]
"""Step name -> evaluation set -> its table of hashes."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Selection:
    """What one run of select decides by, beside the tables."""

    steps: tuple[Step, ...]
    placement: Placement


def plan_select(
    job: Job, selection: Selection, annotations: Mapping[str, str], *, annotate_first: bool = False
) -> list[str]:
    """Say what select would do: each step, and whether it fits the columns there are (or will be).

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
    except NotReadyError as error:
        return [*lines, "from the rows that fetch and annotate will write" if annotate_first else f"not ready: {error}"]
    return [*lines, f"from {len(inputs.shards)} raw shards with the columns {', '.join(columns)}"]


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

    Raises ValueError for a step that does not fit the columns, before any row is read.
    """
    check_steps(selection.steps)
    check_selection(inputs, selection)
    remove_leftovers(inputs.job.ledgers)
    for name in files.list_names(inputs.job.ledgers):
        files.remove_leftovers(files.join(inputs.job.ledgers, name))
    tables = _evaluation_tables(inputs, selection.steps, engine, on_progress)
    digest = _inputs_digest(inputs, selection, tables)
    decision = find_decision(inputs.job, digest)
    if decision is not None:
        set_latest(decision)
        return decision.summary
    with open_database(inputs.job.ledgers, limits) as connection:
        checker = Checker(connection, sql_types(connection, known_columns(inputs)), column_hints())
        steps = _prepare(selection.steps, checker)
        total = len(inputs.shards) + len(steps) + 1
        columns = [name for _, prepared in steps for name in prepared.columns]
        for done in load_rows(connection, inputs, columns):
            on_progress(Progress(done=done, total=total, noun="steps"))
        funnel = []
        for line in _run_steps(connection, steps, limits, tables):
            funnel.append(line)
            on_progress(Progress(done=len(inputs.shards) + len(funnel), total=total, noun="steps"))
        summary = _write(connection, inputs, selection, digest, funnel)
        on_progress(Progress(done=total, total=total, noun="steps"))
    return summary


def check_selection(inputs: Inputs, selection: Selection) -> list[str]:
    """Check every expression against the columns; return the known columns. Raises ValueError."""
    return check_columns(selection.steps, known_columns(inputs))


def check_columns(steps: Sequence[Step], schema: pa.Schema, untyped: Sequence[str] = ()) -> list[str]:
    """Check every expression against columns and return their names; the types of `untyped` ones are not known yet."""
    with duckdb.connect() as connection:
        types = sql_types(connection, schema) | dict.fromkeys(untyped, UNKNOWN)
        checker = Checker(connection, types, column_hints())
        _prepare(steps, checker)
        return checker.names()


def _evaluation_tables(
    inputs: Inputs, steps: Sequence[Step], engine: EngineConfig, on_progress: OnProgress
) -> EvaluationTables:
    folder = files.join(inputs.job.ledgers, "evaluation")
    return {
        step.name: {
            item.name: hash_evaluation_set(item, folder, engine, on_progress) for item in step.evaluation_sets()
        }
        for step in steps
        if step.evaluation_sets()
    }


def _inputs_digest(inputs: Inputs, selection: Selection, tables: EvaluationTables) -> str:
    sets = {
        step: {name: table.select(["name", "sha256"]).to_pylist() for name, table in of_step.items()}
        for step, of_step in tables.items()
    }
    parts: dict[str, Any] = {
        "version": VERSION,
        "tables": inputs.digests(),
        "steps": [config_to_dict(step) for step in selection.steps],
        "placement": config_to_dict(selection.placement),
        "evaluation": {
            step: {name: digest_of({"rows": rows}) for name, rows in of.items()} for step, of in sets.items()
        },
    }
    return digest_of(parts)


def decision_digest(selection: Selection, annotations: Mapping[str, str]) -> str:
    """Return what `decided_by` of a ledger is; `annotations`: annotator -> name of its folder."""
    steps = [config_to_dict(step) for step in selection.steps]
    return digest_of(
        {"steps": steps, "placement": config_to_dict(selection.placement), "annotations": dict(annotations)}
    )


def _prepare(steps: Sequence[Step], checker: Checker) -> list[tuple[Step, ReadyStep]]:
    prepared = []
    for step in (*FIRST_STEPS, *steps):
        checker.require(step.needs_columns(), f"step {step.name!r}")
        prepared.append((step, step.prepare(checker)))
    return prepared


def _run_steps(
    connection: duckdb.DuckDBPyConnection,
    steps: Sequence[tuple[Step, ReadyStep]],
    limits: Limits,
    evaluation: EvaluationTables,
) -> Iterator[StepSummary]:
    connection.execute("CREATE TABLE alive AS SELECT __row FROM rows")
    connection.execute(
        "CREATE TABLE dropped (__row BIGINT, step VARCHAR, reason VARCHAR, value DOUBLE, threshold DOUBLE, "
        "duplicate_of VARCHAR)"
    )
    connection.execute("CREATE TABLE captions (__row BIGINT, source BIGINT)")
    num_input = 0
    num_here = count(connection, "SELECT count(*) FROM alive")
    for number, (step, prepared) in enumerate(steps):
        if number == len(FIRST_STEPS):
            num_input = num_here
        columns = ", ".join(quoted(name) for name in stored_columns(prepared.columns))
        connection.execute(
            f"CREATE TABLE here AS SELECT __row{columns and ', ' + columns} FROM rows SEMI JOIN alive USING (__row)"
        )
        try:
            result = prepared.run(Bench(connection, limits, num_input, num_here, evaluation.get(step.name, {})))
        except duckdb.BinderException as error:
            raise ValueError(
                f"step {step.name!r}: a column is not of the type that it needs: {first_line(error)}{TEXT_HINT}"
            ) from None
        except (duckdb.DataError, duckdb.InvalidInputException) as error:
            hint = TEXT_HINT if isinstance(error, duckdb.ConversionException) else ""
            raise ValueError(
                f"step {step.name!r}: an expression has no value for a row: {first_line(error)}{hint}"
            ) from None
        line = _settle(connection, step, result, num_here)
        num_here = line.rows_out
        yield line


def _settle(connection: duckdb.DuckDBPyConnection, step: Step, result: StepResult, num_here: int) -> StepSummary:
    """Move the rows of `verdict` from `alive` to `dropped`."""
    reasons = connection.execute("SELECT reason, count(*) FROM verdict GROUP BY reason ORDER BY reason").fetchall()
    num_dropped = sum(number for _, number in reasons)
    assert num_dropped == count(connection, "SELECT count(DISTINCT __row) FROM verdict SEMI JOIN here USING (__row)")
    connection.execute(
        "INSERT INTO dropped SELECT __row, $name, reason, value, threshold, duplicate_of FROM verdict",
        {"name": step.name},
    )
    if num_dropped:
        connection.execute("CREATE TABLE left_over AS SELECT __row FROM alive ANTI JOIN verdict USING (__row)")
        connection.execute("DROP TABLE alive")
        connection.execute("ALTER TABLE left_over RENAME TO alive")
    connection.execute("DROP TABLE here")
    connection.execute("DROP TABLE verdict")
    taken = _hand_over_captions(connection)
    threshold = result.threshold
    return StepSummary(
        name=step.name,
        step=step.step,
        settings={} if step in FIRST_STEPS else config_to_dict(step),
        rows_in=num_here,
        dropped=dict(reasons),
        rows_out=num_here - num_dropped,
        threshold=threshold if threshold is not None and math.isfinite(threshold) else None,
        details=result.details | ({} if taken is None else {"captions_taken": taken}),
    )


def _hand_over_captions(connection: duckdb.DuckDBPyConnection) -> int | None:
    """Give the rows of `captions_taken` the captions of others, for the steps that follow.

    Returns how many there are; None if the step did not make that table.
    """
    if not count(connection, "SELECT count(*) FROM duckdb_tables() WHERE table_name = 'captions_taken'"):
        return None
    # The other row may have taken its caption itself.
    connection.execute(
        """
        CREATE TABLE handed AS
        SELECT captions_taken.__row, coalesce(captions.source, captions_taken.source) AS source
        FROM captions_taken LEFT JOIN captions ON captions.__row = captions_taken.source
        """
    )
    connection.execute("DELETE FROM captions WHERE __row IN (SELECT __row FROM handed)")
    connection.execute("INSERT INTO captions SELECT __row, source FROM handed")
    stored = [row[0] for row in connection.execute("DESCRIBE rows").fetchall()]
    changed = [quoted(name) for name in stored if name in caption_columns()]
    if changed:
        values = ", ".join(f"{name} = other.{name}" for name in changed)
        connection.execute(
            f"UPDATE rows SET {values} FROM handed JOIN rows AS other ON other.__row = handed.source "
            "WHERE rows.__row = handed.__row"
        )
    taken = count(connection, "SELECT count(*) FROM handed")
    connection.execute("DROP TABLE handed")
    connection.execute("DROP TABLE captions_taken")
    return taken


def _note_captions(connection: duckdb.DuckDBPyConnection, inputs: Inputs) -> None:
    """Create `noted`: for each row that has another's caption, that row's uid and all that follows from the caption."""
    query = """
        SELECT captions.__row, other.__shard AS shard, other.key, other.uid
        FROM captions JOIN alive USING (__row) JOIN rows AS other ON other.__row = captions.source ORDER BY 2, 1
        """
    insert(connection, "noted", NOTED_SCHEMA.empty_table())
    rows = (row for table in read_batches(connection, query) for row in table.to_pylist())
    for shard, group in groupby(rows, key=lambda row: int(row["shard"])):
        taken = list(group)
        facts = caption_facts(inputs, inputs.shards[shard], [row["key"] for row in taken])
        noted = [
            {"__row": row["__row"], "caption_of": row["uid"], "caption_facts": canonical_json(facts[row["key"]])}
            for row in taken
        ]
        insert(connection, "noted", pa.Table.from_pylist(noted, NOTED_SCHEMA))


def _write(
    connection: duckdb.DuckDBPyConnection,
    inputs: Inputs,
    selection: Selection,
    digest: str,
    funnel: Sequence[StepSummary],
) -> LedgerSummary:
    placement = selection.placement
    num_shards = place_rows(connection, placement)
    shards = pa.table({"__shard": pa.array(range(len(inputs.shards)), pa.int32()), "raw_shard": list(inputs.shards)})
    insert(connection, "shards", shards)
    _note_captions(connection, inputs)
    query = f"""
        SELECT rows.uid, rows.input_file, rows.input_row, rows.url, shards.raw_shard, rows.key,
            placed.__row IS NOT NULL AS kept, dropped.step, dropped.reason, dropped.value, dropped.threshold,
            dropped.duplicate_of, format('{{:05d}}', placed.place // {placement.samples_per_shard}) AS out_shard,
            (placed.place % {placement.samples_per_shard})::INTEGER AS out_index, noted.caption_of, noted.caption_facts
        FROM rows JOIN shards USING (__shard) LEFT JOIN dropped USING (__row) LEFT JOIN placed USING (__row)
            LEFT JOIN noted USING (__row)
        ORDER BY __row
        """
    ledger = ledger_named(inputs.job, digest)
    sha256 = write_ledger(ledger, read_batches(connection, query))
    annotations = {item.name: files.basename(item.url) for item in inputs.annotations}
    summary = LedgerSummary(
        decided_by=decision_digest(selection, annotations),
        digest=ledger_digest(digest, sha256),
        inputs=digest,
        ledger_sha256=sha256,
        rows=funnel[0].rows_in,
        kept=funnel[-1].rows_out,
        out_shards=num_shards,
        samples_per_shard=placement.samples_per_shard,
        annotations=annotations,
        steps=list(funnel),
    )
    write_summary(ledger, summary)
    set_latest(Decision(inputs.job, ledger, summary))
    return summary
