"""What a recipe says about the curated shards."""

import datetime
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from headrace.config import config_to_dict

Encoding = Literal["source", "fixed"]
ImageFormat = Literal["source", "jpeg", "webp", "png"]
CAPTION = "caption"
MIN_SIDE_PIXELS, MAX_SIDE_PIXELS = 16, 16_383


@dataclass(frozen=True, kw_only=True, slots=True)
class LabelsConfig:
    """Where the label of a sample comes from."""

    column: str = ""
    """Carried or annotated column: whole numbers, names of classes, or a list of either. Empty: the column `label`."""
    classes: tuple[str, ...] = ()
    """Names of the classes in the order of their numbers; empty: those that kept rows have, sorted."""
    separator: str = ""
    """What stands between the names of several classes in one text, such as `;`. Empty: a text is one class."""

    def __post_init__(self) -> None:
        if not self.column and (self.classes or self.separator):
            raise ValueError("labels: classes and separator need a column")
        if len(set(self.classes)) != len(self.classes):
            raise ValueError("labels.classes names one class twice")


@dataclass(frozen=True, kw_only=True, slots=True)
class CardConfig:
    """What only you know of the dataset: it stands in `croissant.json` and `README.md`, and changes no shard."""

    title: str = ""
    """Name of the dataset; empty: that of the first list."""
    description: str = ""
    """What it is for, in your words; empty: a sentence of numbers."""
    license: str = ""
    """Licence of the compilation, best a URL or a name of spdx.org. The licences of images are their owners'."""
    creator: str = ""
    """Who made it."""
    url: str = ""
    """Page of the dataset."""
    date_published: str = ""
    """YYYY-MM-DD; no clock is read."""
    version: str = ""
    """Such as 1.0.0."""
    cite_as: str = ""
    """How to cite it, best as BibTeX."""

    def __post_init__(self) -> None:
        if self.date_published:
            try:
                datetime.date.fromisoformat(self.date_published)
            except ValueError as error:
                raise ValueError(f"card.date_published: expected YYYY-MM-DD, got {self.date_published!r}") from error


@dataclass(frozen=True, kw_only=True, slots=True)
class BuildConfig:
    """How kept rows become the curated dataset."""

    dataset: str = ""
    """Name of the dataset, for one beside the published: `datasets/NAME/`. Empty: the published one, `dataset/`."""
    blur_faces: bool = True
    """Blur the boxes of the annotator `faces`; without it, or with a weak detector alone, the recipe is refused."""
    blur_regions: bool = True
    """Blur what other annotators find to hide, such as `regions`."""
    jpeg_quality: int = 95
    """Highest quality of what must be encoded again: with faces, turned, or of a format without a metadata cut."""
    webp_quality: int = 0
    """Quality of a WebP with loss that must be encoded again; 0: that of jpeg_quality."""
    format: ImageFormat = "source"
    """`source`: images keep their format where there is a metadata cut for it; else all are of this one."""
    longest_side: int = 0
    """Pixels: an image with a longer side is made smaller until that side has so many; 0: none is."""
    shortest_side: int = 0
    """Pixels: an image whose both sides are longer is made smaller until the shorter one has so many; 0: none is."""
    encoding: Encoding = "source"
    """`source`: a JPEG keeps its own tables (up to jpeg_quality) and chroma sampling; `fixed`: jpeg_quality, 4:4:4."""
    upright: bool = True
    """Turn images that their Exif turns, for every reader; false: they lie as fetched, the index has `orientation`."""
    failure_budget: float = 0.1
    """Share of the rows that may fail: of an output shard from 100 rows on, and of the whole job at its end.

    A job of fewer rows is refused when more than half of them fail.
    """
    columns: tuple[str, ...] = ()
    """Columns to carry into the index beside the standard ones (every scalar annotation), such as `clip_embedding`."""
    caption: tuple[str, ...] = (CAPTION,)
    """Columns of text: the first that has one gives the sample its caption, the others stay columns of the index."""
    labels: LabelsConfig = field(default_factory=LabelsConfig)
    """Where the label of a sample comes from."""
    card: CardConfig = field(default_factory=CardConfig)
    """What its card says."""

    def __post_init__(self) -> None:
        if self.dataset and not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_-]*", self.dataset):
            raise ValueError(f"dataset: letters, digits, '-' and '_' only, got {self.dataset!r}")
        if not 50 <= self.jpeg_quality <= 100:
            raise ValueError(f"jpeg_quality must be 50..100, got {self.jpeg_quality}")
        if self.webp_quality and not 1 <= self.webp_quality <= 100:
            raise ValueError(f"webp_quality must be 1..100, or 0 for that of jpeg_quality, got {self.webp_quality}")
        self._check_sides()
        if not self.caption or len(set(self.caption)) != len(self.caption):
            raise ValueError(f"caption must name columns, each once, got {list(self.caption)}")
        if not 0 <= self.failure_budget <= 1:
            raise ValueError(f"failure_budget must be 0..1, got {self.failure_budget}")
        if len(set(self.columns)) != len(self.columns):
            raise ValueError(f"columns names one column twice: {', '.join(self.columns)}")

    def _check_sides(self) -> None:
        if self.longest_side and self.shortest_side:
            raise ValueError("longest_side and shortest_side are two ways to make images smaller: give one of them")
        for name in ("longest_side", "shortest_side"):
            pixels = getattr(self, name)
            if pixels and not MIN_SIDE_PIXELS <= pixels <= MAX_SIDE_PIXELS:
                raise ValueError(f"{name} must be 0 or {MIN_SIDE_PIXELS}..{MAX_SIDE_PIXELS} pixels, got {pixels}")

    @property
    def chooses_captions(self) -> bool:
        """True if captions may come from another column than `caption`."""
        return self.caption != (CAPTION,)

    @property
    def carried(self) -> tuple[str, ...]:
        """The columns that the index holds because a setting names them."""
        named = (*self.columns, *(name for name in self.caption if name != CAPTION))
        return tuple(dict.fromkeys(named))

    @property
    def read(self) -> tuple[str, ...]:
        """The columns that are read because a setting names them."""
        label = (self.labels.column,) if self.labels.column else ()
        return tuple(dict.fromkeys((*self.carried, *label)))


_ADDED: Mapping[str, Any] = {
    name: config_to_dict(BuildConfig())[name]
    for name in ("webp_quality", "format", "longest_side", "shortest_side", "caption", "labels", "card")
}
"""Keys that did not always exist, and what they say where they change nothing."""


def settings_of(config: BuildConfig) -> dict[str, Any]:
    """Return the settings as digests hold them: without later keys that change nothing."""
    return {name: value for name, value in config_to_dict(config).items() if value != _ADDED.get(name, _ADDED)}
