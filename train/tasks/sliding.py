"""A picture seen through windows that overlap by a third, as mmsegmentation's `slide` mode.

The short side is resized to the window's, the ratio kept; windows of the trained side go over the picture by two
thirds of it, and the last ones end at its edge. Where they overlap their logits are averaged.
"""

# C classes, H W of the resized picture, S side of a window, N windows

from collections.abc import Callable, Iterator

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from torch.nn import functional

from headrace.pipeline.augment.config import Interpolation
from headrace.shards.dataset import FAST_COLUMNS, open_dataset

MAX_RATIO = 4
"""Of the resized picture: a longer one is made smaller, as by mmsegmentation's limit of 2048 x 512."""
WINDOWS_PER_BATCH = 8
FILTERS = {"bilinear": Image.Resampling.BILINEAR, "bicubic": Image.Resampling.BICUBIC}


def resized_size(height: int, width: int, side: int) -> tuple[int, int]:
    """Return height and width of the picture that windows go over."""
    scale = min(side / min(height, width), MAX_RATIO * side / max(height, width))
    return max(1, round(height * scale)), max(1, round(width * scale))


def window_corners(height: int, width: int, side: int) -> list[tuple[int, int]]:
    """Return top and left of each window over a picture of this size; each pixel lies in one at least."""
    return [(top, left) for top in _starts(height, side) for left in _starts(width, side)]


def _starts(length: int, side: int) -> list[int]:
    stride = stride_of(side)
    last = max(0, length - side)
    return [min(number * stride, last) for number in range(-(-last // stride) + 1)]


def stride_of(side: int) -> int:
    """Return by how many pixels a window is moved."""
    return max(1, side * 2 // 3)


def resized(pixels_HW3: NDArray[np.uint8], side: int, interpolation: Interpolation) -> NDArray[np.uint8]:
    """Return a picture in the size that windows go over, filled up with black to a window at least."""
    height, width = resized_size(pixels_HW3.shape[0], pixels_HW3.shape[1], side)
    small = Image.fromarray(pixels_HW3).resize((width, height), FILTERS[interpolation])
    filled = np.zeros((max(height, side), max(width, side), 3), np.uint8)
    filled[:height, :width] = np.asarray(small)
    return filled


def sliding_logits(
    logits_of: Callable[[NDArray[np.uint8]], Tensor], pixels_HW3: NDArray[np.uint8], side: int
) -> Tensor:
    """Return logits [C, H, W], the mean over the windows that show a pixel.

    `logits_of` takes windows uint8 [N, S, S, 3] and returns logits [N, C, S, S].
    """
    height, width = pixels_HW3.shape[:2]
    corners = window_corners(height, width, side)
    total_CHW, times_HW = torch.empty(0), torch.zeros(height, width)
    for first in range(0, len(corners), WINDOWS_PER_BATCH):
        some = corners[first : first + WINDOWS_PER_BATCH]
        logits_NCSS = logits_of(
            np.stack([pixels_HW3[top : top + side, left : left + side] for top, left in some])
        ).float()
        if not first:
            total_CHW = logits_NCSS.new_zeros(logits_NCSS.shape[1], height, width)
            times_HW = times_HW.to(logits_NCSS.device)
        for (top, left), logits_CSS in zip(some, logits_NCSS, strict=True):
            total_CHW[:, top : top + side, left : left + side] += logits_CSS
            times_HW[top : top + side, left : left + side] += 1
    return total_CHW / times_HW


def sliding_choices(
    logits_of: Callable[[NDArray[np.uint8]], Tensor],
    pixels_HW3: NDArray[np.uint8],
    side: int,
    interpolation: Interpolation,
) -> Tensor:
    """Return the best class of each of the picture's own pixels, int64 of its height and width."""
    size = (pixels_HW3.shape[0], pixels_HW3.shape[1])
    height, width = resized_size(*size, side)
    logits_CHW = sliding_logits(logits_of, resized(pixels_HW3, side, interpolation), side)[:, :height, :width]
    whole = functional.interpolate(logits_CHW[None], size=size, mode="bilinear", align_corners=False)
    return whole[0].argmax(dim=0)


def count_windows(url: str, side: int) -> tuple[int, int]:
    """Return how many windows a dataset takes, and of how many pictures: those whose sizes its index knows."""
    windows = pictures = 0
    for height, width in _sizes(url):
        resized_height, resized_width = resized_size(height, width, side)
        windows += len(_starts(resized_height, side)) * len(_starts(resized_width, side))
        pictures += 1
    return windows, pictures


def _sizes(url: str) -> Iterator[tuple[int, int]]:
    dataset = open_dataset(url)
    for shard, facts in enumerate(dataset.shards):
        if facts.num_samples:
            table, names = dataset.index_part(shard, [*FAST_COLUMNS, "width", "height"])
            if {"width", "height"} <= set(names):
                sides = zip(table.column("height").to_pylist(), table.column("width").to_pylist(), strict=True)
                # Turned or not: as many windows go over a picture on its side.
                yield from ((height, width) for height, width in sides if height and width)
