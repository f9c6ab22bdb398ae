"""The step `unsafe`: drop rows by the scores of `unsafe_image` and `unsafe_text`, and rows without a score."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from headrace.curation.select.expression import Checker, literal
from headrace.curation.select.step import Bench, Cut, ReadyStep, Step, StepResult, write_verdict

IMAGE_SCORE = "unsafe_image_score"
TEXT_SCORE = "unsafe_text_score"


@dataclass(frozen=True, slots=True)
class _Test:
    """One score that is looked at."""

    kind: str
    column: str
    threshold: float
    needed: str
    """SQL: where the score must be there."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Unsafe(Step):
    """Drop rows whose unsafe score reaches a threshold, or is missing (a row without a caption needs no text score)."""

    step: Literal["unsafe"] = "unsafe"
    """The tag of this step."""
    name: str = "unsafe"
    """Name in the ledger and the funnel."""
    image_threshold: float | None = 0.5
    """Drop at `unsafe_image_score` >= this; null: do not look at the image score."""
    text_threshold: float | None = 0.5
    """Drop at `unsafe_text_score` >= this; null: do not look at the text score."""

    each_row: ClassVar[bool] = True
    shows_dropped: ClassVar[bool] = False

    def __post_init__(self) -> None:
        if self.image_threshold is None and self.text_threshold is None:
            raise ValueError("unsafe: image_threshold and text_threshold are both null, so the step would do nothing")
        for name in ("image_threshold", "text_threshold"):
            value = getattr(self, name)
            # Scores are 0 to 1: over 1, or at NaN, nothing would ever be dropped.
            if value is not None and not 0 <= value <= 1:
                raise ValueError(f"unsafe: {name} must be 0 to 1, got {value}")

    def unsafe_image_columns(self) -> tuple[str, ...]:
        return (IMAGE_SCORE,) if self.image_threshold is not None else ()

    def judges_captions(self) -> bool:
        return self.text_threshold is not None

    def needs_columns(self) -> tuple[str, ...]:
        columns = tuple(test.column for test in self._tests())
        return (*columns, "caption") if self.text_threshold is not None else columns

    def prepare(self, checker: Checker) -> ReadyStep:
        for test in self._tests():
            checker.check_number(test.column, f"step {self.name!r}")
        return Step.prepare(self, checker)

    def run(self, bench: Bench) -> StepResult:
        reason, value, threshold = "", "", ""
        for test in self._tests():
            absent = f"({test.column} IS NULL OR isnan({test.column}))"
            missing = f"{absent} AND {test.needed}"
            limit = literal(test.threshold)
            unsafe = f"NOT {absent} AND {test.column} >= {limit}"
            reason += f" WHEN {missing} THEN 'no-{test.kind}-score' WHEN {unsafe} THEN 'unsafe-{test.kind}'"
            value += f" WHEN {missing} THEN NULL WHEN {unsafe} THEN {test.column}::DOUBLE"
            threshold += f" WHEN ({missing}) OR ({unsafe}) THEN {limit}"
        write_verdict(
            bench,
            f"""
            SELECT * FROM (
                SELECT __row, CASE{reason} END AS reason, CASE{value} END AS value, CASE{threshold} END AS threshold,
                    NULL::VARCHAR AS duplicate_of FROM here)
            WHERE reason IS NOT NULL
            """,
        )
        return StepResult(self.image_threshold if self.image_threshold is not None else self.text_threshold)

    def cuts(self, learned: float | None) -> tuple[Cut, ...]:  # noqa: ARG002
        return tuple(Cut(test.column, test.threshold) for test in self._tests())

    def may_show(self, facts: Mapping[str, Any]) -> bool:
        """True if the scores are known and under the limits; a row without a caption needs no text score."""
        image, text = facts.get(IMAGE_SCORE), facts.get(TEXT_SCORE)
        # A comparison with NaN is false, so an unknown score is never allowed.
        if self.image_threshold is not None and not (image is not None and image < self.image_threshold):
            return False
        if self.text_threshold is None or not facts.get("caption"):
            return True
        return text is not None and bool(text < self.text_threshold)

    def _tests(self) -> tuple[_Test, ...]:
        tests = []
        if self.image_threshold is not None:
            tests.append(_Test("image", IMAGE_SCORE, self.image_threshold, "true"))
        if self.text_threshold is not None:
            tests.append(_Test("text", TEXT_SCORE, self.text_threshold, "caption IS NOT NULL"))
        return tuple(tests)
