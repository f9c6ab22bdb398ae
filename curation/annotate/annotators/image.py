"""Facts of an image that decodes, and why another does not."""

from dataclasses import dataclass
from typing import Any, ClassVar

import pyarrow as pa

from headrace.curation.annotate.annotator import AnnotationBatch, Annotator, Columns


@dataclass(frozen=True, kw_only=True, slots=True)
class ImageConfig:
    """Size, aspect, format, orientation, decode error. Nothing to set."""


class ImageFacts(Annotator):
    """Size, aspect, format, whether it decodes.

    Width and height are of the upright image.
    """

    name: ClassVar[str] = "image"
    version: ClassVar[int] = 1
    config_type: ClassVar[type[Any]] = ImageConfig
    by_default: ClassVar[bool] = True
    needs_pixels: ClassVar[bool] = True
    not_carried: ClassVar[frozenset[str]] = frozenset(
        ("image_width", "image_height", "aspect", "image_format", "orientation", "decode_error")
    )
    no_amounts: ClassVar[frozenset[str]] = frozenset(("orientation",))
    columns: ClassVar[pa.Schema] = pa.schema(
        [
            ("image_width", pa.int32()),
            ("image_height", pa.int32()),
            ("aspect", pa.float32()),
            ("image_format", pa.string()),
            ("orientation", pa.int8()),
            ("decode_error", pa.string()),
        ]
    )

    config: ImageConfig

    def annotate(self, batch: AnnotationBatch) -> Columns:
        result: Columns = {name: [None] * len(batch.keys) for name in self.columns.names}
        result["decode_error"] = list(batch.errors)
        for row, (header, pixels) in enumerate(zip(batch.headers, batch.images, strict=True)):
            if header is None or pixels is None:
                continue
            height, width = pixels.shape[:2]
            result["image_width"][row], result["image_height"][row] = width, height
            result["aspect"][row] = max(width, height) / min(width, height)
            result["image_format"][row], result["orientation"][row] = header.format, header.orientation
        return result
