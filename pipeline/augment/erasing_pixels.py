"""Random erasing on a batch of pictures, on any device: the levels of `erasing`, hashed there from whole numbers."""

import functools
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from headrace.pipeline.augment.config import RandomErasing
from headrace.pipeline.augment.erasing import (
    GAMMA,
    MIX_1,
    MIX_2,
    QUANTA,
    Erasure,
    Levels,
    mean_levels,
    noise_levels,
    words_in_row,
)
from headrace.pipeline.augment.rand_pixels import on_device

# n rows of a group, H height, W width
CHUNK_PIXELS = 256 * 224 * 224
"""Pixels that are worked on at once: 100 MB for each of some six arrays."""


def erase_batch(images_BHWC: Tensor, erasures: Sequence[Erasure], config: RandomErasing) -> Tensor:
    """Return uint8 [B, S, S, 3] with each row's rectangles overwritten; the same tensor where there are none."""
    if not any(erasure.rectangles for erasure in erasures):
        return images_BHWC
    out = images_BHWC.clone(memory_format=torch.contiguous_format)
    at_once = max(1, CHUNK_PIXELS // max(1, out.shape[1] * out.shape[2]))
    with torch.no_grad():
        for number in range(max(len(erasure.rectangles) for erasure in erasures)):
            rows = [row for row, erasure in enumerate(erasures) if len(erasure.rectangles) > number]
            for first in range(0, len(rows), at_once):
                part = rows[first : first + at_once]
                rows_n = on_device(np.array(part, np.int64), out.device)
                erased = _erased(out.index_select(0, rows_n), [erasures[row] for row in part], number, config)
                out.index_copy_(0, rows_n, erased)
    return out


def _erased(images_nHWC: Tensor, erasures: Sequence[Erasure], number: int, config: RandomErasing) -> Tensor:
    _, height, width, _ = images_nHWC.shape
    device = images_nHWC.device
    parameters = np.array([(*erasure.rectangles[number], erasure.seed) for erasure in erasures], np.int64)
    top, left, high, wide, seed = on_device(parameters, device)[:, None, None, :].unbind(dim=3)
    y_H1, x_W = torch.arange(height, device=device)[:, None], torch.arange(width, device=device)
    inside = (y_H1 >= top) & (y_H1 < top + high) & (x_W >= left) & (x_W < left + wide)
    if config.mode == "const":
        levels = torch.tensor(mean_levels(config.mean), dtype=torch.uint8, device=device)
    else:
        in_row = words_in_row(width)
        counters, places = y_H1 * in_row + x_W // 2, x_W % 2
        if config.mode == "rand":
            counters, places = (torch.tensor([[at]], device=device) for at in (width * in_row + number, 0))
        levels = _noise(_words(seed, counters), places, config)
    return torch.where(inside[..., None], levels, images_nHWC)


def _noise(words: Tensor, places: Tensor, config: RandomErasing) -> Tensor:
    """Return the levels of each pixel from its word, and which half of it is its."""
    levels = _levels_on(config.mean, config.std, words.device)
    own = words >> 32 * places
    rows = torch.stack([3 * (own >> 8 * channel & QUANTA - 1) + channel for channel in range(3)], dim=-1)
    return levels.index_select(0, rows.reshape(-1)).reshape(rows.shape)


def _words(seed: Tensor, counters: Tensor) -> Tensor:
    """Return what `erasing.noise_words` does, as signed numbers: products and sums wrap alike."""
    words = (counters + 1) * _signed(GAMMA) + seed
    words = (words ^ _shifted(words, 30)) * _signed(MIX_1)
    words = (words ^ _shifted(words, 27)) * _signed(MIX_2)
    return words ^ _shifted(words, 31)


def _shifted(words: Tensor, by: int) -> Tensor:
    """Shift to the right, zeros coming in."""
    return (words >> by) & ((1 << (64 - by)) - 1)


def _signed(number: int) -> int:
    return number - (1 << 64) if number >> 63 else number


@functools.lru_cache(maxsize=16)
def _levels_on(mean: Levels, std: Levels, device: torch.device) -> Tensor:
    return torch.from_numpy(noise_levels(mean, std)).reshape(-1).to(device)
