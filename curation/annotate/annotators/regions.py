"""Boxes of other things to hide than faces: number plates, text, screens; any ONNX detector, by path.

What it finds is blurred by build as faces are. Nothing is measured here: how much a model finds is its own.
"""

from dataclasses import dataclass
from functools import cache
from typing import Any, ClassVar

import numpy as np
import pyarrow as pa

from headrace.curation.annotate.annotator import AnnotationBatch, Annotator, Columns, Pixels
from headrace.curation.annotate.detectors.boxes import Found
from headrace.curation.annotate.detectors.onnx import OnnxModel, open_onnx
from headrace.curation.annotate.detectors.regions import Output, Triple, regions_of, square
from headrace.curation.models.folder import model_url
from headrace.shards.images.opencv import one_opencv_thread

MAX_IMAGE_SIZE = 4096
KEY = "annotate.regions.model"


@dataclass(frozen=True, kw_only=True, slots=True)
class RegionsConfig:
    """A detector of regions."""

    model: str
    """The ONNX file (any fsspec URL), weights inside; one image a run, RGB scaled to fit a square."""
    output: Output = "boxes"
    """`boxes` [N, 6] (corners, score, class), `grid` [1, 4 + C, N] (YOLO v8 and later), `heatmap` [1, 1, H, W] (DB)."""
    image_size: int = 640
    """Side of the square in pixels."""
    min_score: float = 0.3
    """Keep boxes from this score on."""
    nms_overlap: float = 0.5
    """Of two boxes that overlap more (intersection over union), keep the better."""
    labels: tuple[int, ...] = ()
    """Classes that are hidden; empty: all."""
    mean: Triple = (0.0, 0.0, 0.0)
    """Taken off R, G, B on the scale 0..1."""
    std: Triple = (1.0, 1.0, 1.0)
    """What R, G, B are divided by then."""

    def __post_init__(self) -> None:
        if not 32 <= self.image_size <= MAX_IMAGE_SIZE:
            raise ValueError(f"image_size must be 32..{MAX_IMAGE_SIZE}, got {self.image_size}")
        if not 0 < self.min_score < 1 or not 0 < self.nms_overlap < 1:
            raise ValueError("min_score and nms_overlap must be between 0 and 1")
        if not all(value > 0 for value in self.std):
            raise ValueError(f"std must be above 0, got {list(self.std)}")


class RegionBoxes(Annotator):
    """Boxes of plates, text and the like: blurred as faces are.

    From left to right, then from top to bottom.
    """

    name: ClassVar[str] = "regions"
    version: ClassVar[int] = 1
    config_type: ClassVar[type[Any]] = RegionsConfig
    packages: ClassVar[tuple[str, ...]] = ("onnxruntime",)
    needs_pixels: ClassVar[bool] = True
    hides: ClassVar[str] = "region_boxes"
    columns: ClassVar[pa.Schema] = pa.schema(
        [
            ("num_regions", pa.int16()),
            ("region_boxes", pa.list_(pa.list_(pa.float32()))),
            ("region_scores", pa.list_(pa.float32())),
            ("region_labels", pa.list_(pa.int16())),
        ]
    )

    config: RegionsConfig

    def settings(self) -> dict[str, Any]:
        config = self.config
        return {
            "output": config.output,
            "image_size": config.image_size,
            "min_score": config.min_score,
            "nms_overlap": config.nms_overlap,
            "labels": sorted(config.labels),
            "mean": list(config.mean),
            "std": list(config.std),
        }

    def files(self) -> dict[str, str]:
        return {"model": model_url(self.config.model)}

    def check_models(self) -> None:
        find_regions(np.zeros((self.config.image_size, self.config.image_size, 3), np.uint8), self.config)

    def annotate(self, batch: AnnotationBatch) -> Columns:
        found = [None if pixels is None else find_regions(pixels, self.config) for pixels in batch.images]
        return {
            "num_regions": [None if item is None else len(item.boxes) for item in found],
            "region_boxes": [None if item is None else item.boxes.tolist() for item in found],
            "region_scores": [None if item is None or item.scores is None else item.scores.tolist() for item in found],
            "region_labels": [None if item is None or item.labels is None else item.labels.tolist() for item in found],
        }


def find_regions(pixels: Pixels, config: RegionsConfig) -> Found:
    """Return the regions in an upright RGB image, uint8 [H, W, 3]: fractions of it, in reading order, with classes.

    Raises ValueError if the model does not load, or has other outputs than the config says.
    """
    model = _model(config.model)
    with one_opencv_thread():
        given, scale = square(pixels, config.image_size, config.mean, config.std)
        found = regions_of(
            model,
            model.run(given),
            config.output,
            side=config.image_size,
            min_score=config.min_score,
            nms_overlap=config.nms_overlap,
        )
    if config.labels and found.labels is not None:
        found = found.take(np.flatnonzero(np.isin(found.labels, config.labels)))
    return found.as_fractions((pixels.shape[1] * scale, pixels.shape[0] * scale)).in_reading_order()


@cache
def _model(url: str) -> OnnxModel:
    return open_onnx(model_url(url), KEY)
