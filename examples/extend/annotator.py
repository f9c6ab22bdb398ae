"""Mean brightness of the picture, 0 to 255."""

from dataclasses import dataclass
from typing import Any, ClassVar

import pyarrow as pa

from headrace.curation.annotate.annotator import AnnotationBatch, Annotator, Columns


@dataclass(frozen=True, kw_only=True, slots=True)
class BrightnessConfig:
    """Mean brightness. Nothing to set."""


class Brightness(Annotator):
    """Mean brightness."""

    name: ClassVar[str] = "brightness"
    version: ClassVar[int] = 1
    config_type: ClassVar[type[Any]] = BrightnessConfig
    needs_pixels: ClassVar[bool] = True
    columns: ClassVar[pa.Schema] = pa.schema([("brightness", pa.float32())])

    def annotate(self, batch: AnnotationBatch) -> Columns:
        return {"brightness": [None if image is None else float(image.mean()) for image in batch.images]}
