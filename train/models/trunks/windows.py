"""Windows of a grid of tokens, and where two tokens of one stand to each other.

Attention is inside windows. Every second block moves them by half a side, so that what stood apart meets; the grid is
rolled around, and tokens that only meet by this do not see each other. A grid that is no multiple of the window is
filled up with zeros behind its end, which are seen by all: as timm does it. Sources: Swin, arXiv:2103.14030, section
3.2; SwinV2, arXiv:2111.09883, section 3.3.
"""

# B batch, H rows and W columns of a grid, L tokens (= H * W), D width, V windows, N tokens of a window

import math
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

UNSEEN = -100.0
"""What is added to the logit of a pair that must not meet: Swin's number."""
RANGE = 8.0
"""Distances are -8 to 8 before their logarithm is taken: arXiv:2111.09883, section 3.3."""


class Windows(NamedTuple):
    """How one stage sees its grid."""

    grid: tuple[int, int]
    """Rows and columns of tokens."""
    side: tuple[int, int]
    """Rows and columns of a window: smaller than asked where the grid is."""
    shift: tuple[int, int]
    """What every second block moves the grid by; 0 where one window holds all."""
    distances: Tensor
    """[places, 2]: the logarithm of each distance that two tokens of a window can have, in rows and columns."""
    place: Tensor
    """[N * N]: which of them a pair of tokens has."""
    unseen: Tensor | None
    """[V, N, N]: what is added to the logits of moved windows; None where nothing moves."""


def windows_of(grid: tuple[int, int], window: int, *, measured_in: int, device: torch.device) -> Windows:
    """Return how a grid is seen through windows of `window` tokens a side.

    Distances are told in parts of a window of `measured_in`, which is `window` unless the weights are of another.
    """
    side = (min(window, grid[0]), min(window, grid[1]))
    shift = tuple(0 if length <= part else window // 2 for length, part in zip(grid, side, strict=True))
    return Windows(
        grid=grid,
        side=side,
        shift=(shift[0], shift[1]),
        distances=_distances(side, measured_in, device),
        place=_places(side, device),
        unseen=_unseen(grid, side, (shift[0], shift[1]), device) if any(shift) else None,
    )


def cut(x_BLD: Tensor, windows: Windows, *, shifted: bool) -> Tensor:
    """Return the windows [B, V, N, D] of a grid."""
    (rows, columns), (high, wide) = windows.grid, windows.side
    x_BHWD = x_BLD.reshape(len(x_BLD), rows, columns, -1)
    if shifted and any(windows.shift):
        x_BHWD = x_BHWD.roll((-windows.shift[0], -windows.shift[1]), (1, 2))
    below, right = -rows % high, -columns % wide
    if below or right:
        x_BHWD = functional.pad(x_BHWD, (0, 0, 0, right, 0, below))
    batch, rows, columns, width = x_BHWD.shape
    parts = x_BHWD.reshape(batch, rows // high, high, columns // wide, wide, width)
    return parts.permute(0, 1, 3, 2, 4, 5).reshape(batch, -1, high * wide, width)


def join(x_BVND: Tensor, windows: Windows, *, shifted: bool) -> Tensor:
    """Return the grid [B, L, D] that windows were cut from."""
    (rows, columns), (high, wide) = windows.grid, windows.side
    down, across = -(-rows // high), -(-columns // wide)
    batch, width = len(x_BVND), x_BVND.shape[-1]
    parts = x_BVND.reshape(batch, down, across, high, wide, width).permute(0, 1, 3, 2, 4, 5)
    x_BHWD = parts.reshape(batch, down * high, across * wide, width)[:, :rows, :columns]
    if shifted and any(windows.shift):
        x_BHWD = x_BHWD.roll(windows.shift, (1, 2))
    return x_BHWD.reshape(batch, rows * columns, width)


def _distances(side: tuple[int, int], measured_in: int, device: torch.device) -> Tensor:
    parts = []
    for length in side:
        steps = torch.arange(1 - length, length, device=device, dtype=torch.float32)
        away = steps / max(measured_in - 1, 1) * RANGE
        parts.append(away.sign() * (away.abs() + 1).log2() / math.log2(RANGE))
    return torch.cartesian_prod(*parts)


def _places(side: tuple[int, int], device: torch.device) -> Tensor:
    high, wide = side
    row = torch.arange(high, device=device).repeat_interleave(wide)
    column = torch.arange(wide, device=device).repeat(high)
    down = row[:, None] - row[None, :] + high - 1
    across = column[:, None] - column[None, :] + wide - 1
    return (down * (2 * wide - 1) + across).flatten()


def _unseen(grid: tuple[int, int], side: tuple[int, int], shift: tuple[int, int], device: torch.device) -> Tensor:
    """Return [V, N, N]: rolled windows hold up to four regions of the picture, which do not see each other."""
    regions = []
    for length, part, moved in zip(grid, side, shift, strict=True):
        place = torch.arange(length + -length % part, device=device)
        # A side that is one window does not move, and has no second region.
        regions.append(
            (place >= len(place) - part).long() + (place >= len(place) - moved).long() if moved else place * 0
        )
    region_HW = regions[0][:, None] * 3 + regions[1][None, :]
    whole = Windows((len(regions[0]), len(regions[1])), side, (0, 0), region_HW, region_HW, None)
    region_VN = cut(region_HW.flatten()[None, :, None], whole, shifted=False)[0, :, :, 0]
    apart_VNN: Tensor = region_VN[:, :, None] != region_VN[:, None, :]
    return apart_VNN * UNSEEN
