"""Four maps of one width from what a trunk gives: what the heads of segmentation and detection read.

A trunk of one map (a plain transformer) gets the simple pyramid of ViTDet, arXiv:2203.16527, section 3: each scale is
made from the last map alone. One of several maps gets a feature pyramid network, arXiv:1612.03144, section 3. Norms are
LayerNorm over channels, so that a picture's maps do not depend on the others of its batch.
"""

# B batch, C channels, h w rows and columns of a map

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from headrace.train.models.encoder import FeatureMaps

NORM_EPS = 1e-6
# How much finer than the trunk's map each scale of the simple pyramid is: strides 4, 8, 16, 32 of patches of 16.
SCALES = (4.0, 2.0, 1.0, 0.5)


def build_pyramid(trunk: FeatureMaps, *, width: int) -> "SimplePyramid | TopDownPyramid":
    """Return what makes maps of `width` channels of the maps of `trunk`."""
    if len(trunk.feature_strides) == 1:
        return SimplePyramid(trunk.feature_channels[0], width, stride=trunk.feature_strides[0])
    return TopDownPyramid(trunk.feature_channels, width, strides=trunk.feature_strides)


class SimplePyramid(nn.Module):
    """One map -> maps of 4 times, twice, once and half its resolution, each convolved twice."""

    def __init__(self, channels: int, width: int, *, stride: int) -> None:
        super().__init__()
        self.strides = tuple(stride / scale for scale in SCALES)
        finer = nn.Sequential(
            nn.ConvTranspose2d(channels, channels // 2, 2, stride=2),
            ChannelNorm(channels // 2),
            nn.GELU(),
            nn.ConvTranspose2d(channels // 2, channels // 4, 2, stride=2),
        )
        scaled: list[tuple[nn.Module, int]] = [
            (finer, channels // 4),
            (nn.ConvTranspose2d(channels, channels // 2, 2, stride=2), channels // 2),
            (nn.Identity(), channels),
            (nn.MaxPool2d(2, ceil_mode=True), channels),
        ]
        self.scales = nn.ModuleList(nn.Sequential(scale, *_smooth(inner, width)) for scale, inner in scaled)

    def forward(self, maps: Sequence[Tensor]) -> list[Tensor]:
        """Return four maps [B, width, h, w], the finest first."""
        (only_BCHW,) = maps
        return [scale(only_BCHW) for scale in self.scales]


class TopDownPyramid(nn.Module):
    """Maps of several strides -> as many of one width; each has the coarser ones, enlarged, added."""

    def __init__(self, channels: Sequence[int], width: int, *, strides: Sequence[int]) -> None:
        super().__init__()
        self.strides = tuple(map(float, strides))
        self.lateral = nn.ModuleList(nn.Conv2d(inner, width, 1) for inner in channels)
        self.output = nn.ModuleList(nn.Conv2d(width, width, 3, padding=1) for _ in channels)
        for convolution in (*self.lateral, *self.output):
            nn.init.kaiming_uniform_(convolution.weight, a=1)
            nn.init.zeros_(convolution.bias)

    def forward(self, maps: Sequence[Tensor]) -> list[Tensor]:
        """Return maps [B, width, h, w], the finest first."""
        merged: list[Tensor] = []
        for lateral, map_BCHW in zip(reversed(self.lateral), reversed(maps), strict=True):
            own = lateral(map_BCHW)
            if merged:
                own = own + functional.interpolate(merged[-1], size=own.shape[-2:], mode="nearest")
            merged.append(own)
        return [output(own) for output, own in zip(self.output, reversed(merged), strict=True)]


class ChannelNorm(nn.Module):
    """LayerNorm over the channels of each place of a map."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(channels, eps=NORM_EPS)

    def forward(self, map_BCHW: Tensor) -> Tensor:
        out: Tensor = self.norm(map_BCHW.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
        return out.contiguous(memory_format=torch.contiguous_format)


def _smooth(channels: int, width: int) -> tuple[nn.Module, ...]:
    return (
        nn.Conv2d(channels, width, 1, bias=False),
        ChannelNorm(width),
        nn.Conv2d(width, width, 3, padding=1, bias=False),
        ChannelNorm(width),
    )
