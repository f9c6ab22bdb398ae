"""The values that the steps with a threshold look at, in rows they dropped and in rows they let pass.

The ledger holds a value for a row that was dropped only; for others the step's expression is evaluated again, with
select's own checks. Near-duplicates and decontamination cut at a distance that no column holds, so they have no kept
side.
"""

from collections.abc import Iterator, Mapping, Sequence

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from headrace.curation.ledger import Decision, StepSummary, ledger_by_shard
from headrace.curation.raw.read import read_raw
from headrace.curation.report.tables import read_annotations
from headrace.curation.select.expression import Checker, open_evaluator
from headrace.curation.select.load import sql_types, visible_columns, with_facts_taken
from headrace.curation.select.step import Cut
from headrace.curation.select.steps import step_of

_LEDGER = ["uid", "url", "raw_shard", "key", "kept", "step", "duplicate_of", "out_shard", "out_index", "caption_facts"]


def cuts_of(step: StepSummary) -> tuple[Cut, ...]:
    """Return the numbers that a step of the ledger compares with a threshold."""
    return step_of(step).cuts(step.threshold)


def kept_values(decision: Decision, texts: Mapping[str, str]) -> Iterator[tuple[str, pa.Table]]:
    """Yield (name, kept rows of one raw shard with the `value` of its text), shard by shard; null where it has none."""
    if not texts:
        return
    folders = decision.annotation_folders()
    with open_evaluator() as evaluator:
        for shard, rows in ledger_by_shard(decision.ledger, _LEDGER):
            kept = rows.filter(pc.fill_null(rows["kept"], False))
            if not kept.num_rows:
                continue
            facts = facts_taken(kept)
            raw, annotated = read_raw(decision.job, shard), read_annotations(folders, shard)
            columns = joined(with_taken(raw, facts), with_taken(annotated, facts), kept["key"])
            checker = Checker(evaluator, sql_types(evaluator, columns.schema))
            kept = kept.append_column("caption", columns["caption"])
            for name, text in texts.items():
                yield name, kept.append_column("value", _values(evaluator, checker, columns, text))


def facts_taken(rows: pa.Table) -> dict[str, str]:
    """Return key -> the caption facts of another, for those of some ledger rows that took its caption."""
    if "caption_facts" not in rows.column_names:
        return {}
    pairs = zip(rows["key"].to_pylist(), rows["caption_facts"].to_pylist(), strict=True)
    return {key: facts for key, facts in pairs if facts is not None}


def with_taken(table: pa.Table, facts: Mapping[str, str]) -> pa.Table:
    """Return a table of a raw shard with what its rows took of others: what the steps after that saw."""
    return with_facts_taken(table, [facts.get(key) for key in table["key"].to_pylist()]) if facts else table


def with_cut_values(
    evaluator: duckdb.DuckDBPyConnection, steps: Sequence[StepSummary], raw: pa.Table, annotated: pa.Table
) -> pa.Table:
    """Return `annotated` and, under its text, each expression that a step cuts at and that is no column of it."""
    texts = dict.fromkeys(cut.expression for step in steps for cut in cuts_of(step))
    missing = [text for text in texts if text not in annotated.column_names]
    if not missing:
        return annotated
    columns = joined(raw, annotated, annotated["key"])
    checker = Checker(evaluator, sql_types(evaluator, columns.schema))
    for text in missing:
        annotated = annotated.append_column(text, _values(evaluator, checker, columns, text))
    return annotated


def joined(raw: pa.Table, annotated: pa.Table, keys: pa.ChunkedArray) -> pa.Table:
    """Return the columns of the rows with these keys, in their order, annotations before raw ones."""
    result: dict[str, pa.ChunkedArray] = {}
    for table in (annotated, raw):
        rows = table.take(pc.index_in(keys, value_set=table["key"].combine_chunks()))
        for name in rows.column_names:
            if name.lower() not in {known.lower() for known in result}:
                result[name] = rows[name]
    table = pa.table(result)
    # The evaluator is the database, which knows no half floats.
    held = visible_columns([table.schema])
    return table.select(held.names).cast(held)


def _values(connection: duckdb.DuckDBPyConnection, checker: Checker, columns: pa.Table, text: str) -> pa.Array:
    """Return the expression's value for each row; all null where it needs a column that is not scalar, or fails."""
    try:
        expression = checker.check_number(text, "summary.json")
    except ValueError:
        return pa.nulls(columns.num_rows, pa.float64())
    connection.register("here", columns)
    try:
        # One thread and no ORDER BY: DuckDB keeps the order of an Arrow table it scans.
        found = connection.execute(f"SELECT CAST({expression.sql} AS DOUBLE) AS value FROM here").fetchnumpy()["value"]
    except (duckdb.DataError, duckdb.InvalidInputException):
        # Select evaluates it only for the rows that reach its step.
        return pa.nulls(columns.num_rows, pa.float64())
    finally:
        connection.unregister("here")
    return pa.array(np.ma.filled(found, np.nan), pa.float64())
