"""Running steps over the table `rows` of a database: who is left, why the others are not, who took whose caption.

The rows left are bits of an array; the database knows those that are not, in `dropped`. A step finds its columns of the
rows left in the view `here`.
"""

import contextlib
import math
from collections.abc import Callable
from dataclasses import dataclass

import duckdb
import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from headrace.curation.ledger import StepSummary
from headrace.curation.select.captions import MERGED_FIELDS, create_captions, hand_over, has_table
from headrace.curation.select.database import column_of, insert, read_batches
from headrace.curation.select.expression import TEXT_HINT, Expression, first_line, quoted
from headrace.curation.select.here import patched
from headrace.curation.select.load import caption_columns
from headrace.curation.select.step import VERDICT_SCHEMA, Bench, ReadyStep, Step, StepResult, stored_columns
from headrace.curation.select.steps.first import DecodeStep, FetchStep

MOST_GONE = 0.5
"""Where more of the rows than this share are gone, the others are copied for a step instead of sought in every scan."""

VERDICT_COLUMNS = ", ".join(VERDICT_SCHEMA.names)
OUTCOME_SCHEMA = VERDICT_SCHEMA.append(pa.field("source", pa.int64()))
"""Of what a step said: rows that it drops, and rows that take the caption of another (`source`)."""
MERGED_SCHEMA = pa.schema([*OUTCOME_SCHEMA, *MERGED_FIELDS])
"""The same of a step that merges captions."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """All that a step said."""

    result: StepResult
    rows: pa.Table
    """By `OUTCOME_SCHEMA` or, where it merges captions, `MERGED_SCHEMA`; sorted."""
    takes_captions: bool
    """Whether it lets rows take captions, be it of none."""


@dataclass(slots=True)
class Sieve:
    """The state between steps over the rows `first`, `first` + 1, ... of a job."""

    connection: duckdb.DuckDBPyConnection
    left: NDArray[np.bool_]
    """Of each row, whether no step has dropped it."""
    first: int = 0
    num_gone: int = 0
    """Rows in `dropped`: others may have been dropped before."""

    def __post_init__(self) -> None:
        connection = self.connection
        connection.execute(
            "CREATE TABLE dropped (__row BIGINT, step VARCHAR, reason VARCHAR, value DOUBLE, threshold DOUBLE, "
            "duplicate_of VARCHAR)"
        )
        create_captions(connection)

    def run(
        self, step: Step, prepared: ReadyStep, bench: Bench, keep: Callable[[Outcome], None] | None = None
    ) -> StepSummary:
        """Run a step and drop what it says; `keep` gets what `recall` needs."""
        with_columns = [quoted(name) for name in stored_columns(prepared.columns)]
        kind = self._show_here(["__row", *with_columns], bench.num_here)
        try:
            result = prepared.run(bench)
        except duckdb.BinderException as error:
            raise ValueError(
                f"step {step.name!r}: a column is not of the type that it needs: {first_line(error)}{TEXT_HINT}"
            ) from None
        except (duckdb.DataError, duckdb.InvalidInputException) as error:
            hint = TEXT_HINT if isinstance(error, duckdb.ConversionException) else ""
            raise ValueError(
                f"step {step.name!r}: an expression has no value for a row: {first_line(error)}{hint}"
            ) from None
        if keep is not None:
            keep(self._outcome(result))
        summary = self._settle(step, result, bench.num_here)
        self.connection.execute(f"DROP {kind} here")
        return summary

    def values(self, expression: Expression) -> NDArray[np.float64]:
        """Return the numbers that an expression has for the rows left, without nulls and NaN; none if it fails."""
        kind = self._show_here(["__row", *map(quoted, expression.columns)], int(self.left.sum()))
        inner = f"SELECT __number::DOUBLE AS value FROM (SELECT {expression.sql} AS __number FROM here)"
        query = f"SELECT value FROM ({inner}) WHERE NOT isnan(value)"
        found: NDArray[np.float64] = np.zeros(0)
        with contextlib.suppress(duckdb.DataError, duckdb.InvalidInputException):
            self.connection.execute(f"CREATE TABLE numbers AS {query}")
            found = column_of(self.connection, "SELECT value FROM numbers", np.float64)
            self.connection.execute("DROP TABLE numbers")
        self.connection.execute(f"DROP {kind} here")
        return found

    def recall(self, step: Step, outcome: Outcome, num_here: int) -> StepSummary:
        """Drop what a step said of the same rows before."""
        insert(self.connection, "outcome", outcome.rows)
        write = "CREATE TABLE {} AS SELECT {} FROM outcome WHERE source IS {} NULL"
        self.connection.execute(write.format("verdict", VERDICT_COLUMNS, ""))
        if outcome.takes_captions:
            self.connection.execute(write.format("captions_taken", "__row, source", "NOT"))
        if outcome.rows.schema.names == MERGED_SCHEMA.names:
            self.connection.execute(write.format("captions_merged", "__row, source, code, place", "NOT"))
        self.connection.execute("DROP TABLE outcome")
        return self._settle(step, outcome.result, num_here)

    def _outcome(self, result: StepResult) -> Outcome:
        takes_captions = has_table(self.connection, "captions_taken")
        schema, dropped, more, order = OUTCOME_SCHEMA, f"{VERDICT_COLUMNS}, NULL::BIGINT AS source", "", "__row"
        if takes_captions:
            more = "UNION ALL SELECT __row, NULL, NULL, NULL, NULL, source FROM captions_taken"
        elif has_table(self.connection, "captions_merged"):
            schema, dropped = MERGED_SCHEMA, f"{dropped}, NULL::BIGINT AS place, NULL::BLOB AS code"
            more = "UNION ALL SELECT __row, NULL, NULL, NULL, NULL, source, place, code FROM captions_merged"
            order = "__row, place"
        query = f"SELECT {dropped} FROM verdict {more} ORDER BY {order}"
        tables = [table.cast(schema) for table in read_batches(self.connection, query)]
        return Outcome(result, pa.concat_tables([schema.empty_table(), *tables]), takes_captions)

    def _settle(self, step: Step, result: StepResult, num_here: int) -> StepSummary:
        """Move the rows of `verdict` to `dropped`, and hand over captions."""
        connection = self.connection
        reasons = connection.execute("SELECT reason, count(*) FROM verdict GROUP BY reason ORDER BY reason").fetchall()
        num_dropped = sum(number for _, number in reasons)
        rows = column_of(connection, "SELECT __row FROM verdict", np.int64) - self.first
        before = np.count_nonzero(self.left)
        assert self.left[rows].all(), f"step {step.name!r} drops rows that it was not shown"
        self.left[rows] = False
        assert before - np.count_nonzero(self.left) == num_dropped, f"step {step.name!r} drops a row twice"
        connection.execute(
            "INSERT INTO dropped SELECT __row, $name, reason, value, threshold, duplicate_of FROM verdict",
            {"name": step.name},
        )
        self.num_gone += num_dropped
        connection.execute("DROP TABLE verdict")
        taken = hand_over(connection)
        if taken is not None:
            self._patch_rows()
        threshold = result.threshold
        return StepSummary(
            name=step.name,
            step=step.step,
            settings={} if isinstance(step, FetchStep | DecodeStep) else step.settings(),
            rows_in=num_here,
            dropped=dict(reasons),
            rows_out=num_here - num_dropped,
            threshold=threshold if threshold is not None and math.isfinite(threshold) else None,
            details=result.details | ({} if taken is None else {"captions_taken": taken}),
        )

    def _show_here(self, columns: list[str], num_here: int) -> str:
        kind = "TABLE" if self.num_gone > MOST_GONE * (self.num_gone + num_here) else "VIEW"
        # No expression is moved below a limit: none sees a row that is gone.
        gone = f" ANTI JOIN dropped USING (__row) LIMIT {2**63 - 1}" if self.num_gone else ""
        self.connection.execute(f"CREATE {kind} here AS SELECT {', '.join(columns)} FROM rows{gone}")
        return kind

    def _patch_rows(self) -> None:
        """Show the columns that go with a caption as those of the row whose caption was taken."""
        connection = self.connection
        stored = [row[0] for row in connection.execute("DESCRIBE stored").fetchall()]
        changed = [name for name in stored if name in caption_columns()]
        if not changed:
            return
        # By what is stored: the source of a caption is the row that it came from first.
        values = ", ".join(f"stored.{quoted(name)}" for name in changed)
        connection.execute(
            f"""
            CREATE OR REPLACE TABLE patches AS
            SELECT captions.__row, {values} FROM captions JOIN stored ON stored.__row = captions.source
            """
        )
        connection.execute(f"CREATE OR REPLACE VIEW rows AS {patched(changed)}")
