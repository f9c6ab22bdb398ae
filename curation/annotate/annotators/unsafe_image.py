"""A classifier of unsafe images: any ONNX file with one input and one output, or a head on a CLIP model.

An ONNX file takes images as `onnx_image` says. Its output: [N] or [N, 1], the probability that the image is unsafe; or
[N, 2], logits (safe, unsafe), turned into that probability by softmax. A head takes the feature of the CLIP model that
`clip` names (DataComp's `nsfw_torch.pt` and its kin).
"""

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import pyarrow as pa

from headrace.curation.annotate.annotator import AnnotationBatch, Annotator, Columns, Pixels
from headrace.curation.annotate.annotators.clip import ClipScore, ClipScoreConfig, embeddings_of
from headrace.curation.annotate.annotators.clip_head import UNSAFE, load_head
from headrace.curation.annotate.annotators.onnx_image import (
    ImageModel,
    InputConfig,
    Triple,
    check_input,
    open_image_model,
)

SLACK = 1e-6
"""A sigmoid in float32 may leave 0..1 by so much."""


@dataclass(frozen=True, kw_only=True, slots=True)
class UnsafeImageConfig:
    """An ONNX classifier, or a head on a CLIP model."""

    model: str
    """The ONNX file (any fsspec URL), weights inside; with `clip` the head: .safetensors, a torch file, or .onnx."""
    clip: ClipScoreConfig | None = None
    """The CLIP model that the head was trained on; null: `model` takes images."""
    image_size: int | None = None
    """Side of the model's input in pixels; null: the model's metadata or input shape."""
    mean: Triple | None = None
    """Mean of R, G, B on the scale 0..1; null: the model's metadata."""
    std: Triple | None = None
    """Standard deviation of R, G, B on the scale 0..1; null: the model's metadata."""

    def __post_init__(self) -> None:
        check_input(self.input())
        if self.clip is not None and self.input() != InputConfig(None, None, None):
            raise ValueError("image_size, mean and std are of an ONNX classifier; a head on a CLIP model takes none")

    def input(self) -> InputConfig:
        """Return what is said about the input."""
        return InputConfig(self.image_size, self.mean, self.std)


class UnsafeImage(Annotator):
    """Classifier of unsafe images, ONNX or a head on CLIP.

    No score depends on the image's neighbours.
    """

    name: ClassVar[str] = "unsafe_image"
    version: ClassVar[int] = 1
    config_type: ClassVar[type[Any]] = UnsafeImageConfig
    packages: ClassVar[tuple[str, ...]] = ("onnxruntime",)
    needs_pixels: ClassVar[bool] = True
    columns: ClassVar[pa.Schema] = pa.schema([("unsafe_image_score", pa.float32())])

    config: UnsafeImageConfig

    def needed_packages(self) -> tuple[str, ...]:
        return self.packages if self.config.clip is None else ClipScore.packages

    def settings(self) -> dict[str, Any]:
        if self.config.clip is None:
            return self.config.input().as_settings()
        return {"clip": ClipScore(self.config.clip).settings()}

    def files(self) -> dict[str, str]:
        clip = {} if self.config.clip is None else ClipScore(self.config.clip).files()
        return {"model": self.config.model, **{f"clip-{role}": path for role, path in clip.items()}}

    def check_models(self) -> None:
        if self.config.clip is None:
            open_image_model(self.config.model, self.config.input(), self.name)

    def annotate(self, batch: AnnotationBatch) -> Columns:
        if self.config.clip is not None:
            return {"unsafe_image_score": self._by_head(batch, self.config.clip)}
        model = open_image_model(self.config.model, self.config.input(), self.name)
        return {
            "unsafe_image_score": [None if pixels is None else unsafe_score(model, pixels) for pixels in batch.images]
        }

    def _by_head(self, batch: AnnotationBatch, clip: ClipScoreConfig) -> list[float | None]:
        head = load_head(self.config.model, UNSAFE, "annotate.unsafe_image.model")
        scores = [None if feature is None else head(feature) for feature in embeddings_of(batch, clip)]
        odd = next((score for score in scores if score is not None and not -SLACK <= score <= 1 + SLACK), None)
        if odd is not None:
            raise ValueError(
                f"head {self.config.model}: expected a probability (0..1), got {odd}; add a sigmoid to the model"
            )
        return [None if score is None else float(np.clip(score, 0, 1)) for score in scores]


def unsafe_score(model: ImageModel, pixels: Pixels) -> float:
    """Return the probability that an image is unsafe. Raises ValueError if the model's output is not one."""
    output = model.run(pixels)
    values = np.asarray(output, np.float64).reshape(-1)
    if values.size == 2:
        return float(1 / (1 + np.exp(np.clip(values[0] - values[1], -700, 700))))
    if values.size != 1 or not -SLACK <= values[0] <= 1 + SLACK:
        raise ValueError(
            f"{model.where}: expected one probability (0..1) or two logits for an image, got "
            f"{values[:4].tolist()} of shape {np.shape(output)}; add a sigmoid to the model"
        )
    return float(np.clip(values[0], 0, 1))
