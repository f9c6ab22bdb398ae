"""Shrink a picture by the mean over area, with weights in whole numbers and one rounding: the same bytes everywhere.

A small C extension (`native/area.c`) does it in less than half of the time of OpenCV's INTER_AREA, which adds up in
single precision: of the values of photographs 0.02 % differ, by one level. Where there was no compiler NumPy
gives the same bytes, some forty times slower.
"""

import importlib
import logging
from collections.abc import Callable
from functools import cache

import numpy as np
from numpy.typing import NDArray

Pixels = NDArray[np.uint8]

log = logging.getLogger(__name__)

MOST_STORED, MOST_OUT = 8_421_504, 32_767
"""The longest sides that the extension's numbers hold. NumPy refuses longer ones too: no row may hang on a compiler."""


def shrink(pixels: Pixels, height: int, width: int) -> Pixels:
    """Return uint8 [H, W, 4] as [height, width, 4], neither side longer than before.

    Raises ValueError otherwise, and for sides over `MOST_STORED` before or `MOST_OUT` after.
    """
    fits = 1 <= height <= pixels.shape[0] and 1 <= width <= pixels.shape[1] and pixels.shape[2] == 4
    if not fits or max(pixels.shape[:2]) > MOST_STORED or max(height, width) > MOST_OUT:
        raise ValueError(f"pixels {pixels.shape} cannot be shrunk to ({height}, {width}, 4)")
    out = np.empty((height, width, 4), np.uint8)
    stored = np.ascontiguousarray(pixels)
    _shrinker()(stored, stored.shape[:2], out, (height, width))
    return out


def describe_shrinker() -> str:
    """Return what shrinks pictures here, for people."""
    return "NumPy, slowly (the C extension was not built)" if _shrinker() is shrink_by_numpy else "the C extension"


@cache
def _shrinker() -> Callable[[Pixels, tuple[int, ...], Pixels, tuple[int, ...]], None]:
    try:
        extension = importlib.import_module("headrace.shards.images._area")
    except ImportError:
        log.info("pictures are shrunk slowly: install headrace again where there is a C compiler")
        return shrink_by_numpy
    found: Callable[[Pixels, tuple[int, ...], Pixels, tuple[int, ...]], None] = extension.shrink
    return found


def shrink_by_numpy(stored: Pixels, size: tuple[int, ...], out: Pixels, out_size: tuple[int, ...]) -> None:
    """Write what the extension would: `stored` [H, W, 4] of `size` to `out`, of `out_size`."""
    (height, width), (out_height, out_width) = size, out_size
    area = height * width
    # A pixel of the answer is `width` units wide, a stored one `out_width`.
    columns, units = np.divmod(np.arange(out_width + 1) * width, out_width)
    for row in range(out_height):
        first, end = row * height // out_height, -(-(row + 1) * height // out_height)
        above = np.arange(first, end) * out_height
        weights = np.minimum(above + out_height, (row + 1) * height) - np.maximum(above, row * height)
        sums = np.einsum("r,rwc->wc", weights, stored[first:end])
        before = np.concatenate([np.zeros((1, 4), np.int64), np.cumsum(sums, axis=0)])
        ends = out_width * before[columns] + units[:, None] * sums[np.minimum(columns, width - 1)]
        out[row] = (2 * np.diff(ends, axis=0) + area) // (2 * area)
