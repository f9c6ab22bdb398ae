"""The step `top_fraction`: an exact count, over the whole job.

Kept are round-half-up(fraction x n) rows by (score descending, uid, input_file, input_row). The
threshold is the score of the last row kept; rows that tie with it may be dropped (reason `tie-at-cut`).
"""

from dataclasses import dataclass
from decimal import ROUND_HALF_UP, Decimal
from typing import Literal

import duckdb
import numpy as np

from headrace.curation.select.database import column_of, count
from headrace.curation.select.expression import Checker
from headrace.curation.select.load import IDENTITY
from headrace.curation.select.step import Bench, Cut, ReadyStep, Step, StepResult


@dataclass(frozen=True, kw_only=True, slots=True)
class TopFraction(Step):
    """Keep exactly round-half-up(fraction x n) rows with the highest score (fewer if fewer have one)."""

    step: Literal["top_fraction"] = "top_fraction"
    """The tag of this step."""
    name: str = "top_fraction"
    """Name in the ledger and the funnel."""
    score: str
    """Column or SQL expression (a number). Null and NaN are never kept (reason `no-score`)."""
    fraction: float
    """Share to keep, above 0 and at most 1."""
    of: Literal["input", "survivors"] = "survivors"
    """n: `input` counts the rows that were fetched and decoded, `survivors` those that reach this step."""

    def __post_init__(self) -> None:
        if not 0 < self.fraction <= 1:
            raise ValueError(f"fraction must be above 0 and at most 1, got {self.fraction}")

    def prepare(self, checker: Checker) -> ReadyStep:
        score = checker.check_number(self.score, f"step {self.name!r}: score")

        def run(bench: Bench) -> StepResult:
            connection = bench.connection
            connection.execute(
                f"""
                CREATE TABLE scored AS
                SELECT __row, CASE WHEN isnan(__score) THEN NULL ELSE __score END AS score
                FROM (SELECT __row, __number::DOUBLE AS __score FROM (SELECT __row, {score.sql} AS __number FROM here))
                """
            )
            base = bench.num_input if self.of == "input" else bench.num_here
            asked = exact_count(self.fraction, base)
            scored = count(connection, "SELECT count(score) FROM scored")
            threshold = _cut(connection, min(asked, scored))
            connection.execute("DROP TABLE scored")
            return StepResult(threshold, {"of": base, "asked": asked, "with_score": scored})

        return ReadyStep((*IDENTITY, *score.columns), run)

    def cuts(self, learned: float | None) -> tuple[Cut, ...]:
        return (Cut(self.score, learned),)


def exact_count(fraction: float, base: int) -> int:
    """Return round-half-up(fraction x base) of the fraction as written: 0.15 of 10 is 2, not 1."""
    return int((Decimal(repr(fraction)) * base).to_integral_value(ROUND_HALF_UP))


def _cut(connection: duckdb.DuckDBPyConnection, keep: int) -> float | None:
    """Write the verdicts that leave `keep` rows of `scored`; return the score of the last one kept."""
    threshold = None
    if keep:
        scores = column_of(connection, "SELECT score FROM scored WHERE score IS NOT NULL", np.float64)
        scores.partition(scores.size - keep)
        threshold = float(scores[scores.size - keep]) + 0.0  # no -0.0, which is equal to 0.0
        del scores
    above = int(connection.execute("SELECT count(*) FROM scored WHERE score > ?", [threshold]).fetchall()[0][0])
    # Only the rows that tie at the cut are sorted by their strings.
    order = ", ".join(f"{name} NULLS LAST" for name in IDENTITY)
    connection.execute(
        f"""
        CREATE TABLE verdict AS
        WITH tied AS (
            SELECT __row, row_number() OVER (ORDER BY {order}) AS place
            FROM here SEMI JOIN (SELECT __row FROM scored WHERE score = $threshold) USING (__row))
        SELECT __row, 'no-score' AS reason, NULL::DOUBLE AS value, $threshold::DOUBLE AS threshold,
            NULL::VARCHAR AS duplicate_of FROM scored WHERE score IS NULL
        UNION ALL
        SELECT __row, 'below-cut', score, $threshold, NULL FROM scored
        WHERE score IS NOT NULL AND ($threshold IS NULL OR score < $threshold)
        UNION ALL
        SELECT __row, 'tie-at-cut', $threshold, $threshold, NULL FROM tied WHERE place > $places
        """,
        {"threshold": threshold, "places": keep - above},
    )
    return threshold
