"""SwinV2: attention in shifted windows, on four grids, each half as fine and twice as wide as the one before.

Parameters have timm's names, so its files load as they are, and outputs are timm's. A block adds the norm of what its
branch gives (res-post-norm), and begins as nothing; logits are cosines; places are told by a small network of the
logarithm of distances, so that it works for windows of any size. Source: arXiv:2111.09883, section 3.
"""

# B batch, L tokens, D width, H image side in pixels, N blocks; V windows, T tokens of one

import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor, nn
from torch.nn import functional

from headrace.train.models.encoder import Hidden, TunableEncoder, with_hidden
from headrace.train.models.stage import ResidualStream, Stage
from headrace.train.models.trunks.window_attention import WindowAttention
from headrace.train.models.trunks.windows import Windows, cut, join, windows_of
from headrace.train.models.vit import Mlp, patch_tokens, with_branch

NORM_EPS = 1e-5
INIT_STD = 0.02
WINDOW_SHARE = 4
"""A window is this part of the first grid, as published: 12 tokens at 192 pixels, 14 at 224, 16 at 256."""


@dataclass(frozen=True, kw_only=True, slots=True)
class SwinV2Config:
    """The shape of one SwinV2."""

    image_size: int
    """Side of the square input in pixels; others, and rectangles, are taken as well."""
    embed_width: int
    """Channels of the first stage; each other has twice those before."""
    depths: tuple[int, ...]
    """Blocks of each stage."""
    first_heads: int
    """Attention heads of the first stage; each other has twice those before."""
    patch: int = 4
    """Side of the first patches in pixels."""
    window: int | None = None
    """Tokens of a window's side; None = a quarter of the first grid's."""
    bias_windows: tuple[int, ...] | None = None
    """Windows of each stage that the network of places was trained with; None = those of this trunk."""
    main_norms: int = 0
    """Every so many blocks of a stage a norm of the sum itself, for the widest: section 3.2 of the paper; 0 = none."""

    def __post_init__(self) -> None:
        if not self.depths or min(self.image_size, self.patch, self.embed_width, self.first_heads, *self.depths) < 1:
            raise ValueError(
                f"image_size, width, heads and depths must be at least 1, got {self.image_size}, {self.embed_width}, "
                f"{self.first_heads} and {list(self.depths)}"
            )
        if self.image_size % self.patch:
            raise ValueError(f"image_size {self.image_size} is not whole patches of {self.patch} pixels")
        if self.embed_width % self.first_heads:
            raise ValueError(f"width {self.embed_width} must be a multiple of heads ({self.first_heads})")
        if (self.window is not None and self.window < 1) or self.main_norms < 0:
            raise ValueError("window must be at least 1, main_norms at least 0")
        measures = self.bias_windows
        if measures is not None and (len(measures) != len(self.depths) or min(measures) < 1):
            raise ValueError(f"bias_windows must be {len(self.depths)} numbers above 0, got {list(measures)}")

    @property
    def grid(self) -> int:
        """Side of the first grid in tokens."""
        return self.image_size // self.patch

    @property
    def window_side(self) -> int:
        """Tokens of a window's side, where the grid has as many."""
        return max(1, self.grid // WINDOW_SHARE) if self.window is None else self.window

    @property
    def measures(self) -> tuple[int, ...]:
        """The window of each stage that distances are parts of."""
        if self.bias_windows is not None:
            return self.bias_windows
        return tuple(min(self.window_side, -(-self.image_size // stride)) for stride in self.strides)

    @property
    def widths(self) -> tuple[int, ...]:
        """Channels of each stage."""
        return tuple(self.embed_width << stage for stage in range(len(self.depths)))

    @property
    def strides(self) -> tuple[int, ...]:
        """Pixels from one token of each stage to the next."""
        return tuple(self.patch << stage for stage in range(len(self.depths)))

    @property
    def width(self) -> int:
        """Channels of the last stage."""
        return self.widths[-1]

    @property
    def depth(self) -> int:
        """Blocks of all stages."""
        return sum(self.depths)

    @property
    def heads(self) -> int:
        """Attention heads of the last stage."""
        return self.first_heads << (len(self.depths) - 1)

    @property
    def num_patches(self) -> int:
        """Tokens of the last stage."""
        side = -(-self.image_size // self.strides[-1])
        return side * side


class SwinV2(TunableEncoder):
    """Patches -> stages of blocks, the grid halved between -> LayerNorm -> mean."""

    def __init__(self, config: SwinV2Config) -> None:
        super().__init__()
        self.config = config
        self.patch_embed = PatchEmbedding(config.embed_width, config.patch)
        self.residual = ResidualStream()
        stages = enumerate(zip(config.widths, config.depths, strict=True))
        # No list: what is spread over processes is each block, not a whole stage.
        self.layers = nn.Sequential(
            *(
                SwinStage(width, depth, config.first_heads << number, merges=number > 0, main_norms=config.main_norms)
                for number, (width, depth) in stages
            )
        )
        self.norm = nn.LayerNorm(config.width, eps=NORM_EPS)
        self._windows: dict[tuple[int, int, int, torch.device], Windows] = {}
        self._initialise()

    def _initialise(self) -> None:
        for module in self.modules():
            if isinstance(module, nn.Linear):
                # Not trunc_normal_, which cuts at 2, a hundred deviations away, and cannot draw without memory.
                nn.init.normal_(module.weight, std=INIT_STD)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
            elif isinstance(module, SwinBlock):
                for norm in (module.norm1, module.norm2):
                    nn.init.zeros_(norm.weight)
                    nn.init.zeros_(norm.bias)

    @property
    def shape(self) -> SwinV2Config:
        """The sizes of this network."""
        return self.config

    @property
    def first_read(self) -> int:
        """The last stage alone is of the width that `shape` says."""
        return self.config.depth - self.config.depths[-1]

    @property
    def forward_flops(self) -> float:
        """Operations of one image, counted on tensors without memory."""
        return _flops(self.config)

    def forward(self, images_B3HH: Tensor) -> Tensor:
        """Return tokens of the last stage [B, L, D], row by row, after the last norm."""
        return self._normed(self._stages(images_B3HH))

    def pooled(self, images_B3HH: Tensor, kept_NB2: Tensor | None = None) -> Tensor:
        """Return the mean over places after the last norm, [B, D]."""
        return self.pool(self._normed(self._stages(images_B3HH, kept_NB2)))

    def block_outputs(self, images_B3HH: Tensor, kept_NB2: Tensor | None = None) -> Iterator[Tensor]:
        """Yield each block's output [B, L, D], before the last norm; L and D are its stage's."""
        for _, x_BLD, _ in self._blocks(*self._first(images_B3HH), kept_NB2):
            yield x_BLD

    @property
    def feature_strides(self) -> tuple[int, ...]:
        """4, 8, 16, 32; with patches of another size in proportion."""
        return self.config.strides

    @property
    def feature_channels(self) -> tuple[int, ...]:
        """Those of each stage."""
        return self.config.widths

    def feature_maps(self, images_B3HH: Tensor, kept_NB2: Tensor | None = None) -> list[Tensor]:
        """Return each stage's output [B, C, h, w], the last one after the last norm."""
        *before, (last_BLD, grid) = self._stages(images_B3HH, kept_NB2)
        return [_as_map(x_BLD, grid) for x_BLD, grid in [*before, (self.norm(last_BLD), grid)]]

    def masked_map(self, images_B3HH: Tensor, hidden: Hidden, kept_NB2: Tensor | None = None) -> Tensor:
        """Return the last of the feature maps, [B, D, h, w], of images with first patches hidden."""
        last_BLD, grid = self._stages(images_B3HH, kept_NB2, hidden)[-1]
        return _as_map(self.norm(last_BLD), grid)

    def depth_of(self, name: str) -> int:
        """Return where a parameter stands: 0 before the blocks, i + 1 in block i, depth + 1 behind them.

        What halves a grid counts to the block before it, as SimMIM's fine-tuning has it.
        """
        kind, _, rest = name.partition(".")
        if kind != "layers":
            return self.config.depth + 1 if kind == "norm" else 0
        stage, part, number, *_ = rest.split(".")
        before = sum(self.config.depths[: int(stage)])
        return before + int(number) + 1 if part == "blocks" else before

    def _first(self, images_B3HH: Tensor, hidden: Hidden | None = None) -> tuple[Tensor, tuple[int, int]]:
        """Return the first tokens and their grid. Raises ValueError for images that are not whole patches."""
        patch, (height, width) = self.config.patch, images_B3HH.shape[-2:]
        if height % patch or width % patch:
            raise ValueError(f"images of {width}x{height} pixels are not whole patches of {patch}")
        tokens_BLD = with_hidden(self.patch_embed(images_B3HH), hidden)
        return tokens_BLD, (height // patch, width // patch)

    def _blocks(
        self, tokens_BLD: Tensor, grid: tuple[int, int], kept_NB2: Tensor | None = None
    ) -> Iterator[tuple[bool, Tensor, tuple[int, int]]]:
        """Yield, for each block, whether a stage ends with it, its output, and the grid of that."""
        x_BLD, numbers = self.residual(tokens_BLD), itertools.count()
        for which, stage in enumerate(self.layers):
            assert isinstance(stage, SwinStage)
            if isinstance(stage.downsample, PatchMerging):
                x_BLD = stage.downsample(x_BLD, grid)
                grid = ((grid[0] + 1) // 2, (grid[1] + 1) // 2)
            windows = self._windows_of(which, grid, x_BLD.device)
            for left in reversed(range(len(stage.blocks))):
                block, number = stage.blocks[-left - 1], next(numbers)
                x_BLD = block(x_BLD, windows) if kept_NB2 is None else block(x_BLD, windows, kept_NB2[number])
                yield not left, x_BLD, grid

    def _stages(
        self, images_B3HH: Tensor, kept_NB2: Tensor | None = None, hidden: Hidden | None = None
    ) -> list[tuple[Tensor, tuple[int, int]]]:
        """Return tokens [B, L, D] and grid at the end of each stage."""
        blocks = self._blocks(*self._first(images_B3HH, hidden), kept_NB2)
        return [(x_BLD, grid) for ends, x_BLD, grid in blocks if ends]

    def _normed(self, stages: list[tuple[Tensor, tuple[int, int]]]) -> Tensor:
        out: Tensor = self.norm(stages[-1][0])
        return out

    def _windows_of(self, stage: int, grid: tuple[int, int], device: torch.device) -> Windows:
        key = (stage, *grid, device)
        if key not in self._windows:
            measure = self.config.measures[stage]
            self._windows[key] = windows_of(grid, self.config.window_side, measured_in=measure, device=device)
        return self._windows[key]


class PatchEmbedding(nn.Module):
    """A convolution whose stride is its kernel, then LayerNorm."""

    def __init__(self, width: int, patch: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(3, width, patch, stride=patch)
        self.norm = nn.LayerNorm(width, eps=NORM_EPS)

    def forward(self, images_B3HH: Tensor) -> Tensor:
        """Return tokens [B, L, D], row by row."""
        out: Tensor = self.norm(patch_tokens(images_B3HH, self.proj.weight, self.proj.bias))
        return out


class SwinStage(nn.Module):
    """Holds what halves the grid, and the blocks, under timm's names."""

    def __init__(self, width: int, depth: int, heads: int, *, merges: bool, main_norms: int) -> None:
        super().__init__()
        self.downsample = PatchMerging(width) if merges else nn.Identity()
        self.blocks = nn.ModuleList(
            SwinBlock(width, heads, moves=place % 2 == 1, main_norm=main_norms > 0 and (place + 1) % main_norms == 0)
            for place in range(depth)
        )


class PatchMerging(nn.Module):
    """Four neighbours become one token of twice their width; a grid of an odd side is filled up with zeros."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.reduction = nn.Linear(2 * width, width, bias=False)
        self.norm = nn.LayerNorm(width, eps=NORM_EPS)

    def forward(self, x_BLD: Tensor, grid: tuple[int, int]) -> Tensor:
        """Return tokens [B, L / 4, 2 D]. The four stand in Swin's order: down the first column, then the second."""
        x_BHWD = x_BLD.reshape(len(x_BLD), *grid, -1)
        if grid[0] % 2 or grid[1] % 2:
            x_BHWD = functional.pad(x_BHWD, (0, 0, 0, grid[1] % 2, 0, grid[0] % 2))
        batch, rows, columns, width = x_BHWD.shape
        fours = x_BHWD.reshape(batch, rows // 2, 2, columns // 2, 2, width).permute(0, 1, 3, 4, 2, 5)
        out: Tensor = self.norm(self.reduction(fours.reshape(batch, -1, 4 * width)))
        return out.to(x_BLD.dtype)


class SwinBlock(Stage):
    """x + norm(attention(x)), then x + norm(mlp(x)); of some the norm of all that."""

    def __init__(self, width: int, heads: int, *, moves: bool, main_norm: bool) -> None:
        super().__init__()
        self.moves = moves
        self.attn = WindowAttention(width, heads)
        self.norm1 = nn.LayerNorm(width, eps=NORM_EPS)
        self.mlp = Mlp(width, bias=True)
        self.norm2 = nn.LayerNorm(width, eps=NORM_EPS)
        self.norm3 = nn.LayerNorm(width, eps=NORM_EPS) if main_norm else None

    def forward(self, x_BLD: Tensor, windows: Windows, kept_B2: Tensor | None = None) -> Tensor:
        return self.computed(x_BLD, windows) if kept_B2 is None else self.computed(x_BLD, windows, kept_B2)

    def compute(self, x_BLD: Tensor, windows: Windows, kept_B2: Tensor | None = None) -> Tensor:
        """Return the block's output; drop path multiplies a picture's two branches by its numbers in `kept_B2`."""
        mixed_BVTD = self.attn(cut(x_BLD, windows, shifted=self.moves), windows, shifted=self.moves)
        # Under autocast a norm gives fp32, and the sum shall stay in the format that it has.
        branch_BLD = self.norm1(join(mixed_BVTD, windows, shifted=self.moves)).to(x_BLD.dtype)
        x_BLD = with_branch(x_BLD, branch_BLD, kept_B2, 0)
        x_BLD = with_branch(x_BLD, self.norm2(self.mlp(x_BLD)).to(x_BLD.dtype), kept_B2, 1)
        return x_BLD if self.norm3 is None else self.norm3(x_BLD).to(x_BLD.dtype)


def _as_map(tokens_BLD: Tensor, grid: tuple[int, int]) -> Tensor:
    return tokens_BLD.transpose(1, 2).reshape(len(tokens_BLD), -1, *grid)


@cache
def _flops(config: SwinV2Config) -> float:
    from torch.utils.flop_counter import FlopCounterMode  # half a second of imports

    with torch.device("meta"), torch.no_grad(), FlopCounterMode(display=False) as counter:
        SwinV2(config).eval()(torch.empty(1, 3, config.image_size, config.image_size))
    return float(counter.get_total_flops())
