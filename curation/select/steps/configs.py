"""The steps a recipe may list under `select`, applied in the order written.

Every step drops rows of what the steps before it kept; `fetch` and `decode` come first and need not be written. The
one thing a reader would get wrong: a rule says what to *keep*; a row for which the answer is NULL is dropped (reason
`null`).
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Literal

from pydantic import Field

MAX_NEAR_DISTANCE = 31
MAX_EVALUATION_DISTANCE = 64
RESERVED_NAMES = ("fetch", "decode")


@dataclass(frozen=True, kw_only=True, slots=True)
class Rule:
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


@dataclass(frozen=True, kw_only=True, slots=True)
class Unsafe:
    """Drop rows whose unsafe score reaches a threshold, or is missing (a row without a caption needs no text score)."""

    step: Literal["unsafe"] = "unsafe"
    """The tag of this step."""
    name: str = "unsafe"
    """Name in the ledger and the funnel."""
    image_threshold: float | None = 0.5
    """Drop at `unsafe_image_score` >= this; null: do not look at the image score."""
    text_threshold: float | None = 0.5
    """Drop at `unsafe_text_score` >= this; null: do not look at the text score."""

    def __post_init__(self) -> None:
        if self.image_threshold is None and self.text_threshold is None:
            raise ValueError("unsafe: image_threshold and text_threshold are both null, so the step would do nothing")
        for name in ("image_threshold", "text_threshold"):
            value = getattr(self, name)
            # Scores are 0 to 1: over 1, or at NaN, nothing would ever be dropped.
            if value is not None and not 0 <= value <= 1:
                raise ValueError(f"unsafe: {name} must be 0 to 1, got {value}")


@dataclass(frozen=True, kw_only=True, slots=True)
class ExactDuplicates:
    """Of the rows with the same sha256, keep the best by `order`."""

    step: Literal["exact_duplicates"] = "exact_duplicates"
    """The tag of this step."""
    name: str = "exact_duplicates"
    """Name in the ledger and the funnel."""
    order: tuple[str, ...] = ("width * height desc",)
    """SQL expressions, each with `asc` or `desc`; nulls and NaN last; then uid, input_file, input_row."""


@dataclass(frozen=True, kw_only=True, slots=True)
class NearDuplicates:
    """Of each group of images linked by PDQ distances up to `distance`, keep the best by `order`."""

    step: Literal["near_duplicates"] = "near_duplicates"
    """The tag of this step."""
    name: str = "near_duplicates"
    """Name in the ledger and the funnel."""
    distance: int = 20
    """Differing bits, of 256, up to which two images are linked."""
    min_quality: int = 50
    """Images of lower PDQ quality (flat, almost empty) are left alone."""
    hashes: tuple[Literal["pdq", "pdq_trimmed"], ...] = ("pdq", "pdq_trimmed")
    """Columns compared, any with any."""
    order: tuple[str, ...] = ("width * height desc",)
    """SQL expressions, each with `asc` or `desc`; nulls and NaN last; then uid, input_file, input_row."""

    def __post_init__(self) -> None:
        if not 0 <= self.distance <= MAX_NEAR_DISTANCE:
            raise ValueError(f"distance must be 0 to {MAX_NEAR_DISTANCE} of 256 bits, got {self.distance}")
        if not self.hashes or len(set(self.hashes)) != len(self.hashes):
            raise ValueError(f"hashes must name each of pdq, pdq_trimmed at most once, got {list(self.hashes)}")


@dataclass(frozen=True, kw_only=True, slots=True)
class EvaluationSet:
    """Images that must not be trained on."""

    name: str
    """Name in the ledger."""
    url: str
    """Folder of images, dataset of shards, tar, or parquet with a column of image bytes; any fsspec URL."""

    def __post_init__(self) -> None:
        # The name is also that of a folder beside the ledger.
        if not re.fullmatch(r"[A-Za-z0-9_-][A-Za-z0-9_.-]*", self.name):
            raise ValueError(f"name of an evaluation set: letters, digits, '-', '_' and '.' only, got {self.name!r}")


@dataclass(frozen=True, kw_only=True, slots=True)
class Decontaminate:
    """Drop every image that is, by sha256 or by PDQ, a copy of an image of an evaluation set."""

    step: Literal["decontaminate"] = "decontaminate"
    """The tag of this step."""
    name: str = "decontaminate"
    """Name in the ledger and the funnel."""
    against: tuple[EvaluationSet, ...]
    """The evaluation sets."""
    distance: int = 31
    """Differing bits, of 256, up to which an image counts as a copy."""
    min_quality: int = 50
    """An evaluation image of lower PDQ quality (flat, almost empty) is found only as the same bytes."""

    def __post_init__(self) -> None:
        if not 0 <= self.distance <= MAX_EVALUATION_DISTANCE:
            raise ValueError(f"distance must be 0 to {MAX_EVALUATION_DISTANCE} of 256 bits, got {self.distance}")
        names = [item.name for item in self.against]
        if not names or len(set(names)) != len(names):
            raise ValueError(f"against needs evaluation sets, each with its own name; got {names}")


@dataclass(frozen=True, kw_only=True, slots=True)
class TopFraction:
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


SelectStep = Annotated[
    Rule | Unsafe | ExactDuplicates | NearDuplicates | Decontaminate | TopFraction, Field(discriminator="step")
]


@dataclass(frozen=True, kw_only=True, slots=True)
class Placement:
    """Where kept rows go: raw order, shuffled within windows of raw shards, cut into output shards."""

    seed: int
    """The recipe's seed."""
    shuffle_window: int
    """Raw shards a window."""
    samples_per_shard: int
    """Rows an output shard."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Limits:
    """What the database may use. Never changes the result."""

    memory_bytes: int = 4 << 30
    """Memory of the database; beyond it, it spills to a folder beside the ledger."""
    threads: int = 0
    """Threads of the database; 0: one for each CPU this process may use."""
    max_bucket: int = 2000
    """Comparisons that one member of a near-duplicate bucket may cost; larger buckets are linked as stars."""

    def __post_init__(self) -> None:
        if self.memory_bytes < 64 << 20:
            raise ValueError(f"memory_bytes must be at least {64 << 20} (64 MiB), got {self.memory_bytes}")
        if self.threads < 0 or self.max_bucket < 2:
            raise ValueError(
                f"threads must be 0 or more and max_bucket 2 or more, got {self.threads}, {self.max_bucket}"
            )


def check_steps(steps: Sequence[SelectStep]) -> None:
    """Raise ValueError if two steps share a name, or one takes a reserved name."""
    seen = set(RESERVED_NAMES)
    for position, step in enumerate(steps):
        if not step.name or step.name in seen:
            raise ValueError(
                f"select.{position}: the name {step.name!r} is empty or taken; give this step a name of its own"
            )
        seen.add(step.name)
