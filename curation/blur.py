"""Blur face boxes so that the faces cannot be recognised.

For each box: grow it by 0.1 of its longer side d on every side, blur with sigma = 0.1 d, blend through a mask blurred
with the same sigma. Pixels more than 4 sigma outside the grown box stay as they are, bit for bit. A library that is
given a kernel size and no sigma derives a sigma of its own, half of what was meant; here sigma comes first and the
kernel follows. Source: Yang et al. 2021, "A study of face obfuscation in ImageNet"; DataComp, arXiv:2304.14108, section
3.2. They take one sigma from the largest box of the image; here each box has its own.
"""

import math
from collections.abc import Sequence

import cv2
import numpy as np
from numpy.typing import NDArray

SIGMA_PER_SIDE = 0.1
GROWTH_PER_SIDE = 0.1
TRUNCATE_SIGMAS = 4
# A Gaussian this many pixels wide is sampled so finely that a smaller image loses nothing.
WORKING_SIGMA = 8

Box = tuple[float, float, float, float]


def blur_boxes(image: NDArray[np.uint8], boxes: Sequence[Sequence[float]]) -> NDArray[np.uint8]:
    """Return a copy of `image` [H, W, 3] with every box blurred.

    A box is x0, y0, x1, y1 as fractions of the width and height; parts outside the image are ignored.
    Raises ValueError for a box that is not four finite numbers, as its face would be published.
    """
    result = image.copy()
    for box in boxes:
        if len(box) != 4 or not all(math.isfinite(value) for value in box):
            raise ValueError(f"face box {list(box)} is not four finite numbers")
        x0, x1 = sorted((box[0], box[2]))
        y0, y1 = sorted((box[1], box[3]))
        _blur_box(result, (x0, y0, x1, y1))
    return result


def _blur_box(image: NDArray[np.uint8], box: Box) -> None:
    height, width = image.shape[:2]
    x0, x1 = (min(max(value, 0.0), 1.0) * width for value in (box[0], box[2]))
    y0, y1 = (min(max(value, 0.0), 1.0) * height for value in (box[1], box[3]))
    side = max(x1 - x0, y1 - y0)
    if side <= 0:
        return
    sigma, growth = max(SIGMA_PER_SIDE * side, 0.5), GROWTH_PER_SIDE * side
    rows, row_weights = _fade(y0 - growth, y1 + growth, height, sigma)
    columns, column_weights = _fade(x0 - growth, x1 + growth, width, sigma)
    region = image[rows, columns]
    pixels = region.astype(np.float32)
    blended = pixels + (gaussian(pixels, sigma) - pixels) * np.outer(row_weights, column_weights)[:, :, None]
    region[:] = np.clip(np.rint(blended), 0, 255).astype(np.uint8)


def _fade(start: float, stop: float, size: int, sigma: float) -> tuple[slice, NDArray[np.float32]]:
    """Return the part of an axis that a box touches, and there the blurred mask (a box's mask is a product of two).

    The mask fades over one kernel radius; the pixels at its rim are averaged over another.
    """
    first, last = max(0, math.floor(start)), min(size, math.ceil(stop))
    reach = 2 * math.ceil(TRUNCATE_SIGMAS * sigma)
    part = slice(max(0, first - reach), min(size, last + reach))
    mask = np.zeros((part.stop - part.start, 1), np.float32)
    mask[first - part.start : last - part.start] = 1
    blurred = cv2.sepFilter2D(
        mask, cv2.CV_32F, np.ones(1, np.float32), _kernel(sigma), borderType=cv2.BORDER_REFLECT_101
    )
    return part, np.asarray(blurred, np.float32).reshape(-1)


def gaussian(values: NDArray[np.float32], sigma: float) -> NDArray[np.float32]:
    """Return `values` [H, W, C] filtered by a Gaussian of `sigma` pixels, borders mirrored.

    A wide one works on a smaller image, where it is still WORKING_SIGMA wide: the cost per pixel stays the same.
    """
    height, width = values.shape[:2]
    if sigma <= 2 * WORKING_SIGMA:
        return _filter(values, sigma, sigma)
    factor = sigma / WORKING_SIGMA
    small_height, small_width = max(1, round(height / factor)), max(1, round(width / factor))
    small = np.asarray(cv2.resize(values, (small_width, small_height), interpolation=cv2.INTER_AREA), np.float32)
    # Averaging over one small pixel adds 1/12 of a pixel to the variance, linear interpolation back 1/6.
    sigma_x, sigma_y = (
        math.sqrt((sigma * ratio) ** 2 - 0.25) for ratio in (small_width / width, small_height / height)
    )
    blurred = _filter(small, sigma_x, sigma_y)
    return np.asarray(cv2.resize(blurred, (width, height), interpolation=cv2.INTER_LINEAR), np.float32)


def _filter(values: NDArray[np.float32], sigma_x: float, sigma_y: float) -> NDArray[np.float32]:
    kernels = _kernel(sigma_x), _kernel(sigma_y)
    return np.asarray(cv2.sepFilter2D(values, cv2.CV_32F, *kernels, borderType=cv2.BORDER_REFLECT_101), np.float32)


def _kernel(sigma: float) -> NDArray[np.float32]:
    size = 2 * math.ceil(TRUNCATE_SIGMAS * sigma) + 1
    return np.asarray(cv2.getGaussianKernel(size, sigma, cv2.CV_32F), np.float32)
