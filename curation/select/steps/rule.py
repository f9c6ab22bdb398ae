"""The step `rule`: a SQL expression that says what to *keep*.

No answer (NULL, NaN) is never a yes; such rows are dropped with a reason of their own, `null`.
"""

from dataclasses import dataclass
from typing import ClassVar, Literal

from headrace.curation.select.expression import Checker, literal
from headrace.curation.select.step import Bench, Cut, ReadyStep, Step, StepResult, write_verdict


@dataclass(frozen=True, kw_only=True, slots=True)
class Rule(Step):
    """Keep the rows for which a SQL expression is true."""

    step: Literal["rule"] = "rule"
    """The tag of this step."""
    name: str
    """Name in the ledger and the funnel."""
    keep: str
    """SQL expression over raw and annotation columns, true or false: `least(image_width, image_height) >= 99`."""
    value: str = ""
    """SQL expression (a number) recorded in the ledger for the rows dropped; empty: none."""
    threshold: float | None = None
    """Number recorded beside the value."""

    each_row: ClassVar[bool] = True

    def prepare(self, checker: Checker) -> ReadyStep:
        where = f"rule {self.name!r}"
        keep = checker.check_boolean(self.keep, where)
        value = checker.check_number(self.value, f"{where}: value") if self.value else None

        def run(bench: Bench) -> StepResult:
            recorded = f"{value.sql} AS __value" if value else "NULL AS __value"
            write_verdict(
                bench,
                f"""
                SELECT __row, CASE WHEN __keep IS NULL THEN 'null' ELSE 'false' END AS reason,
                    __value::DOUBLE AS value, {literal(self.threshold)} AS threshold, NULL::VARCHAR AS duplicate_of
                FROM (SELECT __row, {keep.sql} AS __keep, {recorded} FROM here) WHERE __keep IS NOT TRUE
                """,
            )
            return StepResult(self.threshold)

        return ReadyStep((*keep.columns, *(value.columns if value else ())), run)

    def cuts(self, learned: float | None) -> tuple[Cut, ...]:
        return (Cut(self.value, learned),) if self.value else ()
