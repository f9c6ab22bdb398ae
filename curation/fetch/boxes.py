"""The boxes that a list gives of an image, such as `face_bboxes` of DataComp: [[x0, y0, x1, y1], ...].

They are fractions of width and height. DataComp's were found on pixels as stored, without the Exif orientation; what is
stored here is upright, so they turn with it.
"""

import json
import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from headrace.curation.fetch.errors import FetchError
from headrace.text import shown

MAX_BOXES = 10_000

Box = tuple[float, float, float, float]


def parse_boxes(text: str | None) -> tuple[Box, ...]:
    """Return the boxes of one row; none where the list says nothing. Raises FetchError `bad-boxes`.

    A row whose boxes cannot be read has no image: what they hide would be published.
    """
    if text is None or not text.strip():
        return ()
    try:
        found = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise FetchError("bad-boxes", f"the boxes are no JSON: {shown(text)}") from error
    if found is None:
        return ()
    if not isinstance(found, list) or len(found) > MAX_BOXES:
        raise FetchError("bad-boxes", f"the boxes are no list of at most {MAX_BOXES}: {shown(text)}")
    return tuple(_box(item) for item in found)


def _box(item: object) -> Box:
    if isinstance(item, list) and len(item) == 4 and all(type(value) in (int, float) for value in item):
        x0, y0, x1, y1 = (float(value) for value in item)
        inside = all(-1 <= value <= 2 for value in (x0, y0, x1, y1))  # a detector may reach over the rim
        if inside and x0 <= x1 and y0 <= y1:
            return x0, y0, x1, y1
    raise FetchError("bad-boxes", f"not [x0, y0, x1, y1] as fractions of width and height: {shown(item)}")


def turned(boxes: Sequence[Box], orientation: int) -> list[Box]:
    """Return boxes of the pixels as stored as boxes of the upright image (Exif orientation 1 to 8)."""
    found = []
    for x0, y0, x1, y1 in boxes:
        corners = [_turned(x, y, orientation) for x, y in ((x0, y0), (x1, y1))]
        (a, b), (c, d) = corners
        found.append((min(a, c), min(b, d), max(a, c), max(b, d)))
    return found


def _turned(x: float, y: float, orientation: int) -> tuple[float, float]:
    places = {
        1: (x, y),
        2: (1 - x, y),
        3: (1 - x, 1 - y),
        4: (x, 1 - y),
        5: (y, x),
        6: (1 - y, x),
        7: (1 - y, 1 - x),
        8: (y, 1 - x),
    }
    return places[orientation]


def cut_to(pixels: NDArray[np.uint8], boxes: Sequence[Box]) -> NDArray[np.uint8]:
    """Return the part of an image [H, W, 3] that holds all boxes. Raises FetchError `bad-boxes` if there is none."""
    height, width = pixels.shape[:2]
    left = max(0, math.floor(min(box[0] for box in boxes) * width))
    top = max(0, math.floor(min(box[1] for box in boxes) * height))
    right = min(width, math.ceil(max(box[2] for box in boxes) * width))
    bottom = min(height, math.ceil(max(box[3] for box in boxes) * height))
    if right <= left or bottom <= top:
        raise FetchError("bad-boxes", f"the boxes hold nothing of an image of {width} x {height}")
    return pixels[top:bottom, left:right]
