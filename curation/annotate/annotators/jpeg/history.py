"""The JPEG quality that a picture has been through, read off its pixels.

JPEG rounds each frequency of an 8 x 8 block to multiples of a step. The multiples still show after the picture was
saved again, at a higher quality or without loss, in colour or gray, as long as the grid of blocks lies where it lay.
So of two copies of one size the one that was saved once can be told from the one that was saved again at 98.
Source: Z. Fan and R. de Queiroz, "Identification of bitmap compression history", IEEE TIP 12 (2), 2003.
"""

from functools import cache

import cv2
import numpy as np
from numpy.typing import NDArray

from headrace.curation.annotate.annotator import Pixels

# Luminance steps of quality 50, row by row. Source: ITU-T T.81, table K.1.
STEPS_AT_50 = np.array(
    [
        *(16, 11, 10, 16, 24, 40, 51, 61, 12, 12, 14, 19, 26, 58, 60, 55, 14, 13, 16, 24, 40, 57, 69, 56),
        *(14, 17, 22, 29, 51, 87, 80, 62, 18, 22, 37, 56, 68, 109, 103, 77, 24, 35, 55, 64, 81, 104, 113, 92),
        *(49, 64, 78, 87, 103, 121, 120, 101, 72, 92, 95, 98, 112, 100, 103, 99),
    ],
    np.float64,
)
LOSSLESS = 100
MAX_BLOCKS = 1024
MIN_BLOCKS = 16
# Steps that are looked for; smaller ones drown in the rounding of pixels to whole numbers.
STEPS = np.arange(3, 65)
# Coefficients are counted in bins of half a level.
BINS_PER_LEVEL, MAX_LEVEL = 2, 150
# A step of a frequency is believed from this mean of cos(2 pi coefficient / step) on, over at least this many
# coefficients outside the middle, which fits any step. Measured on 50 photographs of quality 72 to 96, saved again in
# 13 ways: half of those of 75 are found as 75, 80 % within 3, whatever they were saved as later.
MIN_FIT, MIN_COEFFICIENTS = 0.45, 64
MIDDLE = 0.6
MIN_FREQUENCIES = 4


def coefficients_of(pixels: Pixels) -> NDArray[np.float32]:
    """Return coefficients [N, 64] of luminance of at most MAX_BLOCKS blocks of stored (not turned) RGB pixels."""
    return _blocks(pixels) @ _transform()


def picture_quality(coefficients: NDArray[np.float32]) -> int:
    """Return the lowest JPEG quality, 1 to 100, that coefficients [N, 64] show the steps of; 100: none."""
    if len(coefficients) < MIN_BLOCKS:
        return LOSSLESS
    reach = BINS_PER_LEVEL * MAX_LEVEL
    bins = np.clip(np.rint(coefficients * BINS_PER_LEVEL), -reach, reach).astype(np.int64) + reach
    width = 2 * reach + 1
    places = bins + np.arange(64) * width
    counts = np.bincount(places.ravel(), minlength=64 * width).reshape(64, width)[1:].astype(np.float64)
    waves, outside = _waves()
    num = counts @ outside
    fit = np.where(num >= MIN_COEFFICIENTS, counts @ waves / np.maximum(num, 1), -1)
    known = fit.max(axis=1) > -1
    ratios = (_steps(fit) / STEPS_AT_50[1:])[known]
    return quality_of_scale(float(np.median(ratios))) if len(ratios) >= MIN_FREQUENCIES else LOSSLESS


def table_quality(steps: NDArray[np.float64]) -> int:
    """Return the quality, 1 to 100, whose luminance table is about as coarse as these 64 steps, in any order."""
    return quality_of_scale(float(np.sum(steps) / STEPS_AT_50.sum()))


def quality_of_scale(scale: float) -> int:
    """Return the quality of a table that is `scale` times that of 50. Source: libjpeg, jpeg_quality_scaling."""
    if scale <= 0:
        return LOSSLESS
    return int(np.clip(round(100 - 50 * scale if scale <= 1 else 50 / scale), 1, LOSSLESS))


def _steps(fit: NDArray[np.float64]) -> NDArray[np.int64]:
    """Return for each frequency the largest step that stands out from its neighbours; 0 if none does."""
    around = np.pad(fit, ((0, 0), (1, 1)), constant_values=-1)
    peaks = (fit >= around[:, :-2]) & (fit >= around[:, 2:]) & (fit >= MIN_FIT)
    return np.asarray((peaks * STEPS).max(axis=1), np.int64)


def _blocks(pixels: Pixels) -> NDArray[np.float32]:
    """Return at most MAX_BLOCKS blocks of luminance [N, 64], evenly spaced."""
    down, across = pixels.shape[0] // 8, pixels.shape[1] // 8
    chosen = np.linspace(0, down * across - 1, min(MAX_BLOCKS, down * across)).astype(np.int64)
    whole = pixels[: down * 8, : across * 8].reshape(down, 8, across, 8, 3)
    blocks = whole[chosen // max(1, across), :, chosen % max(1, across)]
    luminance = 0.299 * blocks[..., 0] + 0.587 * blocks[..., 1] + 0.114 * blocks[..., 2]
    return np.asarray(luminance, np.float32).reshape(len(blocks), 64)


@cache
def _transform() -> NDArray[np.float32]:
    """Return the matrix that takes a block, row by row, to its coefficients."""
    basis = cv2.dct(np.eye(8, dtype=np.float32), flags=cv2.DCT_ROWS)
    return np.asarray(np.kron(basis, basis), np.float32)


@cache
def _waves() -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return for each bin and step: the cosine, 0 in the middle; and 1 outside the middle."""
    levels = np.arange(-BINS_PER_LEVEL * MAX_LEVEL, BINS_PER_LEVEL * MAX_LEVEL + 1)[:, None] / BINS_PER_LEVEL
    outside = (np.abs(levels) > MIDDLE * STEPS).astype(np.float64)
    # The last bins hold whatever lies beyond, so they fit nothing.
    outside[[0, -1]] = 0
    return np.cos(2 * np.pi * levels / STEPS) * outside, outside
