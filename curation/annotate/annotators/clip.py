"""Image-text score: cosine of the two features of a CLIP model, and the image's feature.

On a CPU the values depend on nothing but image, caption, model and `images_per_batch`: one thread, every forward pass
of one shape, short batches filled up. The score is the plain cosine, without the model's temperature; and a row without
a caption has an embedding but no score.
"""

from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from headrace.curation.annotate.annotator import AnnotationBatch, Annotator, Columns, Pixels
from headrace.curation.annotate.annotators.clip_model import features, load_clip

# A resize keeps the aspect, so one line of pixels would become a picture of gigabytes; the centre crop sees only a
# square in the middle, and a strip of this aspect holds all that it sees.
MAX_ASPECT = 16


@dataclass(frozen=True, kw_only=True, slots=True)
class ClipScoreConfig:
    """An open_clip model of local files."""

    model: str
    """Name of an open_clip model, or a .json file: open_clip's model config, or its `open_clip_config.json`."""
    checkpoint: str
    """Weights on this machine: .safetensors, or a torch file (read without pickle)."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """`auto` takes CUDA where there is one. Not part of the digest; the last bits differ between kinds of device."""
    images_per_batch: int = 64
    """Images of one forward pass."""

    def __post_init__(self) -> None:
        if not 1 <= self.images_per_batch <= 4096:
            raise ValueError(f"images_per_batch must be 1..4096, got {self.images_per_batch}")


class ClipScore(Annotator):
    """Image-text score and embedding.

    The embedding is float16, of length 1 before rounding.
    """

    name: ClassVar[str] = "clip"
    version: ClassVar[int] = 1
    config_type: ClassVar[type[Any]] = ClipScoreConfig
    packages: ClassVar[tuple[str, ...]] = ("open_clip", "torch")
    of_caption: ClassVar[frozenset[str]] = frozenset(("clip_score",))
    needs_pixels: ClassVar[bool] = True
    columns: ClassVar[pa.Schema] = pa.schema([("clip_score", pa.float32()), ("clip_embedding", pa.list_(pa.float16()))])

    config: ClipScoreConfig

    def settings(self) -> dict[str, Any]:
        named = {} if self.config.model.endswith(".json") else {"model": self.config.model}
        return {**named, "images_per_batch": self.config.images_per_batch}

    def files(self) -> dict[str, str]:
        config = {"model": self.config.model} if self.config.model.endswith(".json") else {}
        return {**config, "checkpoint": self.config.checkpoint}

    def annotate(self, batch: AnnotationBatch) -> Columns:
        model = load_clip(self.config.model, self.config.checkpoint, self.config.device)
        scores: list[float | None] = [None] * len(batch.keys)
        embeddings: list[NDArray[np.float16] | None] = [None] * len(batch.keys)
        rows = [row for row, pixels in enumerate(batch.images) if pixels is not None]
        step = self.config.images_per_batch
        for start in range(0, len(rows), step):
            chosen = rows[start : start + step]
            pictures = [center_strip(pixels) for row in chosen if (pixels := batch.images[row]) is not None]
            images, texts = features(model, pictures, [batch.captions[row] or "" for row in chosen], step)
            cosines = (images * texts).sum(axis=1)
            for row, image, cosine in zip(chosen, images, cosines, strict=True):
                embeddings[row] = image.astype(np.float16)
                scores[row] = None if batch.captions[row] is None else float(cosine)
        return {"clip_score": scores, "clip_embedding": embeddings}


def center_strip(pixels: Pixels) -> Pixels:
    """Return the middle of an image that is longer than 16 times its width; any other image as it is."""
    height, width = pixels.shape[:2]
    limit = MAX_ASPECT * min(height, width)
    if max(height, width) <= limit:
        return pixels
    start = (max(height, width) - limit) // 2
    cut = pixels[:, start : start + limit] if width > height else pixels[start : start + limit]
    return np.ascontiguousarray(cut)
