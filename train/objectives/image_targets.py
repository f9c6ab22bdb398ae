"""Pictures as targets: every pixel as it is, or beside what is around it, and the error of what was predicted of them.

Statistics are taken in the format of the pictures, fp32: a variance that is the difference of two means cancels.
"""

# B batch, H image side in pixels, C cells of a picture, L patches, P values of a patch

import torch
from torch import Tensor
from torch.nn import functional

from headrace.train.objectives.targets import TARGET_EPS, normalised_patches


def sliding_normalised(images_B3HH: Tensor, window: int) -> Tensor:
    """Return each pixel less the mean around it, over the deviation, [B, 3, H, H]; every channel for itself.

    Around it is a square of `window` pixels a side, an odd number, as far as the picture goes; the variance is
    unbiased. Source: SimMIM's targets in the code of arXiv:2206.04664, where the window is 47.
    """
    count = _around(torch.ones_like(images_B3HH[:1, :1]), window)
    mean = _around(images_B3HH, window) / count
    square = _around(images_B3HH.square(), window) / count
    variance = ((square - mean.square()) * (count / (count - 1))).clamp(min=0)
    return (images_B3HH - mean) / (variance + TARGET_EPS).sqrt()


def patch_normalised(images_B3HH: Tensor, patch: int) -> Tensor:
    """Return pictures [B, 3, H, H] whose patches each have mean 0 and unbiased variance 1, over pixels and channels.

    Source: MAE, arXiv:2111.06377, section 4.
    """
    batch, channels, height, width = images_B3HH.shape
    target_BLP = normalised_patches(images_B3HH, patch)
    grid = target_BLP.reshape(batch, height // patch, width // patch, patch, patch, channels)
    return grid.permute(0, 5, 1, 3, 2, 4).reshape(images_B3HH.shape)


def cell_errors(predicted_B3HH: Tensor, target_B3HH: Tensor, cell: int) -> Tensor:
    """Return the mean absolute error of each cell, [B, C], row by row: over pixels and channels."""
    error_B1HH = (predicted_B3HH.to(target_B3HH.dtype) - target_B3HH).abs().mean(dim=1, keepdim=True)
    return functional.avg_pool2d(error_B1HH, cell).flatten(1)


def _around(x: Tensor, window: int) -> Tensor:
    """Return the sum over a square around each place; what is outside counts as 0. Down, then across: 2 n, not n^2."""
    down = functional.avg_pool2d(x, (window, 1), stride=1, padding=(window // 2, 0), divisor_override=1)
    return functional.avg_pool2d(down, (1, window), stride=1, padding=(0, window // 2), divisor_override=1)
