"""Facts of an image that decodes, and why another does not."""

from dataclasses import dataclass
from typing import Any, ClassVar

import pyarrow as pa

from headrace.curation.annotate.annotator import Batch, Columns


@dataclass(frozen=True, kw_only=True, slots=True)
class ImageConfig:
    """Size, aspect, format, orientation, decode error. Nothing to set."""


class ImageFacts:
    """Size as seen: width and height are of the upright image."""

    name: ClassVar[str] = "image"
    version: ClassVar[int] = 1
    needs_pixels: ClassVar[bool] = True
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

    def __init__(self, config: ImageConfig) -> None:
        self.config = config

    def settings(self) -> dict[str, Any]:
        return {}

    def files(self) -> dict[str, str]:
        return {}

    def annotate(self, batch: Batch) -> Columns:
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
