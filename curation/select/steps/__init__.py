"""The steps that a recipe may list under `select`, in the order written: one file each, and this table.

Every step drops rows of what the steps before it kept; `fetch` and `decode` come first and need not be written.
"""

from collections.abc import Sequence
from typing import Annotated

from headrace.config import build_config
from headrace.config_types import OneOf
from headrace.curation.ledger import StepSummary
from headrace.curation.select.step import Step, UnknownStep
from headrace.curation.select.steps.blocked import Blocked
from headrace.curation.select.steps.caption_duplicates import CaptionDuplicates
from headrace.curation.select.steps.decontaminate import Decontaminate
from headrace.curation.select.steps.embedding_duplicates import EmbeddingDuplicates
from headrace.curation.select.steps.exact_duplicates import ExactDuplicates
from headrace.curation.select.steps.first import DecodeStep, FetchStep
from headrace.curation.select.steps.near_duplicates import NearDuplicates
from headrace.curation.select.steps.placeholders import Placeholders
from headrace.curation.select.steps.quota import Quota
from headrace.curation.select.steps.rule import Rule
from headrace.curation.select.steps.semantic import Semantic
from headrace.curation.select.steps.soft_cap import SoftCap
from headrace.curation.select.steps.top_fraction import TopFraction
from headrace.curation.select.steps.unsafe import Unsafe
from headrace.extensions import with_extensions

# Tag in the recipe -> the step of that tag.
STEPS: dict[str, type[Step]] = {
    "rule": Rule,
    "blocklist": Blocked,
    "unsafe": Unsafe,
    "placeholders": Placeholders,
    "exact_duplicates": ExactDuplicates,
    "near_duplicates": NearDuplicates,
    "embedding_duplicates": EmbeddingDuplicates,
    "caption_duplicates": CaptionDuplicates,
    "semantic": Semantic,
    "decontaminate": Decontaminate,
    "top_fraction": TopFraction,
    "soft_cap": SoftCap,
    "quota": Quota,
}
FIRST_STEPS: tuple[Step, ...] = (FetchStep(), DecodeStep())


def known_steps() -> dict[str, type[Step]]:
    """Return `STEPS` with those of extensions. Raises ValueError for one that is no step."""
    table = with_extensions("steps", STEPS)
    for tag, kind in table.items():
        if not (isinstance(kind, type) and issubclass(kind, Step)):
            raise ValueError(f"the step {tag!r} of an extension must be a subclass of Step, got {kind!r}")
    return table


SelectStep = Annotated[Step, OneOf("step", known_steps)]


def check_steps(steps: Sequence[Step]) -> None:
    """Raise ValueError if two steps share a name, one takes a reserved name, or one judges too late."""
    seen = {step.name for step in FIRST_STEPS}
    merging = ""
    for position, step in enumerate(steps):
        if not step.name or step.name in seen:
            raise ValueError(
                f"select.{position}: the name {step.name!r} is empty or taken; give this step a name of its own"
            )
        seen.add(step.name)
        if merging and step.judges_captions():
            raise ValueError(
                f"select.{position}: step {step.name!r} judges captions, and would see the first of each row only: "
                f"put it before {merging!r}, which merges them"
            )
        merging = merging or (step.name if step.merges_captions() else "")


def step_of(summary: StepSummary) -> Step:
    """Return the step that a ledger speaks of: an `UnknownStep` where it cannot be made any more."""
    for step in FIRST_STEPS:
        if step.step == summary.step:
            return step
    try:
        return build_config(known_steps()[summary.step], summary.settings)
    except (KeyError, ValueError):
        return UnknownStep(step=summary.step, name=summary.name)
