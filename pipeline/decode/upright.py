"""Windows are upright, pixels are as stored: where a window lies in the stored picture, and turning what was cut."""

import numpy as np

from headrace.pipeline.augment.crop import Window
from headrace.pipeline.decode.resize import Inside, Span
from headrace.shards.images.decode import apply_orientation

TRANSPOSED, MIRRORED, FLIPPED = (5, 6, 7, 8), (2, 3, 6, 7), (3, 4, 7, 8)
"""EXIF orientations, in the order in which a stored picture is turned: swapped axes, then left-right, then up-down."""


def stored_window(window: Window, size: tuple[int, int], orientation: int) -> Window:
    """Return where a window of the upright picture of `size` (height, width) lies in the stored one."""
    top, left, height, width = window[:4]
    if orientation in FLIPPED:
        top = size[0] - top - height
    if orientation in MIRRORED:
        left = size[1] - left - width
    if orientation in TRANSPOSED:
        top, left, height, width = left, top, width, height
    return window._replace(top=top, left=left, height=height, width=width)


def turned(span: Span, orientation: int) -> Span:
    """Return pixels as stored, upright."""
    if orientation == 1:
        return span
    rows = span.buffer[: span.height * span.row_bytes].reshape(span.height, span.row_bytes)
    # A pixel is one number here: moved at once.
    pixels = np.ascontiguousarray(rows[:, : 4 * span.width]).view(np.uint32)[..., None]
    upright = apply_orientation(pixels, orientation)  # type: ignore[arg-type]
    height, width = upright.shape[:2]
    return Span(upright.reshape(-1).view(np.uint8), 4 * width, height, width, _turned_inside(span, orientation))


def _turned_inside(span: Span, orientation: int) -> Inside | None:
    if span.inside is None:
        return None
    top, left, height, width = span.inside
    size = (span.height, span.width)
    if orientation in TRANSPOSED:
        top, left, height, width, size = left, top, width, height, size[::-1]
    if orientation in MIRRORED:
        left = size[1] - left - width
    if orientation in FLIPPED:
        top = size[0] - top - height
    return Inside(top, left, height, width)
