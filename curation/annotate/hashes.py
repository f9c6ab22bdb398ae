"""sha256 of the bytes as fetched, and PDQ of the picture in its canonical form.

PDQ is taken of the image squeezed to 256 x 256 by area averaging, so that copies of other sizes meet (reference:
resize to 256 was found in 82 % of cases without, 100 % with, at distance 20), and once more after a uniform border is
cut. The one thing a reader would get wrong: hashes are comparable only if all come from `image_hashes`, and
face blurring moves them, so they are taken before it.
"""

import hashlib
from dataclasses import dataclass
from typing import Any, ClassVar

import cv2
import numpy as np
import pdqhash
import pyarrow as pa
from numpy.typing import NDArray

from headrace.curation.annotate.protocol import Batch, Columns, Pixels

CANONICAL_PIXELS = 256
MIN_TRIMMED_PIXELS = 16
# A line belongs to the border if 98 % of its pixels differ from the border's colour by at most this in every channel.
BORDER_TOLERANCE = 16
BORDER_SHARE = 0.98
# Beside an edge JPEG rings, in one block of 8 lines or two: the lines there that differ less than a fifth as much as
# the strongest one are border too. 300 padded photographs (white, black, red; quality 75): 97.6 % within 20 bits and
# 99.3 % within 31, without this 94.2 and 99.0; padded and resized 95.9 and 98.3, without 88.8 and 98.3.
RINGING_LINES = 8
RINGING_SHARE = 0.2


@dataclass(frozen=True, kw_only=True, slots=True)
class HashesConfig:
    """sha256 and PDQ. Nothing to set: hashes of other settings could not be compared."""


@dataclass(frozen=True, slots=True)
class ImageHashes:
    """PDQ of one image, 32 bytes each; quality 0..100, where Meta advises to ignore under 50."""

    pdq: bytes
    pdq_trimmed: bytes
    quality: int


class Hashes:
    """sha256 is there even for an image that does not decode."""

    name: ClassVar[str] = "hashes"
    version: ClassVar[int] = 1
    needs_pixels: ClassVar[bool] = True
    columns: ClassVar[pa.Schema] = pa.schema(
        [
            ("sha256", pa.string()),
            ("pdq", pa.binary(32)),
            ("pdq_trimmed", pa.binary(32)),
            ("pdq_quality", pa.int16()),
        ]
    )

    def __init__(self, config: HashesConfig) -> None:
        self.config = config

    def settings(self) -> dict[str, Any]:
        return {}

    def files(self) -> dict[str, str]:
        return {}

    def annotate(self, batch: Batch) -> Columns:
        found = [None if pixels is None else image_hashes(pixels) for pixels in batch.images]
        return {
            "sha256": list(batch.sha256),
            "pdq": [item and item.pdq for item in found],
            "pdq_trimmed": [item and item.pdq_trimmed for item in found],
            "pdq_quality": [None if item is None else item.quality for item in found],
        }


def sha256_hex(data: bytes) -> str:
    """Return the hex sha256 of an image's bytes."""
    return hashlib.sha256(data).hexdigest()


def image_hashes(pixels: Pixels) -> ImageHashes:
    """Return the hashes of an upright RGB image, uint8 [H, W, 3]."""
    pdq, quality = _pdq(pixels)
    trimmed = trim_border(pixels)
    return ImageHashes(pdq, pdq if trimmed.shape == pixels.shape else _pdq(trimmed)[0], quality)


def trim_border(pixels: Pixels) -> Pixels:
    """Return `pixels` without the border of one colour on each side; at least 16 pixels stay each way.

    Letterbox within pillar box: rows, then columns, then rows again. A picture of one colour is returned whole.
    """
    trimmed = pixels
    for axis in (0, 1, 0):
        trimmed = _trim_axis(trimmed, axis)
    # All border: there is no picture to find, and a 16 pixel corner would be as good as random.
    if max(trimmed.shape[:2]) <= MIN_TRIMMED_PIXELS < min(pixels.shape[:2]):
        return pixels
    return trimmed


def _trim_axis(pixels: Pixels, axis: int) -> Pixels:
    lines = pixels if axis == 0 else pixels.transpose(1, 0, 2)
    spare = max(0, lines.shape[0] - MIN_TRIMMED_PIXELS)
    first = _border_lines(lines[:spare])
    last = _border_lines(lines[::-1][: spare - first])
    stop = lines.shape[0] - last
    return pixels[first:stop] if axis == 0 else pixels[:, first:stop]


def _border_lines(lines: Pixels) -> int:
    """Return how many of the first lines are of the colour of the first one."""
    if len(lines) == 0:
        return 0
    colour = np.median(lines[0], axis=0).astype(np.int16)
    count = next((number for number, line in enumerate(lines) if not _is_border(line, colour)), len(lines))
    if count in (0, len(lines)):
        return count
    contrasts = [float(np.abs(line - colour).mean()) for line in lines[count : count + RINGING_LINES]]
    return count + next(place for place, value in enumerate(contrasts) if value >= RINGING_SHARE * max(contrasts))


def _is_border(line: Pixels, colour: NDArray[np.int16]) -> bool:
    near = (np.abs(line - colour) <= BORDER_TOLERANCE).all(axis=1)
    return float(near.mean()) >= BORDER_SHARE


def _pdq(pixels: Pixels) -> tuple[bytes, int]:
    size = (CANONICAL_PIXELS, CANONICAL_PIXELS)
    canonical = cv2.resize(pixels, size, interpolation=cv2.INTER_AREA)
    bits: NDArray[np.int64]
    bits, quality = pdqhash.compute(np.ascontiguousarray(canonical))
    return np.packbits(bits.astype(np.uint8)).tobytes(), int(quality)
