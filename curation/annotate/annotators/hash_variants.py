"""PDQ of the mirror image, and of crops and turns: what near_duplicates compares to find copies that were so changed.

A mirror image has another PDQ, and it cannot be had from the hash itself: by the signs of its bits it is 28 bits off
(median of 100 photographs). So it is taken of the picture.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, ClassVar

import cv2
import numpy as np
import pyarrow as pa

from headrace.curation.annotate.annotator import AnnotationBatch, Annotator, Columns, Pixels
from headrace.curation.annotate.annotators.hashes import image_hashes, image_pdq

MIRRORED_COLUMNS = ("pdq_mirrored", "pdq_trimmed_mirrored", "pdq_centre_mirrored")
CROP_SHARE = 0.95
TURN_DEGREES = 2.5
CROP_COLUMNS = tuple(f"pdq_crop_{number}" for number in range(9))
TURN_COLUMNS = tuple(f"pdq_turn_{number}" for number in range(4))
CUT_COLUMNS = (*CROP_COLUMNS, *TURN_COLUMNS)
# A crop of nothing but sky looks like any other.
MIN_QUALITY = 50


@dataclass(frozen=True, kw_only=True, slots=True)
class HashVariantsConfig:
    """Which variants of a picture are hashed."""

    crops: bool = False
    """Also 9 crops of 95 % of each side and 4 turns by 2.5 degrees: 25 ms more an image."""


class HashVariants(Annotator):
    """PDQ of the mirror image, and of crops and turns.

    Mirror images whole, without border, and of the square in the middle, as `hashes` has them of the picture. Crops and
    turns of low PDQ quality are null.
    """

    name: ClassVar[str] = "hash_variants"
    version: ClassVar[int] = 1
    config_type: ClassVar[type[Any]] = HashVariantsConfig
    needs_pixels: ClassVar[bool] = True
    hint: ClassVar[str] = "add annotate.hash_variants, `{crops: true}` for crops and turns, and run `headrace annotate`"
    not_carried: ClassVar[frozenset[str]] = frozenset((*MIRRORED_COLUMNS, *CUT_COLUMNS))
    columns: ClassVar[pa.Schema] = pa.schema([(name, pa.binary(32)) for name in (*MIRRORED_COLUMNS, *CUT_COLUMNS)])

    config: HashVariantsConfig

    def schema(self) -> pa.Schema:
        chosen = (*MIRRORED_COLUMNS, *(CUT_COLUMNS if self.config.crops else ()))
        return pa.schema([self.columns.field(name) for name in chosen])

    def settings(self) -> dict[str, Any]:
        return {"crops": self.config.crops}

    def annotate(self, batch: AnnotationBatch) -> Columns:
        result: Columns = {name: [None] * len(batch.keys) for name in self.schema().names}
        for row, pixels in enumerate(batch.images):
            if pixels is None:
                continue
            mirrored = image_hashes(np.ascontiguousarray(pixels[:, ::-1]))
            found = zip(MIRRORED_COLUMNS, (mirrored.pdq, mirrored.pdq_trimmed, mirrored.pdq_centre), strict=True)
            for name, value in (*found, *(_cut_hashes(pixels) if self.config.crops else ())):
                result[name][row] = value
        return result


def _cut_hashes(pixels: Pixels) -> Iterator[tuple[str, bytes | None]]:
    for name, cut in zip(CUT_COLUMNS, (*_crops(pixels), *_turns(pixels)), strict=True):
        pdq, quality = image_pdq(cut)
        yield name, pdq if quality >= MIN_QUALITY else None


def _crops(pixels: Pixels) -> Iterator[Pixels]:
    for down in (0.0, 0.5, 1.0):
        for right in (0.0, 0.5, 1.0):
            yield crop(pixels, CROP_SHARE, down=down, right=right)


def _turns(pixels: Pixels) -> Iterator[Pixels]:
    for degrees in (-TURN_DEGREES, TURN_DEGREES):
        yield turn(pixels, degrees)
        yield turn(pixels, degrees, inside=True)


def crop(pixels: Pixels, share: float, *, down: float, right: float) -> Pixels:
    """Return a window of `share` of each side; `down` and `right` of the room left go before it."""
    height, width = pixels.shape[:2]
    rows, columns = max(1, round(height * share)), max(1, round(width * share))
    top, left = round((height - rows) * down), round((width - columns) * right)
    return np.ascontiguousarray(pixels[top : top + rows, left : left + columns])


def turn(pixels: Pixels, degrees: float, *, inside: bool = False) -> Pixels:
    """Return the image turned about its middle: with black corners, or cut to what has none."""
    height, width = pixels.shape[:2]
    matrix = cv2.getRotationMatrix2D((width / 2, height / 2), degrees, 1.0)
    mode = cv2.BORDER_REFLECT if inside else cv2.BORDER_CONSTANT
    turned = cv2.warpAffine(pixels, matrix, (width, height), flags=cv2.INTER_LINEAR, borderMode=mode)
    if not inside:
        return np.asarray(turned, np.uint8)
    angle = np.deg2rad(abs(degrees))
    aspect = max(width / height, height / width)
    return crop(turned, float(1 / (np.cos(angle) + aspect * np.sin(angle))), down=0.5, right=0.5)
