"""What is to be predicted of each patch, and the loss of one prediction."""

# B batch, C codes, L patches, P values of a patch, N predicted patches, V values that are predicted of one

from torch import Tensor
from torch.nn import functional

from headrace.train.objectives.codebook import nearest_codes
from headrace.train.objectives.patch_config import Targets

TARGET_EPS = 1e-6


def patch_losses(
    predicted_NV: Tensor,
    images_B3HH: Tensor,
    rows_N: Tensor,
    *,
    patch: int,
    targets: Targets,
    codebook_CP: Tensor | None = None,
) -> Tensor:
    """Return the loss [N] of what was predicted of the patches `rows_N` of the batch, counted image by image.

    The mean of the squared errors over the values of a patch; with `tokens` the cross-entropy, in nats, of the nearest
    code. In fp32.
    """
    make = normalised_patches if targets == "normalised" else patches
    target_NP = make(images_B3HH, patch).flatten(0, 1)[rows_N]
    if targets == "tokens":
        assert codebook_CP is not None
        code_N, _ = nearest_codes(target_NP, codebook_CP)
        return functional.cross_entropy(predicted_NV.to(codebook_CP.dtype), code_N, reduction="none")
    return (predicted_NV.to(target_NP.dtype) - target_NP).square().mean(dim=1)


def patches(images_B3HH: Tensor, patch: int) -> Tensor:
    """Return the pixels [B, L, P] of patches row by row, channel fastest inside."""
    batch, channels, height, width = images_B3HH.shape
    grid = images_B3HH.reshape(batch, channels, height // patch, patch, width // patch, patch)
    return grid.permute(0, 2, 4, 3, 5, 1).reshape(batch, -1, patch * patch * channels)


def normalised_patches(images_B3HH: Tensor, patch: int) -> Tensor:
    """Return [B, L, P] as `patches` does, each with mean 0 and unbiased variance 1."""
    target_BLP = patches(images_B3HH, patch)
    mean = target_BLP.mean(dim=-1, keepdim=True)
    variance = target_BLP.var(dim=-1, keepdim=True, unbiased=True)
    return (target_BLP - mean) / (variance + TARGET_EPS).sqrt()
