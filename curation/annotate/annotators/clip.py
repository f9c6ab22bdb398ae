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
from headrace.curation.annotate.annotators.clip_files import clip_files
from headrace.curation.annotate.annotators.clip_model import image_features, load_clip, text_features
from headrace.shards.resources import Gpu, Resources

# A resize keeps the aspect, so one line of pixels would become a picture of gigabytes; the centre crop sees only a
# square in the middle, and a strip of this aspect holds all that it sees.
MAX_ASPECT = 16


@dataclass(frozen=True, kw_only=True, slots=True)
class ClipScoreConfig:
    """An open_clip model of local files."""

    model: str
    """Name of an open_clip model or a .json file of its config, each with a `checkpoint`; or a folder that holds both:
    a finished run of `headrace train`, `local-dir:FOLDER`, or `hf-hub:ORG/NAME` from this machine's cache."""
    checkpoint: str = ""
    """Weights on this machine: .safetensors, or a torch file (read without pickle). Empty where `model` is a folder."""
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
        name = clip_files(self.config.model, self.config.checkpoint).name
        return {**({"model": name} if name else {}), "images_per_batch": self.config.images_per_batch}

    def files(self) -> dict[str, str]:
        return clip_files(self.config.model, self.config.checkpoint).roles()

    def resources(self) -> Resources:
        """Return a GPU, where `device` may be one."""
        gpus: dict[str, Gpu] = {"auto": "if any", "cpu": "none", "cuda": "one"}
        return Resources(gpu=gpus[self.config.device])

    def annotate(self, batch: AnnotationBatch) -> Columns:
        embeddings = embeddings_of(batch, self.config)
        rows = [row for row, embedding in enumerate(embeddings) if embedding is not None]
        scores: list[float | None] = [None] * len(batch.keys)
        model = load_clip(self.config.model, self.config.checkpoint, self.config.device)
        step = self.config.images_per_batch
        for start in range(0, len(rows), step):
            chosen = rows[start : start + step]
            texts = text_features(model, [batch.captions[row] or "" for row in chosen], step)
            for row, text in zip(chosen, texts, strict=True):
                scores[row] = None if batch.captions[row] is None else float((embeddings[row] * text).sum())
        return {
            "clip_score": scores,
            "clip_embedding": [None if item is None else item.astype(np.float16) for item in embeddings],
        }


def embeddings_of(batch: AnnotationBatch, config: ClipScoreConfig) -> list[NDArray[np.float32] | None]:
    """Return the normalized feature of each image, [D]; computed once for all annotators of one model."""
    key = ("clip", config.model, config.checkpoint, config.device, config.images_per_batch)
    if key not in batch.shared:
        batch.shared[key] = _embeddings(batch, config)
    found: list[NDArray[np.float32] | None] = batch.shared[key]
    return found


def _embeddings(batch: AnnotationBatch, config: ClipScoreConfig) -> list[NDArray[np.float32] | None]:
    model = load_clip(config.model, config.checkpoint, config.device)
    found: list[NDArray[np.float32] | None] = [None] * len(batch.keys)
    rows = [row for row, pixels in enumerate(batch.images) if pixels is not None]
    for start in range(0, len(rows), config.images_per_batch):
        chosen = rows[start : start + config.images_per_batch]
        pictures = [center_strip(pixels) for row in chosen if (pixels := batch.images[row]) is not None]
        for row, feature in zip(chosen, image_features(model, pictures, config.images_per_batch), strict=True):
            found[row] = feature
    return found


def center_strip(pixels: Pixels) -> Pixels:
    """Return the middle of an image that is longer than 16 times its width; any other image as it is."""
    height, width = pixels.shape[:2]
    limit = MAX_ASPECT * min(height, width)
    if max(height, width) <= limit:
        return pixels
    start = (max(height, width) - limit) // 2
    cut = pixels[:, start : start + limit] if width > height else pixels[start : start + limit]
    return np.ascontiguousarray(cut)
