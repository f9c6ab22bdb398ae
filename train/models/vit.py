"""The vision transformer of AIM: what the prefix and the supervised objective train and what probes read.

Names of parameters are those of AIM's released trunk, so a state dict can be compared key by key. There is a LayerNorm
directly after the patch projection, before the positions are added; the paper's text omits it. Source: AIM,
arXiv:2401.08541, section 4, and the released inference code.
"""

# B batch, L patches, D width, H image side in pixels, K keys (= L)

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from headrace.train.models.encoder import TunableEncoder, as_map
from headrace.train.models.stage import ResidualStream, Stage

if TYPE_CHECKING:
    from torch.nn.attention.flex_attention import BlockMask

# As in the released inference code; the training code uses 1e-5, which moves outputs by 2e-5.
NORM_EPS = 1e-6
MLP_RATIO = 4

Gelu = Literal["exact", "tanh"]
"""By the error function, as torch has it; or by tanh, as JAX has it unless told otherwise: up to 5e-4 apart."""


@dataclass(frozen=True, kw_only=True, slots=True)
class VitConfig:
    """The shape of one trunk."""

    image_size: int
    """Side of the square input in pixels."""
    patch: int
    """Side of a patch in pixels; divides image_size."""
    width: int
    """Channels of a token; a multiple of 4 (positions) and of heads."""
    depth: int
    """Number of blocks."""
    heads: int
    """Attention heads."""
    norm_eps: float = NORM_EPS
    """Epsilon of its norms."""

    def __post_init__(self) -> None:
        for name in ("image_size", "patch", "width", "depth", "heads"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        if self.image_size % self.patch:
            raise ValueError(f"patch {self.patch} does not divide image_size {self.image_size}")
        if self.width % 4 or self.width % self.heads:
            raise ValueError(f"width {self.width} must be a multiple of 4 and of heads ({self.heads})")

    @property
    def num_patches(self) -> int:
        """Patches of one image."""
        return (self.image_size // self.patch) ** 2

    @property
    def patch_values(self) -> int:
        """Numbers in one patch: patch * patch * 3."""
        return self.patch * self.patch * 3


class Vit(TunableEncoder):
    """Patches -> pre-norm blocks -> LayerNorm; no class token, no bias in the blocks' linear layers."""

    def __init__(self, config: VitConfig) -> None:
        super().__init__()
        self.config = config
        self.preprocessor = Preprocessor(config)
        self.residual = ResidualStream()
        self.trunk = Trunk(config)
        initialise(self)

    @property
    def shape(self) -> VitConfig:
        """The sizes of this trunk."""
        return self.config

    def forward(
        self, images_B3HH: Tensor, attend: "Tensor | BlockMask | None" = None, kept_NB2: Tensor | None = None
    ) -> Tensor:
        """Return tokens [B, L, D] after the last norm.

        `attend` is [B, L, K], True where row may look at column, or the same as a block mask; None = everywhere.
        `kept_NB2` says for each of N blocks what both of its branches are multiplied by (drop path); None = 1.
        """
        return self.from_patches(self.preprocessor(images_B3HH), attend, kept_NB2)

    def from_patches(
        self, patches_BLD: Tensor, attend: "Tensor | BlockMask | None" = None, kept_NB2: Tensor | None = None
    ) -> Tensor:
        """Return tokens [B, L, D] as `forward` does, from what the preprocessor made of the images."""
        x_BLD, mask = self.residual(patches_BLD), over_heads(attend)
        for number, block in enumerate(self.trunk.blocks):
            x_BLD = block(x_BLD, mask) if kept_NB2 is None else block(x_BLD, mask, kept_NB2[number])
        out: Tensor = self.trunk.post_trunk_norm(x_BLD)
        return out

    def pooled(self, images_B3HH: Tensor, kept_NB2: Tensor | None = None) -> Tensor:
        """Return the mean of the tokens after the last norm, [B, D]."""
        return self.pool(self(images_B3HH, None, kept_NB2))

    def block_outputs(self, images_B3HH: Tensor, kept_NB2: Tensor | None = None) -> Iterator[Tensor]:
        """Yield each block's output [B, L, D], before the last norm, with attention everywhere (as at evaluation)."""
        x_BLD = self.residual(self.preprocessor(images_B3HH))
        for number, block in enumerate(self.trunk.blocks):
            x_BLD = block(x_BLD, None) if kept_NB2 is None else block(x_BLD, None, kept_NB2[number])
            yield x_BLD

    @property
    def feature_strides(self) -> tuple[int, ...]:
        """One map, of a place a patch."""
        return (self.config.patch,)

    @property
    def feature_channels(self) -> tuple[int, ...]:
        """The width."""
        return (self.config.width,)

    def feature_maps(self, images_B3HH: Tensor, kept_NB2: Tensor | None = None) -> list[Tensor]:
        """Return the tokens after the last norm as one map [B, D, h, w]."""
        return [as_map(self(images_B3HH, None, kept_NB2), side=images_B3HH.shape[-1] // self.config.patch)]

    def depth_of(self, name: str) -> int:
        """Return where a parameter stands: 0 before the blocks, i + 1 in block i, depth + 1 behind them."""
        kind, _, rest = name.partition(".")
        if kind == "preprocessor":
            return 0
        inside = rest.split(".")
        return int(inside[1]) + 1 if inside[0] == "blocks" else self.config.depth + 1


class Preprocessor(nn.Module):
    """Image -> patch tokens with their fixed positions."""

    positions_LD: Tensor

    def __init__(self, config: VitConfig) -> None:
        super().__init__()
        self.patchifier = Patchifier(config)
        side = config.image_size // config.patch
        self.register_buffer("positions_LD", sincos_positions(side, side, config.width), persistent=False)

    def forward(self, images_B3HH: Tensor) -> Tensor:
        tokens: Tensor = self.patchifier(images_B3HH)
        return tokens + self.positions_LD


class Patchifier(nn.Module):
    """Convolution with bias, then LayerNorm."""

    def __init__(self, config: VitConfig) -> None:
        super().__init__()
        self.proj = nn.Conv2d(3, config.width, config.patch, stride=config.patch)
        self.norm = nn.LayerNorm(config.width, eps=config.norm_eps)

    def forward(self, images_B3HH: Tensor) -> Tensor:
        out: Tensor = self.norm(patch_tokens(images_B3HH, self.proj.weight, self.proj.bias))
        return out


def patch_tokens(images_B3HH: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """Return [B, L, D], the patches of images times a kernel [D, 3, patch, patch]."""
    if images_B3HH.is_cuda:
        return patch_product(images_B3HH, weight, bias)
    return functional.conv2d(images_B3HH, weight, bias, stride=weight.shape[-1]).flatten(2).transpose(1, 2)


def patch_product(images_B3HH: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """Return what the convolution gives, [B, L, D], as a product of matrices: on an H200 a third of its time."""
    batch, channels, height, width = images_B3HH.shape
    patch = weight.shape[-1]
    grid = images_B3HH.reshape(batch, channels, height // patch, patch, width // patch, patch)
    return functional.linear(grid.permute(0, 2, 4, 1, 3, 5).flatten(3).flatten(1, 2), weight.flatten(1), bias)


class Trunk(nn.Module):
    """Holds the blocks and the last norm under the released names."""

    def __init__(self, config: VitConfig) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(
            Block(config.width, config.heads, norm_eps=config.norm_eps) for _ in range(config.depth)
        )
        self.post_trunk_norm = nn.LayerNorm(config.width, eps=config.norm_eps)


class Block(Stage):
    """x + attention(norm(x)), then x + mlp(norm(x))."""

    def __init__(self, width: int, heads: int, *, norm_eps: float = NORM_EPS) -> None:
        super().__init__()
        self.norm_1 = nn.LayerNorm(width, eps=norm_eps)
        self.attn = SelfAttention(width, heads)
        self.norm_2 = nn.LayerNorm(width, eps=norm_eps)
        self.mlp = Mlp(width)

    def forward(self, x_BLD: Tensor, mask: "Tensor | BlockMask | None", kept_B2: Tensor | None = None) -> Tensor:
        return self.computed(x_BLD, mask) if kept_B2 is None else self.computed(x_BLD, mask, kept_B2)

    def compute(self, x_BLD: Tensor, mask: "Tensor | BlockMask | None", kept_B2: Tensor | None = None) -> Tensor:
        """Return the block's output; drop path multiplies a picture's two branches by its numbers in `kept_B2`."""
        x_BLD = with_branch(x_BLD, self.attn(self.norm_1(x_BLD), mask), kept_B2, 0)
        return with_branch(x_BLD, self.mlp(self.norm_2(x_BLD)), kept_B2, 1)


def with_branch(x_BLD: Tensor, branch_BLD: Tensor, kept_B2: Tensor | None, which: int) -> Tensor:
    """Return the sum of both, the branch times its pictures' numbers in column `which` of `kept_B2`."""
    kept = branch_BLD if kept_B2 is None else branch_BLD * kept_B2[:, which, None, None].to(branch_BLD.dtype)
    return x_BLD + kept


class SelfAttention(nn.Module):
    """Multi-head attention; q, k and v in one matrix, in this order. AIM's has no biases."""

    def __init__(self, width: int, heads: int, *, bias: bool = False) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width, bias=bias)
        self.proj = nn.Linear(width, width, bias=bias)

    def forward(self, x_BLD: Tensor, mask: "Tensor | BlockMask | None") -> Tensor:
        """Return the mixed tokens. `mask` is [B, 1, L, K], True where row may look at column, or a block mask."""
        batch, length, width = x_BLD.shape
        qkv = self.qkv(x_BLD).reshape(batch, length, 3, self.heads, width // self.heads).permute(2, 0, 3, 1, 4)
        query, key, value = qkv.unbind(0)
        if mask is None or isinstance(mask, Tensor):
            mixed = functional.scaled_dot_product_attention(query, key, value, attn_mask=mask)
        else:
            mixed = _block_sparse(query, key, value, mask)
        out: Tensor = self.proj(mixed.transpose(1, 2).reshape(batch, length, width))
        return out


def _block_sparse(query: Tensor, key: Tensor, value: Tensor, mask: "BlockMask") -> Tensor:
    from torch.nn.attention.flex_attention import flex_attention  # half a second of imports

    # Not compiled it is a slow loop over the whole matrix; on a CPU, where only tests come, that is well.
    attend = flex_attention if torch.compiler.is_compiling() or not query.is_cuda else _compiled_attention()
    out: Tensor = attend(query, key, value, block_mask=mask)
    return out


@cache
def _compiled_attention() -> Any:
    from torch.nn.attention.flex_attention import flex_attention

    return torch.compile(flex_attention, dynamic=False)


class Mlp(nn.Module):
    """Two linear layers around a GELU. AIM's have no biases."""

    def __init__(self, width: int, *, bias: bool = False, hidden: int | None = None, gelu: Gelu = "exact") -> None:
        super().__init__()
        hidden = MLP_RATIO * width if hidden is None else hidden
        self.approximate = "tanh" if gelu == "tanh" else "none"
        self.fc1 = nn.Linear(width, hidden, bias=bias)
        self.fc2 = nn.Linear(hidden, width, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.fc2(functional.gelu(self.fc1(x), approximate=self.approximate))
        return out


def sincos_positions(rows: int, columns: int, width: int) -> Tensor:
    """Return [rows * columns, width]: the first half encodes the column as (sin, cos), the second half the row."""
    quarter = width // 4
    omega = 10000.0 ** (-torch.arange(quarter, dtype=torch.float64) / quarter)
    column = torch.arange(columns, dtype=torch.float64).repeat(rows)
    row = torch.arange(rows, dtype=torch.float64).repeat_interleave(columns)
    halves = []
    for place in (column, row):
        angle = place[:, None] * omega[None, :]
        halves += [angle.sin(), angle.cos()]
    return torch.cat(halves, dim=1).float()


def over_heads(attend: "Tensor | BlockMask | None") -> "Tensor | BlockMask | None":
    """Return what blocks take of a mask [B, L, K], which all heads share: [B, 1, L, K]. Others are as they are."""
    return attend[:, None] if isinstance(attend, Tensor) else attend


def prefix_attention(prefix_B: Tensor, length: int) -> Tensor:
    """Return [B, L, K], True where patch i may look at patch j: j is in the prefix, or not after i."""
    place = torch.arange(length, device=prefix_B.device)
    return (place[None, None, :] < prefix_B[:, None, None]) | (place[None, None, :] <= place[None, :, None])


def initialise(module: nn.Module) -> None:
    """Xavier-uniform for every linear layer (q, k and v each for itself) and for the patch convolution as a matrix.

    Norms start at 1 and 0, linear biases at 0; the convolution's bias keeps PyTorch's default. Draws from torch's
    generator.
    """
    for child in module.modules():
        if isinstance(child, SelfAttention):
            for part in child.qkv.weight.chunk(3):
                nn.init.xavier_uniform_(part)
            nn.init.xavier_uniform_(child.proj.weight)
            _zero_biases(child.qkv, child.proj)
        elif isinstance(child, Mlp):
            nn.init.xavier_uniform_(child.fc1.weight)
            nn.init.xavier_uniform_(child.fc2.weight)
            _zero_biases(child.fc1, child.fc2)
        elif isinstance(child, Patchifier):
            nn.init.xavier_uniform_(child.proj.weight.view(child.proj.out_channels, -1))


def _zero_biases(*layers: nn.Linear) -> None:
    for layer in layers:
        if layer.bias is not None:
            nn.init.zeros_(layer.bias)
