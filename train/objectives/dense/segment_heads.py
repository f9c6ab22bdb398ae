"""Heads that give each place of a picture its class.

UPerNet, arXiv:1807.10221, section 3.1: pyramid pooling on the coarsest map, a feature pyramid, all scales fused at the
finest. Its BatchNorms are GroupNorms here, so that a picture's loss does not depend on the others of its batch, nor on
the number of processes. `linear` is what DINOv2 probes with: all maps at the finest one's places, one linear layer.
"""

# B batch, D channels, C classes, h w rows and columns of a map

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from headrace.train.models.pyramid import ChannelNorm

SegmentHeadKind = Literal["upernet", "linear"]
POOLED = (1, 2, 3, 6)
"""Rows and columns that the coarsest map is averaged to, each for itself."""
MAX_GROUPS = 32
LEAST_PER_GROUP = 8
"""Channels that are normalised together: of one place and one channel nothing would be left."""


class UperHead(nn.Module):
    """Four maps -> logits of each class at the places of the finest."""

    def __init__(self, channels: Sequence[int], *, width: int, classes: int) -> None:
        super().__init__()
        *finer, last = channels
        self.pooled = nn.ModuleList(_convolution(last, width, 1) for _ in POOLED)
        self.top = _convolution(last + len(POOLED) * width, width, 3)
        self.lateral = nn.ModuleList(_convolution(inner, width, 1) for inner in finer)
        self.smooth = nn.ModuleList(_convolution(width, width, 3) for _ in finer)
        self.fuse = _convolution(len(channels) * width, width, 3)
        self.linear = nn.Conv2d(width, classes, 1)

    def forward(self, maps: Sequence[Tensor]) -> Tensor:
        """Return logits [B, C, h, w]."""
        *finer, last = maps
        pooled = [
            enlarged(convolution(functional.adaptive_avg_pool2d(last, size)), last)
            for size, convolution in zip(POOLED, self.pooled, strict=True)
        ]
        merged = [self.top(torch.cat([last, *pooled], dim=1))]
        for lateral, map_BDhw in zip(reversed(self.lateral), reversed(finer), strict=True):
            merged.append(lateral(map_BDhw) + enlarged(merged[-1], map_BDhw))
        scales = [smooth(own) for smooth, own in zip(self.smooth, reversed(merged[1:]), strict=True)]
        together = torch.cat([enlarged(own, maps[0]) for own in (*scales, merged[0])], dim=1)
        out: Tensor = self.linear(self.fuse(together))
        return out


class LinearSegmentHead(nn.Module):
    """Maps -> all of them at the places of the finest, normalised, and one linear layer."""

    def __init__(self, channels: Sequence[int], *, classes: int) -> None:
        super().__init__()
        self.norm = ChannelNorm(sum(channels))
        self.linear = nn.Conv2d(sum(channels), classes, 1)

    def forward(self, maps: Sequence[Tensor]) -> Tensor:
        """Return logits [B, C, h, w]."""
        out: Tensor = self.linear(self.norm(torch.cat([enlarged(one, maps[0]) for one in maps], dim=1)))
        return out


class AuxiliaryHead(nn.Module):
    """One map -> logits, by two convolutions: what keeps the trunk's third stage telling classes apart in training."""

    def __init__(self, channels: int, *, width: int, classes: int) -> None:
        super().__init__()
        self.convolution = _convolution(channels, width, 3)
        self.linear = nn.Conv2d(width, classes, 1)

    def forward(self, map_BDhw: Tensor) -> Tensor:
        """Return logits [B, C, h, w]."""
        out: Tensor = self.linear(self.convolution(map_BDhw))
        return out


def enlarged(map_BDhw: Tensor, other: Tensor) -> Tensor:
    """Return the map at the places of another, bilinear."""
    if map_BDhw.shape[-2:] == other.shape[-2:]:
        return map_BDhw
    return functional.interpolate(map_BDhw, size=other.shape[-2:], mode="bilinear", align_corners=False)


def _convolution(channels: int, width: int, kernel: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(channels, width, kernel, padding=kernel // 2, bias=False),
        nn.GroupNorm(_groups(width), width),
        nn.ReLU(),
    )


def _groups(width: int) -> int:
    most = max(1, min(MAX_GROUPS, width // LEAST_PER_GROUP))
    return next(groups for groups in range(most, 0, -1) if width % groups == 0)
