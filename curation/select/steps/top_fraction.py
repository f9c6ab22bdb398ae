"""The step `top_fraction`: an exact count, over the whole job.

Kept are round-half-up(fraction x n) rows by (score descending, uid, input_file, input_row). The one thing a reader
would get wrong: the threshold is the score of the last row kept, and rows that tie with it may be dropped (reason
`tie-at-cut`).
"""

from decimal import ROUND_HALF_UP, Decimal

import duckdb

from headrace.curation.select.database import count
from headrace.curation.select.expression import Checker
from headrace.curation.select.load import IDENTITY
from headrace.curation.select.step import Bench, Outcome, Prepared
from headrace.curation.select.steps.configs import TopFraction


def prepare_top_fraction(step: TopFraction, checker: Checker) -> Prepared:
    """Drop what is below the cut, ties beyond the count, and rows without a score."""
    where = f"step {step.name!r}"
    score = checker.check_number(step.score, f"{where}: score")

    def run(bench: Bench) -> Outcome:
        connection = bench.connection
        connection.execute(
            f"""
            CREATE TABLE scored AS
            SELECT __row, {", ".join(IDENTITY)}, CASE WHEN isnan(__score) THEN NULL ELSE __score END AS score
            FROM (SELECT __row, {", ".join(IDENTITY)}, __number::DOUBLE AS __score
                  FROM (SELECT __row, {", ".join(IDENTITY)}, {score.sql} AS __number FROM here))
            """
        )
        base = bench.num_input if step.of == "input" else bench.num_here
        asked = exact_count(step.fraction, base)
        scored = count(connection, "SELECT count(score) FROM scored")
        threshold = _cut(connection, min(asked, scored))
        connection.execute("DROP TABLE scored")
        return Outcome(threshold, {"of": base, "asked": asked, "with_score": scored})

    return Prepared((*IDENTITY, *score.columns), run)


def exact_count(fraction: float, base: int) -> int:
    """Return round-half-up(fraction x base) of the fraction as written: 0.15 of 10 is 2, not 1."""
    return int((Decimal(repr(fraction)) * base).to_integral_value(ROUND_HALF_UP))


def _cut(connection: duckdb.DuckDBPyConnection, keep: int) -> float | None:
    """Write the verdicts that leave `keep` rows of `scored`; return the score of the last one kept."""
    threshold = None
    if keep:
        # Only the rows that tie at the cut are sorted by their strings.
        row = connection.execute(
            "SELECT score FROM scored WHERE score IS NOT NULL ORDER BY score DESC LIMIT 1 OFFSET ?", [keep - 1]
        ).fetchall()
        threshold = float(row[0][0])
    above = int(connection.execute("SELECT count(*) FROM scored WHERE score > ?", [threshold]).fetchall()[0][0])
    order = ", ".join(f"{name} NULLS LAST" for name in IDENTITY)
    connection.execute(
        f"""
        CREATE TABLE verdict AS
        WITH tied AS (
            SELECT __row, row_number() OVER (ORDER BY {order}) AS place FROM scored WHERE score = $threshold)
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
