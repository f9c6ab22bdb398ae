"""Aesthetic score: a head of LAION's on the feature of a CLIP model.

The published heads give about 1 to 10 and go with OpenAI's ViT-L/14. LAION's data sets were cut at 4.5 to 6.5.
"""

from dataclasses import dataclass
from typing import Any, ClassVar

import pyarrow as pa

from headrace.curation.annotate.annotator import AnnotationBatch, Annotator, Columns
from headrace.curation.annotate.annotators.clip import ClipScore, ClipScoreConfig, embeddings_of
from headrace.curation.annotate.annotators.clip_head import AESTHETIC, load_head


@dataclass(frozen=True, kw_only=True, slots=True)
class AestheticConfig:
    """A head and the CLIP model it was trained on."""

    head: str
    """Its file (any fsspec URL): .safetensors, a torch file (read without pickle), or .onnx."""
    clip: ClipScoreConfig
    """The CLIP model; one that annotate.clip names with the same words is run once for both."""


class Aesthetic(Annotator):
    """Aesthetic score by a head on a CLIP model."""

    name: ClassVar[str] = "aesthetic"
    version: ClassVar[int] = 1
    config_type: ClassVar[type[Any]] = AestheticConfig
    packages: ClassVar[tuple[str, ...]] = ("open_clip", "torch")
    needs_pixels: ClassVar[bool] = True
    columns: ClassVar[pa.Schema] = pa.schema([("aesthetic_score", pa.float32())])

    config: AestheticConfig

    def settings(self) -> dict[str, Any]:
        return {"clip": ClipScore(self.config.clip).settings()}

    def files(self) -> dict[str, str]:
        clip = {f"clip-{role}": path for role, path in ClipScore(self.config.clip).files().items()}
        return {"head": self.config.head, **clip}

    def annotate(self, batch: AnnotationBatch) -> Columns:
        head = load_head(self.config.head, AESTHETIC, "annotate.aesthetic.head")
        found = embeddings_of(batch, self.config.clip)
        return {"aesthetic_score": [None if feature is None else head(feature) for feature in found]}
