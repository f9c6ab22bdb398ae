"""What a copy loses: pixels inside its border, colour, sharpness, and detail to compression.

Select keeps the best copy of a group of near-duplicates by these columns. They compare copies of one picture; between
different pictures they say less: a fog is not sharp.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import cv2
import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from headrace.curation.annotate.annotator import AnnotationBatch, Annotator, Columns, Pixels
from headrace.curation.annotate.annotators.hashes import trim_border
from headrace.curation.annotate.annotators.jpeg.earlier import earlier_saving
from headrace.curation.annotate.annotators.jpeg.history import LOSSLESS, coefficients_of, picture_quality, table_quality
from headrace.shards.images.header import ImageHeader
from headrace.shards.images.pillow import PILLOW_ERRORS, open_image

# WebP and AVIF say no quality; most on the web were made from a JPEG of about 75 or more, which goes before them.
LOSSY_WITHOUT_TABLES = 70
# 256 colours: banding, or noise in place of it.
PALETTE = 40
# Colour is measured on an image of this side, sharpness on the middle of the image at its own scale.
COLOUR_PIXELS = 128
SHARPNESS_PIXELS = 1024
# Keeps the ratio finite where there is nothing to see.
FLAT = 0.05
# Of rounding to whole pixels.
NO_POWER = 0.15


@dataclass(frozen=True, kw_only=True, slots=True)
class QualityConfig:
    """What tells a copy from its original. Nothing to set: values of other settings could not be compared."""


class Quality(Annotator):
    """What tells a copy from its original: border, colour, sharpness, traces of compression.

    `content_width` and `content_height`: without a border; `border`: its share of the image. `colourfulness`: mean
    difference of the strongest and the weakest of R, G, B; 0 is gray. `sharpness`: contrast of neighbouring pixels by
    that at half the size; about 0.9, or 0.45 where the image was blown up to twice its size. `encoded_quality`: JPEG
    quality of the file (100: no loss). `picture_quality`: the lowest that the pixels show traces of.
    `earlier_quality`: that of an earlier saving as JPEG, which may also be higher (100: none shows). `moved_since`:
    how far the coefficients have moved since that, in its steps: each later saving adds to it. `fine_detail`: power of
    the finest frequency by that of half of it, in bits; little where the image was enlarged.
    """

    name: ClassVar[str] = "quality"
    version: ClassVar[int] = 2
    config_type: ClassVar[type[Any]] = QualityConfig
    by_default: ClassVar[bool] = True
    needs_pixels: ClassVar[bool] = True
    not_carried: ClassVar[frozenset[str]] = frozenset(("file_bytes",))
    columns: ClassVar[pa.Schema] = pa.schema(
        [
            ("file_bytes", pa.int64()),
            ("content_width", pa.int32()),
            ("content_height", pa.int32()),
            ("border", pa.float32()),
            ("colourfulness", pa.float32()),
            ("sharpness", pa.float32()),
            ("encoded_quality", pa.int16()),
            ("picture_quality", pa.int16()),
            ("earlier_quality", pa.int16()),
            ("moved_since", pa.float32()),
            ("fine_detail", pa.float32()),
        ]
    )
    earlier: ClassVar[Mapping[int, tuple[str, ...]]] = {1: tuple(columns.names[:-3])}

    config: QualityConfig

    def annotate(self, batch: AnnotationBatch) -> Columns:
        result: Columns = {name: [None] * len(batch.keys) for name in self.columns.names}
        for row, (data, header, pixels) in enumerate(zip(batch.data, batch.headers, batch.images, strict=True)):
            if data is None or header is None or pixels is None:
                continue
            content = trim_border(pixels)
            encoded, steps = encoding(data, header)
            coefficients = coefficients_of(as_stored(pixels, header.orientation))
            values = {
                "file_bytes": len(data),
                "content_width": content.shape[1],
                "content_height": content.shape[0],
                "border": round(1 - content.shape[0] * content.shape[1] / (pixels.shape[0] * pixels.shape[1]), 4),
                "colourfulness": colourfulness(content),
                "sharpness": sharpness(content),
                "encoded_quality": encoded,
                "picture_quality": min(encoded, picture_quality(coefficients)),
            }
            if self.made_as > 1:
                values["earlier_quality"], values["moved_since"] = earlier_saving(coefficients, steps)
                values["fine_detail"] = fine_detail(coefficients)
            for name, value in values.items():
                result[name][row] = value
        return result


def colourfulness(pixels: Pixels) -> float:
    """Return the mean difference of the strongest and weakest colour of a pixel, 0 to 255."""
    height, width = pixels.shape[:2]
    size = min(width, COLOUR_PIXELS), min(height, COLOUR_PIXELS)
    small = cv2.resize(pixels, size, interpolation=cv2.INTER_AREA).astype(np.int16)
    return round(float((small.max(axis=2) - small.min(axis=2)).mean()), 2)


def sharpness(pixels: Pixels) -> float:
    """Return the contrast that goes when the image is halved, by that which goes when it is halved again."""
    height, width = (min(side, SHARPNESS_PIXELS) for side in pixels.shape[:2])
    top, left = (pixels.shape[0] - height) // 2, (pixels.shape[1] - width) // 2
    middle = np.ascontiguousarray(pixels[top : top + height, left : left + width])
    gray = cv2.cvtColor(middle, cv2.COLOR_RGB2GRAY).astype(np.float32)
    half = _halved(gray)
    return round(_lost(gray, half) / max(_lost(half, _halved(half)), FLAT), 3)


def _halved(gray: NDArray[np.float32]) -> NDArray[np.float32]:
    size = max(1, gray.shape[1] // 2), max(1, gray.shape[0] // 2)
    return np.asarray(cv2.resize(gray, size, interpolation=cv2.INTER_AREA), np.float32)


def _lost(gray: NDArray[np.float32], half: NDArray[np.float32]) -> float:
    back = cv2.resize(half, (gray.shape[1], gray.shape[0]), interpolation=cv2.INTER_LINEAR)
    return float(np.abs(gray - back).mean())


def fine_detail(coefficients: NDArray[np.float32]) -> float:
    """Return the power of the finest frequency across and down by that of half of it, of coefficients [N, 64], in bits.

    What was enlarged has nothing there: 2 bits less at 125 % of the size, 1 at 110 %.
    """
    if len(coefficients) == 0:
        return 0.0
    finest, half = (np.mean(coefficients[:, [order, 8 * order]] ** 2, dtype=np.float64) for order in (7, 4))
    return round(float(np.log2((finest + NO_POWER) / (half + NO_POWER))), 3)


def encoding(data: bytes, header: ImageHeader) -> tuple[int, NDArray[np.float64] | None]:
    """Return the quality of a file and, of a JPEG, the 64 steps of its luminance, row by row.

    Other formats have a quality by which they compare with JPEG.
    """
    if header.format in ("avif", "webp"):
        return LOSSLESS if header.format == "webp" and data[12:16] == b"VP8L" else LOSSY_WITHOUT_TABLES, None
    try:
        with open_image(header.format, data) as image:
            tables = getattr(image, "quantization", None)
            if tables:
                steps = np.array(tables[min(tables)], np.float64)
                return table_quality(steps), steps
            return PALETTE if image.mode == "P" else LOSSLESS, None
    except PILLOW_ERRORS:
        return LOSSY_WITHOUT_TABLES if header.format == "jpeg" else LOSSLESS, None


def as_stored(pixels: Pixels, orientation: int) -> Pixels:
    """Return upright pixels as the file holds them, so that its grid of blocks begins at the top left."""
    if orientation in (2, 3, 6, 7):
        pixels = pixels[:, ::-1]
    if orientation in (3, 4, 7, 8):
        pixels = pixels[::-1]
    return pixels.transpose(1, 0, 2) if orientation in (5, 6, 7, 8) else pixels
