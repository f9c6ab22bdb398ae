"""Face boxes, as fractions of the upright image.

`centerface` and `yunet` need a file each; `haar` needs none and is weak: a recipe that promises blurred faces must say
`accept_weak: true` to use it alone. `num_faces` 0 means that none was found, not that there is none; small faces are
lost first, so images are enlarged before they are searched.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar, Literal

import numpy as np
import pyarrow as pa

from headrace.curation.annotate.annotator import AnnotationBatch, Annotator, Columns, Pixels
from headrace.curation.annotate.detectors.boxes import Found
from headrace.curation.annotate.detectors.combine import Rule, combined
from headrace.curation.annotate.detectors.config import (
    DetectorConfig,
    DetectorName,
    file_of,
    packages_of,
    settings_of,
)
from headrace.curation.annotate.detectors.measured import RECALL
from headrace.curation.annotate.detectors.search import search
from headrace.curation.annotate.detectors.second_look import SecondCheck, confirmed, large_min_score, plausible
from headrace.curation.annotate.detectors.tiles import search_by_tiles

MAX_DETECTORS = 4
MIN_TILE_PIXELS = 128
CHECKED_PIXELS = 64


@dataclass(frozen=True, kw_only=True, slots=True)
class FacesConfig:
    """Which faces are found, and how."""

    detector: DetectorName = "centerface"
    """`centerface`, `yunet` or `scrfd`, each with its file; `haar` comes with OpenCV and misses most faces."""
    model: str = ""
    """ONNX file (any fsspec URL) or a name of `headrace models list`; empty: `centerface` is the known one."""
    min_score: float | None = None
    """Keep boxes from this score on; null: 0.35 of CenterFace, 0.6 of YuNet, 0.5 of SCRFD."""
    nms_overlap: float = 0.3
    """Of two boxes that overlap more (intersection over union), keep the better."""
    run_by: Literal["onnxruntime", "opencv"] = "onnxruntime"
    """What runs `centerface`: onnxruntime (the extra `onnx`), or OpenCV, which is always there and slower."""
    detectors: tuple[DetectorConfig, ...] = ()
    """Several detectors instead of the one above, each with its own keys."""
    combine: Rule = "union"
    """Of several: `union` hides what any of them finds, `agreement` what all of them find (fewer animals)."""
    tile_pixels: int = 0
    """Search overlapping tiles of this side too, in pixels of the image: for small faces in large images; 0: none."""
    check: SecondCheck | None = None
    """A second check of what was found, against animals and things; null: none."""
    accept_weak: bool = False
    """True: a promise to blur faces may stand on `haar` alone. The report then says how few it finds."""

    def __post_init__(self) -> None:
        single = self.one()
        if self.detectors and single != DetectorConfig():
            raise ValueError("give detector, model, min_score, nms_overlap and run_by inside `detectors`, or no list")
        if len(set(self.detectors)) != len(self.detectors) or len(self.detectors) > MAX_DETECTORS:
            raise ValueError(f"detectors: at most {MAX_DETECTORS}, no two alike")
        if self.tile_pixels and self.tile_pixels < MIN_TILE_PIXELS:
            raise ValueError(f"tile_pixels must be 0 or at least {MIN_TILE_PIXELS}, got {self.tile_pixels}")

    def one(self) -> DetectorConfig:
        """Return the detector that the keys beside `detectors` describe."""
        return DetectorConfig(
            detector=self.detector,
            model=self.model,
            min_score=self.min_score,
            nms_overlap=self.nms_overlap,
            run_by=self.run_by,
        )

    @property
    def all(self) -> tuple[DetectorConfig, ...]:
        """The detectors that search."""
        return self.detectors or (self.one(),)

    @property
    def is_weak(self) -> bool:
        """True if no promise to blur faces should stand on it: every box needs Haar, or would have to."""
        weak = [item.detector == "haar" for item in self.all]
        confirm = self.check.confirm if self.check is not None else None
        return (all(weak) if self.combine == "union" else any(weak)) or (
            confirm is not None and confirm.detector == "haar"
        )


class FaceBoxes(Annotator):
    """Face boxes: what build blurs.

    From left to right, then from top to bottom.
    """

    name: ClassVar[str] = "faces"
    version: ClassVar[int] = 1
    config_type: ClassVar[type[Any]] = FacesConfig
    by_default: ClassVar[bool] = True
    needs_pixels: ClassVar[bool] = True
    hides: ClassVar[str] = "face_boxes"
    columns: ClassVar[pa.Schema] = pa.schema(
        [
            ("num_faces", pa.int16()),
            ("face_boxes", pa.list_(pa.list_(pa.float32()))),
            ("face_scores", pa.list_(pa.float32())),
        ]
    )

    config: FacesConfig

    def needed_packages(self) -> tuple[str, ...]:
        return tuple(sorted({package for item in _asked(self.config) for package in packages_of(item)}))

    @classmethod
    def remark(cls, settings: Mapping[str, Any]) -> str:
        parts = settings.get("detectors") or [settings]
        names = [str(part.get("detector", "?")) for part in parts]
        told = "; ".join(f"{name}: {RECALL.get(name, 'not measured here')}" for name in dict.fromkeys(names))
        how = f" ({settings['combine']})" if len(parts) > 1 else ""
        return (
            f"Faces were found by {' and '.join(names)}{how}. Measured recall: {told}. What is missed is not blurred."
        )

    def settings(self) -> dict[str, Any]:
        config = self.config
        # One detector and nothing else: as it was before there were more, so that what was found then stays.
        found = [settings_of(item) for item in config.all]
        settings: dict[str, Any] = found[0] if len(found) == 1 else {"detectors": found, "combine": config.combine}
        if config.tile_pixels:
            settings = {**settings, "tile_pixels": config.tile_pixels}
        if config.check is not None:
            confirm = config.check.confirm
            least = [large_min_score(config.check, item.detector) for item in config.all]
            parts: dict[str, Any] = {"large_share": config.check.large_share, "large_min_scores": least}
            parts |= {"landmarks": config.check.landmarks, "confirm": confirm and settings_of(confirm)}
            settings = {**settings, "check": parts}
        return settings

    def files(self) -> dict[str, str]:
        roles = [f"model-{number}" if number else "model" for number in range(len(self.config.all))]
        found = {role: file_of(item) for role, item in zip(roles, self.config.all, strict=True)}
        check = self.config.check
        return {**found, "confirm": file_of(check.confirm)} if check is not None and check.confirm else found

    def check_models(self) -> None:
        for detector in _asked(self.config):
            search(np.zeros((CHECKED_PIXELS, CHECKED_PIXELS, 3), np.uint8), detector, enlarged=False)

    def annotate(self, batch: AnnotationBatch) -> Columns:
        found = [None if pixels is None else find_faces(pixels, self.config) for pixels in batch.images]
        return {
            "num_faces": [None if faces is None else len(faces.boxes) for faces in found],
            "face_boxes": [None if faces is None else faces.boxes.tolist() for faces in found],
            "face_scores": [
                None if faces is None or faces.scores is None else faces.scores.tolist() for faces in found
            ],
        }


def find_faces(pixels: Pixels, config: FacesConfig) -> Found:
    """Return the faces in an upright RGB image, uint8 [H, W, 3]: boxes as fractions of it, in reading order.

    Raises ValueError if the model does not load.
    """
    size = pixels.shape[1], pixels.shape[0]
    parts = [_search(pixels, detector, config) for detector in config.all]
    if config.check is not None:
        parts = [
            plausible(part, config.check, item.detector, size) for part, item in zip(parts, config.all, strict=True)
        ]
    found = combined(parts, config.combine)
    if config.check is not None and config.check.confirm is not None:
        found = confirmed(pixels, found, config.check.confirm, search)
    return found.in_reading_order()


def _search(pixels: Pixels, detector: DetectorConfig, config: FacesConfig) -> Found:
    whole = search(pixels, detector)
    if not config.tile_pixels:
        return whole
    find = partial(search, config=detector)
    return search_by_tiles(pixels, whole, find, tile_pixels=config.tile_pixels, overlap=detector.nms_overlap)


def _asked(config: FacesConfig) -> tuple[DetectorConfig, ...]:
    """Return all detectors that run."""
    confirm = config.check.confirm if config.check is not None else None
    return (*config.all, *(() if confirm is None else (confirm,)))
