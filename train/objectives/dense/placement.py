"""From a picture to the square that a stream delivers of it, and back: for masks and boxes, which no decoder sees.

A window is a function of (seed, position), so whoever knows the position places a mask as the decoder placed the
pixels. Coordinates are continuous: pixel i covers i to i + 1.
"""

# H W of a picture, S side of the square, N boxes as left, top, right, bottom

import numpy as np
from numpy.typing import NDArray

from headrace.pipeline import Mixture
from headrace.pipeline.augment.crop import Window
from headrace.pipeline.augment.views import planned_views

Boxes = NDArray[np.float64]


def refuse_moves(mixture: Mixture) -> None:
    """Raise ValueError if pictures are moved behind their window, where no mask follows them."""
    if planned_views(mixture)[0].augment.rand_augment is not None:
        raise ValueError(
            "mixture.augment.rand_augment moves pixels, which masks and boxes do not follow: leave it out of a run "
            "that learns them; colour_jitter, grayscale, blur and random_erasing leave pixels in their places"
        )


def cut_mask(mask_HW: NDArray[np.generic], window: Window, *, side: int, fill: int) -> NDArray[np.generic]:
    """Return the mask as the window shows it, [S, S]: the nearest pixel's value, `fill` where there is no picture."""
    top, left, height, width = window.inside(side)
    rows = window.top + nearest(height, window.height)
    columns = window.left + nearest(width, window.width)
    if window.flipped:
        columns = columns[::-1]
    square_SS = np.full((side, side), fill, mask_HW.dtype)
    square_SS[top : top + height, left : left + width] = mask_HW[rows[:, None], columns]
    return square_SS


def boxes_in_view(boxes_N4: Boxes, window: Window, *, side: int) -> Boxes:
    """Return boxes of the picture as they lie in the square, cut off at what the window shows."""
    top, left, height, width = window.inside(side)
    across, down = width / window.width, height / window.height
    x_N2 = (boxes_N4[:, 0::2] - window.left) * across
    y_N2 = (boxes_N4[:, 1::2] - window.top) * down
    if window.flipped:
        x_N2 = (width - x_N2)[:, ::-1]
    x_N2, y_N2 = left + np.clip(x_N2, 0, width), top + np.clip(y_N2, 0, height)
    return np.stack([x_N2[:, 0], y_N2[:, 0], x_N2[:, 1], y_N2[:, 1]], axis=1)


def boxes_in_picture(boxes_N4: Boxes, window: Window, *, side: int) -> Boxes:
    """Return boxes of the square as they lie in the picture, cut off at its window: the way back."""
    top, left, height, width = window.inside(side)
    across, down = window.width / width, window.height / height
    x_N2 = np.clip(boxes_N4[:, 0::2] - left, 0, width)
    y_N2 = np.clip(boxes_N4[:, 1::2] - top, 0, height)
    if window.flipped:
        x_N2 = (width - x_N2)[:, ::-1]
    x_N2, y_N2 = window.left + x_N2 * across, window.top + y_N2 * down
    return np.stack([x_N2[:, 0], y_N2[:, 0], x_N2[:, 1], y_N2[:, 1]], axis=1)


def nearest(length: int, of: int) -> NDArray[np.int64]:
    """Return for each of `length` places the one of `of` in which its middle falls."""
    return np.minimum(((np.arange(length) + 0.5) * of / length).astype(np.int64), of - 1)
