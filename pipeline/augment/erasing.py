"""Random erasing (Zhong et al., arXiv:1708.04896): rectangles as a function of (seed, position, view), and their noise.

A value of the noise follows from the position's seed and its place in the picture alone: a byte of a hash, looked up in
the inverse of the normal distribution. So the host and a device write the same levels, whatever is beside them.
"""

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist
from typing import NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray

from headrace.pipeline.augment.config import RandomErasing
from headrace.pipeline.augment.crop import position_draws
from headrace.pipeline.augment.philox import draws_at

TRIES = 10
HEAD_DRAWS = 3
DRAWS = HEAD_DRAWS + 4 * TRIES
"""Numbers of the first rectangle: whether, how many, the seed of the noise, then its tries. Others have keys of theirs.
"""
QUANTA = 256
"""Equally likely values of the noise: under a level apart in the middle, and at the ends beyond 0 and 255 anyway."""
# SplitMix64 (Steele, Lea and Flood, "Fast splittable pseudorandom number generators", 2014, figure 14).
GAMMA, MIX_1, MIX_2 = 0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB

Levels = tuple[float, float, float]


class Rectangle(NamedTuple):
    """A part of the square, pixels."""

    top: int
    left: int
    height: int
    width: int


class Erasure(NamedTuple):
    """What is erased in one picture."""

    rectangles: tuple[Rectangle, ...] = ()
    seed: int = 0
    """53 bits, of the noise."""


@dataclass(frozen=True, slots=True)
class ErasingDraw:
    """Draws what is erased in one view."""

    keys: tuple[int, ...]
    """One for each rectangle."""
    config: RandomErasing
    side: int

    def __call__(self, position: int) -> Erasure:
        """Return what is erased at one position."""
        first = position_draws(self.keys[0], position, DRAWS)
        others = [position_draws(key, position, DRAWS) for key in self.keys[1 : _count(self.config, first)]]
        return choose_erasure(self.config, [first, *others], self.side)

    def of_rows(self, position: NDArray[np.int64], valid: NDArray[np.bool_] | None = None) -> list[Erasure]:
        """Return what is erased at each position; nothing in rows that are not valid."""
        draws = [draws_at(key, position, DRAWS) for key in self.keys]
        erased = draws[0][:, 0] < self.config.probability
        rows = np.flatnonzero(erased if valid is None else erased & valid)
        found = [Erasure()] * len(position)
        for row in rows.tolist():
            found[row] = choose_erasure(self.config, [one[row].tolist() for one in draws], self.side)
        return found


def _count(config: RandomErasing, draws: Sequence[float]) -> int:
    return 1 + int(draws[1] * config.count) if draws[0] < config.probability else 0


def choose_erasure(config: RandomErasing, draws: Sequence[Sequence[float]], side: int) -> Erasure:
    """Return what is erased in a square of `side` from the numbers of each rectangle."""
    count = _count(config, draws[0])
    rectangles = tuple(
        found
        for numbers in draws[:count]
        if (found := _rectangle(config, numbers[HEAD_DRAWS:], count, side)) is not None
    )
    return Erasure(rectangles, int(draws[0][2] * 2.0**53)) if rectangles else Erasure()


def _rectangle(config: RandomErasing, draws: Sequence[float], count: int, side: int) -> Rectangle | None:
    """Return the first of ten tries that fits, as timm does; None where none does."""
    steep = math.log(config.min_aspect)
    for first in range(0, len(draws), 4):
        area, shape, down, across = draws[first : first + 4]
        pixels = (config.min_area + area * (config.max_area - config.min_area)) * side * side / count
        aspect = math.exp(steep - shape * 2 * steep)
        height, width = round(math.sqrt(pixels * aspect)), round(math.sqrt(pixels / aspect))
        if 0 < height < side and 0 < width < side:
            return Rectangle(int(down * (side - height + 1)), int(across * (side - width + 1)), height, width)
    return None


@functools.lru_cache(maxsize=16)
def noise_levels(mean: Levels, std: Levels) -> NDArray[np.uint8]:
    """Return the level of each of 256 equally likely values of the noise, [256, 3] for red, green and blue."""
    normal = NormalDist()
    values = np.array([normal.inv_cdf((number + 0.5) / QUANTA) for number in range(QUANTA)])
    levels = 255 * (np.array(mean) + np.array(std) * values[:, None])
    whole: NDArray[np.uint8] = np.clip(np.rint(levels), 0, 255).astype(np.uint8)
    return whole


def mean_levels(mean: Levels) -> list[int]:
    """Return the levels of the mean."""
    return [round(255 * value) for value in mean]


def noise_words(seed: int, counters: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """Return 64 bits for each counter: from the lowest, a byte for each channel of a pixel and one over, twice."""
    words = (counters + np.uint64(1)) * np.uint64(GAMMA) + np.uint64(seed)
    words ^= words >> np.uint64(30)
    words *= np.uint64(MIX_1)
    words ^= words >> np.uint64(27)
    words *= np.uint64(MIX_2)
    words ^= words >> np.uint64(31)
    return words


def words_in_row(side: int) -> int:
    """Return how many words a row of pixels has: one for two."""
    return (side + 1) // 2


def erase_picture(pixels_HWC: NDArray[np.uint8], erasure: Erasure, config: RandomErasing) -> None:
    """Overwrite the rectangles of a uint8 [S, S, 3] in place."""
    side = pixels_HWC.shape[1]
    in_row = words_in_row(side)
    for number, (top, left, height, width) in enumerate(erasure.rectangles):
        part = pixels_HWC[top : top + height, left : left + width]
        if config.mode == "const":
            part[:] = mean_levels(config.mean)
        elif config.mode == "rand":
            part[:] = _noise(erasure.seed, np.array([[side * in_row + number]]), config)[0, 0]  # behind the pixels'
        else:
            first, end = left // 2, (left + width + 1) // 2
            words = np.arange(top, top + height)[:, None] * in_row + np.arange(first, end)
            part[:] = _noise(erasure.seed, words, config)[:, left - 2 * first :][:, :width]


def _noise(seed: int, counters_HW: NDArray[np.int64], config: RandomErasing) -> NDArray[np.uint8]:
    """Return the levels of two pixels for each counter, [H, 2 W, 3]."""
    words = noise_words(seed, counters_HW.view(np.uint64)).astype("<u8", copy=False)
    # Dropping every fourth byte takes OpenCV 1 us of a rectangle, NumPy's strided copy 28.
    bytes_HW3 = cv2.cvtColor(words.view(np.uint8).reshape(len(words), -1, 4), cv2.COLOR_RGBA2RGB)
    noise: NDArray[np.uint8] = cv2.LUT(bytes_HW3, noise_levels(config.mean, config.std)[None])
    return noise
