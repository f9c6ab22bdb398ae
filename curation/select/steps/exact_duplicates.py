"""The step `exact_duplicates`: of rows with the same bytes, keep the best by its caption and a stated order.

The list may name one URL twice; those rows have the same bytes and are duplicates too.
"""

import functools
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from headrace.config import config_to_dict
from headrace.curation.select.captions import USUAL_CAPTIONS, check_most, merge_captions, name_members
from headrace.curation.select.database import count
from headrace.curation.select.expression import Checker
from headrace.curation.select.rank import Captions, Ranking, caption_columns, check_captions, given_order, without_idle
from headrace.curation.select.shuffle import solve_by_key
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
    whichever row is kept keeps its own caption. `merge`: as `fill`, and it holds all different captions of its group.
    """
    max_captions: int = USUAL_CAPTIONS
    """With `captions: merge`: captions that a row holds at most; the summary counts those that were cut. With another
    `captions` a number of its own is refused."""

    links: ClassVar[Links] = "copies"

    def __post_init__(self) -> None:
        check_most(self.max_captions, self.captions, self.name)

    def settings(self) -> dict[str, Any]:
        return without_idle(config_to_dict(self))

    def merges_captions(self) -> bool:
        return self.captions == "merge"

    def needs_columns(self) -> tuple[str, ...]:
        return ("sha256", *caption_columns(self.captions))

    def prepare(self, checker: Checker) -> ReadyStep:
        where = f"step {self.name!r}"
        check_captions(checker, self.captions, where)
        ranking = given_order(checker.check_order(self.order, where), self.captions)

        solve = functools.partial(_keep_best, where=where, ranking=ranking, merges=self.merges_captions())

        def run(bench: Bench) -> StepResult:
            details = solve_by_key(bench, "sha256", solve)
            if self.merges_captions():
                details |= merge_captions(bench, self.max_captions)
            return StepResult(None, details)

        return ReadyStep(("sha256", *ranking.columns), run)


def _keep_best(bench: Bench, where: str, ranking: Ranking, merges: bool) -> dict[str, int]:
    unknown = count(bench.connection, "SELECT count(*) FROM here WHERE sha256 IS NULL")
    if unknown:
        raise ValueError(f"{where}: {unknown} rows have no sha256; add annotate.hashes and run `headrace annotate`")
    # Codes of the sums find the few repeated ones without holding every sum in memory; the sums decide.
    bench.connection.execute(
        """
        CREATE TABLE likely AS SELECT * FROM here
        SEMI JOIN (SELECT hash(sha256) AS code FROM here GROUP BY code HAVING count(*) > 1) AS codes
        ON hash(here.sha256) = codes.code
        """
    )
    bench.connection.execute(
        f"""
        CREATE TABLE ranked AS
        WITH here AS (SELECT * FROM likely),
        repeated AS (
            SELECT __row, sha256 AS label FROM here
            SEMI JOIN (SELECT sha256 FROM here GROUP BY sha256 HAVING count(*) > 1) USING (sha256)),
        {ranking.tables}
        SELECT __row, first_value(__row) OVER best_first AS best_row, first_value(uid) OVER best_first AS best,
            row_number() OVER best_first AS place
        FROM ordered WINDOW best_first AS (PARTITION BY label ORDER BY {ranking.caption_order})
        """
    )
    write_verdict(
        bench,
        """
        SELECT __row, 'same-bytes' AS reason, NULL::DOUBLE AS value, NULL::DOUBLE AS threshold,
            best AS duplicate_of
        FROM ranked WHERE place > 1
        """,
    )
    sizes = "SELECT count(*) AS members FROM likely GROUP BY sha256 HAVING count(*) > 1"
    number, largest = bench.connection.execute(f"SELECT count(*), max(members) FROM ({sizes})").fetchall()[0]
    if merges:
        name_members(bench, "SELECT best_row AS __row, __row AS member, place FROM ranked")
    for name in ("likely", "ranked"):
        bench.connection.execute(f"DROP TABLE {name}")
    return {"groups": int(number), "largest_group": int(largest or 1)}
