"""Crop windows and flips as pure functions of (seed, position, view).

The generator is Philox (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", 2011) with the position as
counter, so any decoder on any rank gets the same window. Windows are in upright coordinates, after EXIF orientation.
"""

import math
import threading
from functools import cache
from typing import Any, NamedTuple

import numpy as np

from headrace.pipeline.augment.config import Augment, Interpolation

TRIES = 10
DRAWS = 1 + 4 * TRIES
MASK_64 = 2**64 - 1
BLOCKS_PER_POSITION = 16  # Philox gives 4 numbers a block; 16 leaves room for later parameters


class Window(NamedTuple):
    """The part of an upright picture that is resized to the square, and whether it is then mirrored."""

    top: int
    left: int
    height: int
    width: int
    flipped: bool
    interpolation: Interpolation = "bilinear"
    fill: int | None = None
    """None: the window is stretched over the square. Else it keeps its ratio in the middle, this level beside it."""
    span: int = 0
    """With `fill`: pixels of the picture that the square's side stands for; 0 = the longer side of the window."""

    def inside(self, side: int) -> tuple[int, int, int, int]:
        """Return where in a square of `side` it comes to lie: top, left, height, width."""
        if self.fill is None:
            return 0, 0, side, side
        longest = self.span or max(self.height, self.width)
        height, width = (max(1, round(length * side / longest)) for length in (self.height, self.width))
        return (side - height) // 2, (side - width) // 2, height, width


def choose_window(augment: Augment, draws: list[float], height: int, width: int) -> Window:
    """Return the window of one picture from its `draws`."""
    flipped = augment.flip and draws[0] < 0.5
    if augment.crop == "pad":
        return Window(0, 0, height, width, flipped, augment.interpolation, augment.pad_value)
    if augment.crop == "scale_jitter":
        return _jittered_window(augment, draws, height, width, flipped)
    if augment.crop == "squash":
        h, w = (max(1, round(length * augment.center_fraction)) for length in (height, width))
        return Window((height - h) // 2, (width - w) // 2, h, w, flipped, augment.interpolation)
    if augment.crop == "center":
        side = max(1, round(min(height, width) * augment.center_fraction))
        return Window((height - side) // 2, (width - side) // 2, side, side, flipped, augment.interpolation)
    window = _random_window(augment, draws, height, width)
    return window._replace(flipped=flipped, interpolation=augment.interpolation)


def position_draws(key: int, position: int, number: int = DRAWS) -> list[float]:
    """Return the numbers in [0, 1) that belong to a position under `key`, which is made of seed and view."""
    raw = _of_this_thread().at(key, position * BLOCKS_PER_POSITION).random_raw(number)
    draws: list[float] = ((raw >> np.uint64(11)) * 2.0**-53).tolist()
    return draws


class _Generator(threading.local):
    """numpy's Philox, one a thread: a new one asks the system for randomness that is never used, 5 of its 9 us."""

    def __init__(self) -> None:
        self._philox = np.random.Philox(key=0)
        self._state: Any = self._philox.state

    def at(self, key: int, counter: int) -> np.random.Philox:
        """Return it as a new one of this key and counter would be."""
        numbers = self._state["state"]
        numbers["key"][:] = key & MASK_64, key >> 64
        numbers["counter"][:2] = counter & MASK_64, counter >> 64
        self._philox.state = self._state
        return self._philox


@cache
def _of_this_thread() -> _Generator:
    return _Generator()


def _jittered_window(augment: Augment, draws: list[float], height: int, width: int, flipped: bool) -> Window:
    """Resize the short side to a drawn share of the square, then cut a square of it, or fill up what is missing."""
    low, high = augment.jitter
    span = max(1, round(min(height, width) / (low + draws[1] * (high - low))))
    h, w = min(span, height), min(span, width)
    top, left = int(draws[2] * (height - h + 1)), int(draws[3] * (width - w + 1))
    return Window(top, left, h, w, flipped, augment.interpolation, augment.pad_value, span)


def _random_window(augment: Augment, draws: list[float], height: int, width: int) -> Window:
    """Torchvision's RandomResizedCrop: ten tries of area and log-uniform ratio, then the largest centre window."""
    low, high = math.log(augment.ratio[0]), math.log(augment.ratio[1])
    smallest, largest = augment.scale
    for first in range(1, DRAWS, 4):
        area, shape, down, across = draws[first : first + 4]
        pixels = height * width * (smallest + area * (largest - smallest))
        ratio = math.exp(low + shape * (high - low))
        w, h = round(math.sqrt(pixels * ratio)), round(math.sqrt(pixels / ratio))
        if 0 < w <= width and 0 < h <= height:
            return Window(int(down * (height - h + 1)), int(across * (width - w + 1)), h, w, False)
    if width / height < augment.ratio[0]:
        h, w = min(height, round(width / augment.ratio[0])), width
    elif width / height > augment.ratio[1]:
        h, w = height, min(width, round(height * augment.ratio[1]))
    else:
        h, w = height, width
    h, w = max(1, h), max(1, w)
    return Window((height - h) // 2, (width - w) // 2, h, w, False)
