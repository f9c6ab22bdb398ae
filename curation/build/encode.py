"""Encode a picture again so that it grows little: a JPEG with the tables and the chroma sampling of its source.

Where the blocks lie as they lay, values that were multiples of the old steps stay what they were: away from the blur
the new file is the old picture, at about its size. At a fixed quality of 95 and 4:4:4 the same files grow by half. A
picture that is turned by quarters keeps its blocks too, where its sides are multiples of them; its tables are turned
with it.
"""

import io
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from headrace.curation.build.strip_jpeg import add_icc
from headrace.shards.images.header import ImageHeader
from headrace.shards.images.pillow import PILLOW_ERRORS, open_image

# Sampling factors of (luma across, luma down, chroma across, chroma down) -> what Pillow's encoder calls it.
_SAMPLINGS = {(1, 1, 1, 1): "4:4:4", (2, 1, 1, 1): "4:2:2", (2, 2, 1, 1): "4:2:0"}
_TURNED = {"4:4:4": "4:4:4", "4:2:0": "4:2:0"}
FULL_SAMPLING = "4:4:4"
MAX_STEP = 255
# Exif orientations of a picture that was stored on its side: width and height change places.
_ON_SIDE = (5, 6, 7, 8)
# Those whose columns (rows) are read from the last to the first: a last block that is not whole then comes first.
_FROM_RIGHT, _FROM_BELOW = (2, 3, 7, 8), (3, 4, 6, 7)
# Pixels of one unit of blocks, across and down.
_BLOCKS = {"4:4:4": (8, 8), "4:2:2": (16, 8), "4:2:0": (16, 16)}
# Annex K of ITU-T T.81, row by row, as libjpeg scales them for a quality.
_LUMA_AT_50 = (
    *(16, 11, 10, 16, 24, 40, 51, 61, 12, 12, 14, 19, 26, 58, 60, 55, 14, 13, 16, 24, 40, 57, 69, 56),
    *(14, 17, 22, 29, 51, 87, 80, 62, 18, 22, 37, 56, 68, 109, 103, 77, 24, 35, 55, 64, 81, 104, 113, 92),
    *(49, 64, 78, 87, 103, 121, 120, 101, 72, 92, 95, 98, 112, 100, 103, 99),
)
_CHROMA_AT_50 = (
    *(17, 18, 24, 47, 99, 99, 99, 99, 18, 21, 26, 66, 99, 99, 99, 99, 24, 26, 56, 99, 99, 99, 99, 99),
    *(47, 66, *(99,) * 38),
)


@dataclass(frozen=True, slots=True)
class JpegSource:
    """How a JPEG was encoded: its steps of luma and chroma [8, 8], and its sampling; gray ones have no chroma."""

    luma: NDArray[np.int64]
    chroma: NDArray[np.int64] | None
    sampling: str

    def turned(self, header: ImageHeader) -> "JpegSource":
        """Return it for the upright picture; where its blocks will not lie as they lay, without a limit of the steps.

        Another grid of blocks rounds every value anew: the old steps would cost as much again as the first time.
        """
        luma, chroma, sampling = self.luma, self.chroma, self.sampling
        if header.orientation in _ON_SIDE:
            luma, chroma = luma.T, None if chroma is None else chroma.T
            sampling = _TURNED.get(sampling, FULL_SAMPLING)
        turned = JpegSource(luma, chroma, sampling)
        return turned if self._keeps_blocks(header) else turned.without_steps()

    def without_steps(self) -> "JpegSource":
        """Return it without a limit of the steps: only the sampling is the source's."""
        chroma = None if self.chroma is None else np.ones_like(self.chroma)
        return JpegSource(np.ones_like(self.luma), chroma, self.sampling)

    def _keeps_blocks(self, header: ImageHeader) -> bool:
        across, down = _BLOCKS[self.sampling] if self.chroma is not None else (8, 8)
        from_right, from_below = header.orientation in _FROM_RIGHT, header.orientation in _FROM_BELOW
        return not (from_right and header.width % across) and not (from_below and header.height % down)


def jpeg_source(data: bytes, header: ImageHeader) -> JpegSource | None:
    """Return how a JPEG was encoded, as its upright picture will be; None for what is not gray or YCbCr."""
    try:
        with open_image("jpeg", data) as image:
            layers, tables, mode = image.layer, image.quantization, image.mode  # type: ignore[attr-defined]
            steps = [np.array(tables[layer[3]], np.int64).reshape(8, 8) for layer in layers]
    except (*PILLOW_ERRORS, KeyError, AttributeError, ValueError):
        return None
    if mode == "L" and len(steps) == 1:
        source = JpegSource(steps[0], None, FULL_SAMPLING)
    elif mode == "RGB" and len(steps) == 3 and layers[1][1:3] == layers[2][1:3]:
        factors = (*layers[0][1:3], *layers[1][1:3])
        source = JpegSource(steps[0], steps[1], _SAMPLINGS.get(factors, FULL_SAMPLING))
    else:
        return None
    return source if header.orientation == 1 else source.turned(header)


def encode_like(pixels: NDArray[np.uint8], source: JpegSource, *, quality: int, icc: bytes = b"") -> bytes:
    """Encode RGB, uint8 [H, W, 3], as its source was, with no finer steps than those of `quality`."""
    tables = [np.maximum(source.luma, _steps(_LUMA_AT_50, quality))]
    if source.chroma is not None:
        tables.append(np.maximum(source.chroma, _steps(_CHROMA_AT_50, quality)))
    lists = {number: table.clip(1, MAX_STEP).ravel().tolist() for number, table in enumerate(tables)}
    gray = source.chroma is None
    image = Image.fromarray(cv2.cvtColor(pixels, cv2.COLOR_RGB2GRAY) if gray else pixels)
    options: dict[str, Any] = {"qtables": lists, **({} if gray else {"subsampling": source.sampling})}
    output = io.BytesIO()
    try:
        image.save(output, "JPEG", optimize=True, **options)
    except OSError:
        # To optimize, Pillow holds the whole file in 2 bytes a pixel; fine noise takes more.
        output = io.BytesIO()
        image.save(output, "JPEG", **options)
    return add_icc(output.getvalue(), icc)


def turned_without_loss(data: bytes, image_format: str, orientation: int) -> bytes | None:
    """Return a PNG, or a lossless WebP, with its pixels upright, in its own mode; None for other formats.

    Raises ValueError if it cannot be decoded.
    """
    if image_format != "png" and not (image_format == "webp" and is_lossless_webp(data)):
        return None
    turns = {
        2: Image.Transpose.FLIP_LEFT_RIGHT,
        3: Image.Transpose.ROTATE_180,
        4: Image.Transpose.FLIP_TOP_BOTTOM,
        5: Image.Transpose.TRANSPOSE,
        6: Image.Transpose.ROTATE_270,
        7: Image.Transpose.TRANSVERSE,
        8: Image.Transpose.ROTATE_90,
    }
    output = io.BytesIO()
    try:
        with open_image(image_format, data) as image:
            kept = {name: image.info[name] for name in ("icc_profile", "transparency") if image.info.get(name)}
            turned = image.transpose(turns[orientation])
            turned.info = {}
            turned.save(output, image_format.upper(), **kept, **({"lossless": True} if image_format == "webp" else {}))
    except PILLOW_ERRORS as error:
        raise ValueError(f"{image_format}: cannot be turned: {error}") from error
    return output.getvalue()


def is_lossless_webp(data: bytes) -> bool:
    """True if a WebP holds its pixels without loss."""
    position = 12
    while position + 8 <= len(data):
        kind, size = data[position : position + 4], int.from_bytes(data[position + 4 : position + 8], "little")
        if kind in (b"VP8L", b"VP8 "):
            return kind == b"VP8L"
        position += 8 + size + (size & 1)
    return False


def _steps(at_50: tuple[int, ...], quality: int) -> NDArray[np.int64]:
    """Return the table of a quality. Source: libjpeg, jpeg_quality_scaling."""
    scale = 5000 // quality if quality < 50 else 200 - 2 * quality
    return np.clip((np.array(at_50, np.int64) * scale + 50) // 100, 1, MAX_STEP).reshape(8, 8)
