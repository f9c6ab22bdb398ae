"""sha256 of the bytes as fetched, and PDQ of the picture in its canonical form.

PDQ is taken of the image squeezed to 256 x 256 by area averaging, so that copies of other sizes meet (reference: resize
to 256 was found in 82 % of cases without, 100 % with, at distance 20), once more after a uniform border is cut, and
once of the square in the middle of that, so that a copy cut to a square meets its original (version 2 had no such).
Hashes are comparable only if all come from `image_hashes`, and face blurring moves them, so they are taken before it.
"""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import cv2
import numpy as np
import pdqhash
import pyarrow as pa
from numpy.typing import NDArray

from headrace.curation.annotate.annotator import AnnotationBatch, Annotator, Columns, Pixels

CANONICAL_PIXELS = 256
MIN_TRIMMED_PIXELS = 16
# A line belongs to the border if 98 % of its pixels are this near to the border's luminance, of 255.
BORDER_TOLERANCE = 12
BORDER_SHARE = 0.98
# Within a border, only a line as even as this begins another: the smooth edge of a picture (sky, the moon) does not, or
# a framed copy would lose what its original keeps.
INNER_TOLERANCE = 4
MAX_BORDERS = 4
# Quarter turns that bring a side's outermost line to the top: top, bottom, left, right.
SIDES = (0, 2, 3, 1)
# Beside an edge JPEG rings, in one block of 8 lines or two: the lines there that differ less than a fifth as much as
# the strongest one are border too.
RINGING_LINES = 8
RINGING_SHARE = 0.2

Luminance = NDArray[np.int16]
Cut = tuple[int, int, int, int]
"""Lines cut from top, bottom, left and right."""


@dataclass(frozen=True, kw_only=True, slots=True)
class HashesConfig:
    """sha256 and PDQ. Nothing to set: hashes of other settings could not be compared."""


@dataclass(frozen=True, slots=True)
class ImageHashes:
    """PDQ of one image, 32 bytes each: whole, without border, the square in the middle of that.

    Quality is of the whole, 0..100; Meta advises to ignore under 50.
    """

    pdq: bytes
    pdq_trimmed: bytes
    pdq_centre: bytes
    quality: int


class Hashes(Annotator):
    """sha256 and PDQ.

    sha256 is there even for an image that does not decode.
    """

    name: ClassVar[str] = "hashes"
    version: ClassVar[int] = 3
    earlier: ClassVar[Mapping[int, tuple[str, ...]]] = {2: ("sha256", "pdq", "pdq_trimmed", "pdq_quality")}
    config_type: ClassVar[type[Any]] = HashesConfig
    by_default: ClassVar[bool] = True
    needs_pixels: ClassVar[bool] = True
    columns: ClassVar[pa.Schema] = pa.schema(
        [
            ("sha256", pa.string()),
            ("pdq", pa.binary(32)),
            ("pdq_trimmed", pa.binary(32)),
            ("pdq_centre", pa.binary(32)),
            ("pdq_quality", pa.int16()),
        ]
    )

    config: HashesConfig

    def annotate(self, batch: AnnotationBatch) -> Columns:
        found = [None if pixels is None else image_hashes(pixels) for pixels in batch.images]
        return {
            "sha256": list(batch.sha256),
            "pdq": [item and item.pdq for item in found],
            "pdq_trimmed": [item and item.pdq_trimmed for item in found],
            "pdq_centre": [item and item.pdq_centre for item in found],
            "pdq_quality": [None if item is None else item.quality for item in found],
        }


def sha256_hex(data: bytes) -> str:
    """Return the hex sha256 of an image's bytes."""
    return hashlib.sha256(data).hexdigest()


def image_hashes(pixels: Pixels) -> ImageHashes:
    """Return the hashes of an upright RGB image, uint8 [H, W, 3]."""
    pdq, quality = image_pdq(pixels)
    trimmed = trim_border(pixels)
    pdq_trimmed = pdq if trimmed.shape == pixels.shape else image_pdq(trimmed)[0]
    centre = centre_square(trimmed)
    return ImageHashes(
        pdq, pdq_trimmed, pdq_trimmed if centre.shape == trimmed.shape else image_pdq(centre)[0], quality
    )


def centre_square(pixels: Pixels) -> Pixels:
    """Return the largest square in the middle."""
    height, width = pixels.shape[:2]
    side = min(height, width)
    top, left = (height - side) // 2, (width - side) // 2
    return pixels[top : top + side, left : left + side]


def trim_border(pixels: Pixels) -> Pixels:
    """Return `pixels` without its border of one luminance; at least 16 pixels stay each way.

    A border within the border is cut too: letterbox within pillar box. An even picture is returned whole. Luminance is
    all that PDQ sees, and the colours of a JPEG bleed over 16 pixels.
    """
    luminance = cv2.cvtColor(np.ascontiguousarray(pixels), cv2.COLOR_RGB2GRAY).astype(np.int16)
    cut = (0, 0, 0, 0)
    for number in range(MAX_BORDERS):
        deeper = _cut_border(luminance, cut, INNER_TOLERANCE if number else BORDER_TOLERANCE)
        if deeper == cut:
            break
        cut = deeper
    trimmed = _inside(pixels, cut)
    # All border: there is no picture to find, and a 16 pixel corner would be as good as random.
    if max(trimmed.shape[:2]) <= MIN_TRIMMED_PIXELS < min(pixels.shape[:2]):
        return pixels
    return trimmed


def _inside(pixels: NDArray[Any], cut: Cut) -> NDArray[Any]:
    height, width = pixels.shape[:2]
    return pixels[cut[0] : height - cut[1], cut[2] : width - cut[3]]


def _cut_border(luminance: Luminance, cut: Cut, tolerance: int) -> Cut:
    """Return `cut` with one more border: lines as bright as the first side that begins with an even one."""
    counts, before = list(cut), [-1]
    border: float | None = None
    while counts != before:
        before = list(counts)
        for side, turns in enumerate(SIDES):
            lines = np.rot90(_inside(luminance, (counts[0], counts[1], counts[2], counts[3])), turns)
            spare = lines[: max(0, len(lines) - MIN_TRIMMED_PIXELS)]
            if len(spare) == 0:
                continue
            level = float(np.median(spare[0]))
            if border is None and _is_border(spare[0], level, tolerance):
                border = level
            if border is not None and abs(level - border) <= BORDER_TOLERANCE:
                counts[side] += _border_lines(spare, level)
    return counts[0], counts[1], counts[2], counts[3]


def _border_lines(lines: Luminance, level: float) -> int:
    """Return how many of the first lines are as bright as `level`."""
    count = next((number for number, line in enumerate(lines) if not _is_border(line, level)), len(lines))
    if count in (0, len(lines)):
        return count
    contrasts = [float(np.abs(line - level).mean()) for line in lines[count : count + RINGING_LINES]]
    return count + next(place for place, value in enumerate(contrasts) if value >= RINGING_SHARE * max(contrasts))


def _is_border(line: Luminance, level: float, tolerance: int = BORDER_TOLERANCE) -> bool:
    return float((np.abs(line - level) <= tolerance).mean()) >= BORDER_SHARE


def image_pdq(pixels: Pixels) -> tuple[bytes, int]:
    """Return PDQ of an upright RGB image in its canonical form, 32 bytes, and its quality, 0..100."""
    size = (CANONICAL_PIXELS, CANONICAL_PIXELS)
    canonical = cv2.resize(pixels, size, interpolation=cv2.INTER_AREA)
    bits: NDArray[np.int64]
    bits, quality = pdqhash.compute(np.ascontiguousarray(canonical))
    return np.packbits(bits.astype(np.uint8)).tobytes(), int(quality)
