"""What a recipe says about the curated shards."""

import re
from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True, slots=True)
class BuildConfig:
    """How kept rows become the curated dataset."""

    dataset: str = ""
    """Name of the dataset, for one beside the published: `datasets/NAME/`. Empty: the published one, `dataset/`."""
    blur_faces: bool = True
    """Blur the boxes of the annotator `faces`; without that annotator the recipe is refused."""
    jpeg_quality: int = 95
    """Quality of the images that must be encoded again: those with faces, and formats without a metadata cut."""
    failure_budget: float = 0.1
    """Share of the rows that may fail: of an output shard from 100 rows on, and of the whole job at its end.

    A job of fewer rows is refused when more than half of them fail.
    """
    columns: tuple[str, ...] = ()
    """Columns to carry into the index beside the standard ones (every scalar annotation), such as `clip_embedding`."""

    def __post_init__(self) -> None:
        if self.dataset and not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_-]*", self.dataset):
            raise ValueError(f"dataset: letters, digits, '-' and '_' only, got {self.dataset!r}")
        if not 50 <= self.jpeg_quality <= 100:
            raise ValueError(f"jpeg_quality must be 50..100, got {self.jpeg_quality}")
        if not 0 <= self.failure_budget <= 1:
            raise ValueError(f"failure_budget must be 0..1, got {self.failure_budget}")
        if len(set(self.columns)) != len(self.columns):
            raise ValueError(f"columns names one column twice: {', '.join(self.columns)}")
