"""ResNets under torchvision's names, and the variant for small images.

The stride of a bottleneck is in its 3x3 convolution, as in torchvision (arXiv:1512.03385 has it in the first). For
images of 32 pixels the stem is a 3x3 convolution without stride and without max-pool: SimCLR, arXiv:2002.05709,
appendix B.9. BatchNorm is over all processes.
"""

# B batch, L places of the last map, D channels, H image side in pixels

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from headrace.train.models.batch_norm import BatchNorm, without_counting
from headrace.train.models.encoder import TunableEncoder
from headrace.train.models.stage import Stage

STEM_WIDTH = 64
# Of an attentive probe, as AIM's trunks have.
HEAD_WIDTH = 128


@dataclass(frozen=True, kw_only=True, slots=True)
class ResnetConfig:
    """The shape of one ResNet."""

    image_size: int
    """Side of the square input in pixels; others are taken as well."""
    blocks: tuple[int, int, int, int]
    """Residual blocks of each stage."""
    bottleneck: bool
    """Three convolutions a block, the last four times as wide; else two."""
    stem_width: int = STEM_WIDTH
    """Channels of the stem; those of a stage are 1, 2, 4 and 8 times as many."""
    small_images: bool = False
    """The stem for images of about 32 pixels."""
    zero_init: bool = True
    """The last norm of each block begins at 0, so that blocks begin as nothing."""

    def __post_init__(self) -> None:
        if min(self.image_size, self.stem_width) < 1:
            raise ValueError(f"image_size and width must be at least 1, got {self.image_size} and {self.stem_width}")

    @property
    def expansion(self) -> int:
        """How much wider a block's output is than its 3x3 convolution."""
        return 4 if self.bottleneck else 1

    @property
    def width(self) -> int:
        """Channels of the last stage."""
        return self.inner_widths[-1] * self.expansion

    @property
    def inner_widths(self) -> tuple[int, ...]:
        """Channels of the 3x3 convolutions of each stage."""
        return tuple(self.stem_width << stage for stage in range(self.depth))

    @property
    def depth(self) -> int:
        """Number of stages: what probes call blocks."""
        return len(self.blocks)

    @property
    def heads(self) -> int:
        """Attention heads of a probe."""
        most = max(1, self.width // HEAD_WIDTH)
        return next(heads for heads in range(most, 0, -1) if self.width % heads == 0)

    @property
    def num_patches(self) -> int:
        """Places of the last stage's map."""
        halvings = self.depth - 1 + (0 if self.small_images else 2)
        side = self.image_size
        for _ in range(halvings):
            side = -(-side // 2)
        return side**2


class Resnet(TunableEncoder):
    """Stem -> four stages of residual blocks -> mean over places."""

    convolves: ClassVar[bool] = True

    def __init__(self, config: ResnetConfig) -> None:
        super().__init__()
        self.config = config
        kernel, stride = (3, 1) if config.small_images else (7, 2)
        self.conv1 = nn.Conv2d(3, config.stem_width, kernel, stride=stride, padding=kernel // 2, bias=False)
        self.bn1 = BatchNorm(config.stem_width)
        width, stages = config.stem_width, []
        for number, (inner, count) in enumerate(zip(config.inner_widths, config.blocks, strict=True)):
            blocks = []
            for place in range(count):
                step = 2 if number and not place else 1
                blocks.append(ResidualBlock(width, inner, stride=step, expansion=config.expansion))
                width = inner * config.expansion
            stages.append(nn.ModuleList(blocks))
        self.layer1, self.layer2, self.layer3, self.layer4 = stages
        self._initialise()

    def _initialise(self) -> None:
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
            elif isinstance(module, ResidualBlock) and self.config.zero_init:
                nn.init.zeros_(module.last_norm.weight)

    @property
    def shape(self) -> ResnetConfig:
        """The sizes of this network."""
        return self.config

    @property
    def first_read(self) -> int:
        """The last stage alone is of the width that `shape` says."""
        return self.config.depth - 1

    def forward(self, images_B3HH: Tensor) -> Tensor:
        """Return the places of the last stage [B, L, D], row by row."""
        return list(self.block_outputs(images_B3HH))[-1]

    @property
    def forward_flops(self) -> float:
        """Operations of one image, counted on tensors without memory."""
        return _flops(self.config)

    def pooled(self, images_B3HH: Tensor, kept_NB2: Tensor | None = None) -> Tensor:
        """Return the mean over places [B, D]."""
        return self.pool(list(self.block_outputs(images_B3HH, kept_NB2))[-1])

    def block_outputs(self, images_B3HH: Tensor, kept_NB2: Tensor | None = None) -> Iterator[Tensor]:
        """Yield each stage's output as tokens [B, L, D], row by row; L and D are its own. No branch is left out."""
        for map_BCHW in self._stages(images_B3HH, kept_NB2):
            yield map_BCHW.flatten(2).transpose(1, 2)

    @property
    def feature_strides(self) -> tuple[int, ...]:
        """4, 8, 16, 32; with the stem for small images 1, 2, 4, 8."""
        first = 1 if self.config.small_images else 4
        return tuple(first << stage for stage in range(self.config.depth))

    @property
    def feature_channels(self) -> tuple[int, ...]:
        """Those of each stage's output."""
        return tuple(inner * self.config.expansion for inner in self.config.inner_widths)

    def feature_maps(self, images_B3HH: Tensor, kept_NB2: Tensor | None = None) -> list[Tensor]:
        """Return each stage's output [B, C, h, w]. No branch is left out."""
        return list(self._stages(images_B3HH, kept_NB2))

    def _stages(self, images_B3HH: Tensor, kept_NB2: Tensor | None) -> Iterator[Tensor]:
        assert kept_NB2 is None, "fine-tuning has refused it"
        x = functional.relu(self.bn1(self.conv1(images_B3HH)))
        if not self.config.small_images:
            x = functional.max_pool2d(x, 3, stride=2, padding=1)
        for stage in (self.layer1, self.layer2, self.layer3, self.layer4):
            for block in stage:
                x = block(x)
            yield x

    def depth_of(self, name: str) -> int:
        """Return where a parameter stands: 0 in the stem, i + 1 in stage i."""
        stage = name.partition(".")[0]
        return int(stage.removeprefix("layer")) if stage.startswith("layer") else 0


class ResidualBlock(Stage):
    """x + branch(x), then ReLU; x goes through a 1x1 convolution where the shapes differ."""

    # Its norms exchange sums between processes, which is no part of one graph.
    compiles: ClassVar[bool] = False

    def __init__(self, width: int, inner: int, *, stride: int, expansion: int) -> None:
        super().__init__()
        out = inner * expansion
        if expansion > 1:
            self.conv1 = nn.Conv2d(width, inner, 1, bias=False)
            self.bn1 = BatchNorm(inner)
            self.conv2 = nn.Conv2d(inner, inner, 3, stride=stride, padding=1, bias=False)
            self.bn2 = BatchNorm(inner)
            self.conv3 = nn.Conv2d(inner, out, 1, bias=False)
            self.bn3 = BatchNorm(out)
        else:
            self.conv1 = nn.Conv2d(width, inner, 3, stride=stride, padding=1, bias=False)
            self.bn1 = BatchNorm(inner)
            self.conv2 = nn.Conv2d(inner, out, 3, padding=1, bias=False)
            self.bn2 = BatchNorm(out)
        self.expansion = expansion
        self.downsample = None
        if stride > 1 or width != out:
            self.downsample = nn.Sequential(nn.Conv2d(width, out, 1, stride=stride, bias=False), BatchNorm(out))

    @property
    def last_norm(self) -> BatchNorm:
        """The norm behind the branch."""
        return self.bn3 if self.expansion > 1 else self.bn2

    def forward(self, x: Tensor) -> Tensor:
        return self.computed(x)

    def compute(self, x: Tensor) -> Tensor:
        """Return the block's output."""
        branch = functional.relu(self.bn1(self.conv1(x)))
        branch = self.bn2(self.conv2(branch))
        if self.expansion > 1:
            branch = self.bn3(self.conv3(functional.relu(branch)))
        out: Tensor = functional.relu(branch + (x if self.downsample is None else self.downsample(x)))
        return out

    def computed(self, x: Tensor, *inputs: Tensor) -> Tensor:
        """Return what `compute` does; with recompute selective or full the input alone is kept.

        Running statistics take a batch in once, not again when it is computed again.
        """
        if self.recompute == "none" or not torch.is_grad_enabled():
            return self.compute(x, *inputs)
        contexts = (contextlib.nullcontext(), without_counting(self))
        out: Tensor = checkpoint(self.compute, x, *inputs, use_reentrant=False, context_fn=lambda: contexts)
        return out


@cache
def _flops(config: ResnetConfig) -> float:
    from torch.utils.flop_counter import FlopCounterMode  # half a second of imports

    with torch.device("meta"), torch.no_grad(), FlopCounterMode(display=False) as counter:
        Resnet(config).eval()(torch.empty(1, 3, config.image_size, config.image_size))
    return float(counter.get_total_flops())
