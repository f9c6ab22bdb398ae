"""What happens to pictures on the web: the copies by which recall is measured.

Each is saved as JPEG 85 and read back, as a copy that is found somewhere would have been.
"""

from collections.abc import Callable

import cv2
import numpy as np
from numpy.typing import NDArray

from headrace.curation.annotate.annotators.hash_variants import crop, turn
from headrace.shards.images.decode import decode_rgb

Pixels = NDArray[np.uint8]
"""An upright RGB image, [H, W, 3]."""

SAVED_QUALITY = 85


def copy_file(pixels: Pixels, kind: str) -> bytes:
    """Return the JPEG of a copy of one of `COPIES`."""
    quality = 30 if kind == "JPEG 30" else SAVED_QUALITY
    changed = np.ascontiguousarray(COPIES[kind](pixels))
    _, data = cv2.imencode(".jpg", cv2.cvtColor(changed, cv2.COLOR_RGB2BGR), [cv2.IMWRITE_JPEG_QUALITY, quality])
    return bytes(data.tobytes())


def copy_of(pixels: Pixels, kind: str) -> Pixels:
    """Return a copy of one of `COPIES` as it is read back."""
    return decode_rgb(copy_file(pixels, kind))


def _bordered(pixels: Pixels) -> Pixels:
    edge = max(1, round(0.08 * max(pixels.shape[:2])))
    framed = cv2.copyMakeBorder(pixels, edge, edge, edge, edge, cv2.BORDER_CONSTANT, value=(255, 255, 255))
    return np.asarray(framed, np.uint8)


def _halved(pixels: Pixels) -> Pixels:
    height, width = pixels.shape[:2]
    size = max(8, width // 2), max(8, height // 2)
    return np.asarray(cv2.resize(pixels, size, interpolation=cv2.INTER_AREA), np.uint8)


def _marked(pixels: Pixels) -> Pixels:
    height, width = pixels.shape[:2]
    written = pixels.copy()
    scale = width / 330
    place = (round(0.05 * width), round(0.55 * height))
    thick = max(1, round(2 * scale))
    cv2.putText(written, "(c) example.com", place, cv2.FONT_HERSHEY_SIMPLEX, scale, (255, 255, 255), thick, cv2.LINE_AA)
    return np.asarray(cv2.addWeighted(pixels, 0.5, written, 0.5, 0), np.uint8)


def _gray(pixels: Pixels) -> Pixels:
    return np.asarray(cv2.cvtColor(cv2.cvtColor(pixels, cv2.COLOR_RGB2GRAY), cv2.COLOR_GRAY2RGB), np.uint8)


# Crops stand off the middle, one third down and two thirds to the right: in the middle they are easier to find.
COPIES: dict[str, Callable[[Pixels], Pixels]] = {
    "JPEG 30": lambda pixels: pixels,
    "half the size": _halved,
    "brighter": lambda pixels: np.clip(pixels.astype(np.float32) * 1.2, 0, 255).astype(np.uint8),
    "gray": _gray,
    "watermark": _marked,
    "white border": _bordered,
    "mirror image": lambda pixels: np.ascontiguousarray(pixels[:, ::-1]),
    "square in the middle": lambda pixels: _square(pixels),
    "crop 2 %": lambda pixels: crop(pixels, 0.98, down=1 / 3, right=2 / 3),
    "crop 5 %": lambda pixels: crop(pixels, 0.95, down=1 / 3, right=2 / 3),
    "crop 10 %": lambda pixels: crop(pixels, 0.9, down=1 / 3, right=2 / 3),
    "turn 3 degrees": lambda pixels: turn(pixels, 3),
    "turn 3 degrees, no corners": lambda pixels: turn(pixels, 3, inside=True),
}


def _square(pixels: Pixels) -> Pixels:
    height, width = pixels.shape[:2]
    side = min(height, width)
    top, left = (height - side) // 2, (width - side) // 2
    return np.ascontiguousarray(pixels[top : top + side, left : left + side])
