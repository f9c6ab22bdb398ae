"""What a recipe says about annotate, and the annotators in one visible place.

The one thing a reader would get wrong: an annotator left out (null) is not run, but what it wrote before stays.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from headrace.curation.annotate.annotator import Annotator
from headrace.curation.annotate.annotators.caption import CaptionConfig, CaptionFacts
from headrace.curation.annotate.annotators.clip import Clip, ClipConfig
from headrace.curation.annotate.annotators.faces import FaceBoxes, FacesConfig
from headrace.curation.annotate.annotators.hashes import Hashes, HashesConfig
from headrace.curation.annotate.annotators.image import ImageConfig, ImageFacts
from headrace.curation.annotate.annotators.unsafe_image import UnsafeImage, UnsafeImageConfig
from headrace.curation.annotate.annotators.unsafe_text import UnsafeText, UnsafeTextConfig

# Name in the recipe -> the annotator of that sub-config, in the order of running.
ANNOTATORS: dict[str, Callable[[Any], Annotator]] = {
    "image": ImageFacts,
    "hashes": Hashes,
    "caption": CaptionFacts,
    "clip": Clip,
    "unsafe_text": UnsafeText,
    "unsafe_image": UnsafeImage,
    "faces": FaceBoxes,
}


@dataclass(frozen=True, kw_only=True, slots=True)
class AnnotateConfig:
    """Which columns are computed; null leaves an annotator out."""

    image: ImageConfig | None = field(default_factory=ImageConfig)
    """Size, aspect, format, whether it decodes."""
    hashes: HashesConfig | None = field(default_factory=HashesConfig)
    """sha256 and PDQ."""
    caption: CaptionConfig | None = field(default_factory=CaptionConfig)
    """Caption length."""
    clip: ClipConfig | None = None
    """Image-text score and embedding."""
    unsafe_text: UnsafeTextConfig | None = None
    """Caption against a lexicon."""
    unsafe_image: UnsafeImageConfig | None = None
    """ONNX classifier of unsafe images."""
    faces: FacesConfig | None = field(default_factory=FacesConfig)
    """Face boxes: what build blurs."""
    batch_size: int = 64
    """Images decoded at a time in one worker (fewer where they are large). Never changes the result."""

    def __post_init__(self) -> None:
        if not 1 <= self.batch_size <= 4096:
            raise ValueError(f"batch_size must be 1..4096, got {self.batch_size}")
        if all(getattr(self, name) is None for name in ANNOTATORS):
            raise ValueError("annotate runs no annotator at all; leave image, hashes, caption and faces on")


def annotators(config: AnnotateConfig) -> dict[str, Annotator]:
    """Return the annotators that `config` asks for, by name. Nothing is loaded."""
    asked = {name: getattr(config, name) for name in ANNOTATORS}
    return {name: ANNOTATORS[name](settings) for name, settings in asked.items() if settings is not None}
