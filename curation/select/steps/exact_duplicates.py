"""The step `exact_duplicates`: of rows with the same bytes, keep the best by a stated order.

The list may name one URL twice; those rows have the same bytes and are duplicates too.
"""

from dataclasses import dataclass
from typing import ClassVar, Literal

from headrace.curation.select.database import count
from headrace.curation.select.expression import Checker
from headrace.curation.select.load import IDENTITY
from headrace.curation.select.step import (
    Bench,
    Links,
    ReadyStep,
    Step,
    StepResult,
    columns_of,
    order_by,
    order_columns,
)


@dataclass(frozen=True, kw_only=True, slots=True)
class ExactDuplicates(Step):
    """Of the rows with the same sha256, keep the best by `order`."""

    step: Literal["exact_duplicates"] = "exact_duplicates"
    """The tag of this step."""
    name: str = "exact_duplicates"
    """Name in the ledger and the funnel."""
    order: tuple[str, ...] = ("width * height desc",)
    """SQL expressions, each with `asc` or `desc`; nulls and NaN last; then uid, input_file, input_row."""

    links: ClassVar[Links] = "copies"

    def needs_columns(self) -> tuple[str, ...]:
        return ("sha256",)

    def prepare(self, checker: Checker) -> ReadyStep:
        where = f"step {self.name!r}"
        order = checker.check_order(self.order, where)

        def run(bench: Bench) -> StepResult:
            unknown = count(bench.connection, "SELECT count(*) FROM here WHERE sha256 IS NULL")
            if unknown:
                raise ValueError(
                    f"{where}: {unknown} rows have no sha256; add annotate.hashes and run `headrace annotate`"
                )
            bench.connection.execute(
                f"""
                CREATE TABLE verdict AS
                WITH ordered AS (SELECT __row, sha256, {", ".join(IDENTITY)}{order_columns(order)} FROM here),
                repeated AS (SELECT sha256 FROM here GROUP BY sha256 HAVING count(*) > 1),
                ranked AS (
                    SELECT __row, first_value(uid) OVER best_first AS best, row_number() OVER best_first AS place
                    FROM ordered SEMI JOIN repeated USING (sha256)
                    WINDOW best_first AS (PARTITION BY sha256 ORDER BY {order_by(order)}))
                SELECT __row, 'same-bytes' AS reason, NULL::DOUBLE AS value, NULL::DOUBLE AS threshold,
                    best AS duplicate_of
                FROM ranked WHERE place > 1
                """
            )
            sizes = "SELECT count(*) AS members FROM here GROUP BY sha256 HAVING count(*) > 1"
            number, largest = bench.connection.execute(f"SELECT count(*), max(members) FROM ({sizes})").fetchall()[0]
            return StepResult(None, {"groups": int(number), "largest_group": int(largest or 1)})

        return ReadyStep(("sha256", *columns_of(order)), run)
