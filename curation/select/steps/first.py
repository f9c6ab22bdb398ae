"""The two steps that come first in every selection and need not be written: `fetch` and `decode`."""

from dataclasses import dataclass
from typing import ClassVar, Literal

from headrace.curation.select.expression import Checker
from headrace.curation.select.step import Bench, ReadyStep, Step, StepResult, write_verdict


@dataclass(frozen=True, kw_only=True, slots=True)
class FetchStep(Step):
    """Drop what was not fetched; reason = error class."""

    step: Literal["fetch"] = "fetch"
    name: str = "fetch"

    each_row: ClassVar[bool] = True

    def needs_columns(self) -> tuple[str, ...]:
        return ("status", "error_class")

    def run(self, bench: Bench) -> StepResult:
        write_verdict(
            bench,
            """
            SELECT __row, coalesce(error_class, status, 'unknown') AS reason, NULL::DOUBLE AS value,
                NULL::DOUBLE AS threshold, NULL::VARCHAR AS duplicate_of
            FROM here WHERE status IS DISTINCT FROM 'success'
            """,
        )
        return StepResult()


@dataclass(frozen=True, kw_only=True, slots=True)
class DecodeStep(Step):
    """Drop what does not decode; reason = class of the error. Without the annotator `image` nothing is known."""

    step: Literal["decode"] = "decode"
    name: str = "decode"

    each_row: ClassVar[bool] = True

    def prepare(self, checker: Checker) -> ReadyStep:
        known = "decode_error" in checker.names()

        def run(bench: Bench) -> StepResult:
            error = "decode_error" if known else "NULL::VARCHAR"
            write_verdict(
                bench,
                f"""
                SELECT __row, split_part({error}, ':', 1) AS reason, NULL::DOUBLE AS value, NULL::DOUBLE AS threshold,
                    NULL::VARCHAR AS duplicate_of
                FROM here WHERE {error} IS NOT NULL
                """,
            )
            return StepResult(None, {} if known else {"note": "no annotator `image`: not checked"})

        return ReadyStep(("decode_error",) if known else (), run)
