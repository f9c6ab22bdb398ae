"""Learnt positions for another grid of patches.

Positions that are computed (AIM's sines and cosines) need none of this. Source: the resampling of open_clip and BEiT.
"""

# N positions, D width

import math

import torch
from torch import Tensor
from torch.nn import functional


def resampled(positions_ND: Tensor, num: int) -> Tensor | None:
    """Return `num` positions for a square grid, by bicubic interpolation of another; None if neither is a square.

    What stands before the grid, a class token, stays as it is.
    """
    for before in (1, 0):
        old, new = (math.isqrt(count - before) for count in (len(positions_ND), num))
        if old**2 + before == len(positions_ND) and new**2 + before == num:
            first_ND, grid_ND = positions_ND[:before], positions_ND[before:].float()
            grid_1DHW = grid_ND.reshape(1, old, old, -1).permute(0, 3, 1, 2)
            scaled_1DHW = functional.interpolate(
                grid_1DHW, size=(new, new), mode="bicubic", antialias=True, align_corners=False
            )
            grid_ND = scaled_1DHW.permute(0, 2, 3, 1).reshape(new**2, -1).to(positions_ND.dtype)
            return torch.cat([first_ND, grid_ND])
    return None
