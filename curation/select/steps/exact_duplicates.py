"""The step `exact_duplicates`: of rows with the same bytes, keep the best by its caption and a stated order.

The list may name one URL twice; those rows have the same bytes and are duplicates too.
"""

from dataclasses import dataclass
from typing import ClassVar, Literal

from headrace.curation.select.database import count
from headrace.curation.select.expression import Checker
from headrace.curation.select.load import CAPTION_CHARS
from headrace.curation.select.rank import Captions, caption_columns, check_captions, given_order
from headrace.curation.select.step import Bench, Links, ReadyStep, Step, StepResult, write_verdict


@dataclass(frozen=True, kw_only=True, slots=True)
class ExactDuplicates(Step):
    """Of the rows with the same sha256, keep the best by `captions`, then by `order`."""

    step: Literal["exact_duplicates"] = "exact_duplicates"
    """The tag of this step."""
    name: str = "exact_duplicates"
    """Name in the ledger and the funnel."""
    order: tuple[str, ...] = ("width * height desc",)
    """SQL expressions, each with `asc` or `desc`; nulls and NaN last; then uid, input_file, input_row."""
    captions: Captions = "fill"
    """Before `order`: `fill`: a row with a caption goes before one without; `longest`: the longest caption first;
    `best_score`: the caption of the best clip_score first; `own`: captions do not count. The bytes are the same, so
    whichever row is kept keeps its own caption."""

    links: ClassVar[Links] = "copies"

    def needs_columns(self) -> tuple[str, ...]:
        return ("sha256", *(name for name in caption_columns(self.captions) if name != CAPTION_CHARS))

    def prepare(self, checker: Checker) -> ReadyStep:
        where = f"step {self.name!r}"
        check_captions(checker, self.captions, where)
        ranking = given_order(checker.check_order(self.order, where), self.captions)

        def run(bench: Bench) -> StepResult:
            unknown = count(bench.connection, "SELECT count(*) FROM here WHERE sha256 IS NULL")
            if unknown:
                raise ValueError(
                    f"{where}: {unknown} rows have no sha256; add annotate.hashes and run `headrace annotate`"
                )
            write_verdict(
                bench,
                f"""
                WITH repeated AS (
                    SELECT __row, sha256 AS label FROM here
                    SEMI JOIN (SELECT sha256 FROM here GROUP BY sha256 HAVING count(*) > 1) USING (sha256)),
                {ranking.tables},
                ranked AS (
                    SELECT __row, first_value(uid) OVER best_first AS best, row_number() OVER best_first AS place
                    FROM ordered WINDOW best_first AS (PARTITION BY label ORDER BY {ranking.caption_order}))
                SELECT __row, 'same-bytes' AS reason, NULL::DOUBLE AS value, NULL::DOUBLE AS threshold,
                    best AS duplicate_of
                FROM ranked WHERE place > 1
                """,
            )
            sizes = "SELECT count(*) AS members FROM here GROUP BY sha256 HAVING count(*) > 1"
            number, largest = bench.connection.execute(f"SELECT count(*), max(members) FROM ({sizes})").fetchall()[0]
            return StepResult(None, {"groups": int(number), "largest_group": int(largest or 1)})

        return ReadyStep(("sha256", *ranking.columns), run)
