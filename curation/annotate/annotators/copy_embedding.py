"""A descriptor of an image for finding copies: any ONNX file of one input and one output, such as SSCD's or ISC21's.

It finds crops, turns and flips that PDQ does not. Pairs are told by their cosine: SSCD's authors give 0.75 for 90 %
precision, DataComp took 0.604169 for ISC21's `isc_ft_v107`. Those weights are not ours to ship: export them to ONNX
with their own code, and say size, mean and std (SSCD: 288, ImageNet's; ISC: 512, 0.5 each).
"""

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from headrace.curation.annotate.annotator import AnnotationBatch, Annotator, Columns, Pixels
from headrace.curation.annotate.annotators.onnx_image import (
    ImageModel,
    InputConfig,
    Triple,
    check_input,
    open_image_model,
)


@dataclass(frozen=True, kw_only=True, slots=True)
class CopyEmbeddingConfig:
    """An ONNX model of copy detection."""

    model: str
    """The ONNX file (any fsspec URL), weights inside: float32 [N, 3, S, S] in, [N, D] out."""
    image_size: int | None = None
    """Side of the model's input in pixels; null: the model's metadata or input shape."""
    mean: Triple | None = None
    """Mean of R, G, B on the scale 0..1; null: the model's metadata."""
    std: Triple | None = None
    """Standard deviation of R, G, B on the scale 0..1; null: the model's metadata."""

    def __post_init__(self) -> None:
        check_input(self.input())

    def input(self) -> InputConfig:
        """Return what is said about the input."""
        return InputConfig(self.image_size, self.mean, self.std)


class CopyEmbedding(Annotator):
    """Descriptor for finding copies, by an ONNX model.

    Of length 1 before it is rounded to float16.
    """

    name: ClassVar[str] = "copy_embedding"
    version: ClassVar[int] = 1
    config_type: ClassVar[type[Any]] = CopyEmbeddingConfig
    packages: ClassVar[tuple[str, ...]] = ("onnxruntime",)
    needs_pixels: ClassVar[bool] = True
    columns: ClassVar[pa.Schema] = pa.schema([("copy_embedding", pa.list_(pa.float16()))])

    config: CopyEmbeddingConfig

    def settings(self) -> dict[str, Any]:
        return self.config.input().as_settings()

    def files(self) -> dict[str, str]:
        return {"model": self.config.model}

    def annotate(self, batch: AnnotationBatch) -> Columns:
        model = open_image_model(self.config.model, self.config.input(), self.name)
        return {"copy_embedding": [None if pixels is None else descriptor(model, pixels) for pixels in batch.images]}


def descriptor(model: ImageModel, pixels: Pixels) -> NDArray[np.float16]:
    """Return the descriptor of length 1, [D]. Raises ValueError if the model gives none."""
    output = model.run(pixels)
    values = np.asarray(output, np.float64).reshape(-1)
    length = float(np.sqrt((values * values).sum()))
    if output.shape[:1] != (1,) or values.size < 2 or not 0 < length < np.inf:
        raise ValueError(
            f"{model.where}: expected a descriptor [N, D] of finite numbers, not all 0, got shape {list(output.shape)}"
        )
    return (values / length).astype(np.float16)
