"""The vision transformer as ViT, DeiT, MoCo v3 and big_vision have it: biases, and no norm behind the patches.

Parameters have timm's names, so files of timm's and of MoCo v3's trunk load as they are. Blocks compute what AIM's do
(`headrace.train.models.vit`), with biases. Sources: arXiv:2010.11929; MoCo v3, arXiv:2104.02057, and its code for
positions and initialisation.
"""

# B batch, L tokens, D width, H image side in pixels, N blocks

import math
from collections.abc import Iterator
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor, nn

from headrace.train.models.encoder import Hidden, TunableEncoder, as_map, with_hidden
from headrace.train.models.positions import resampled
from headrace.train.models.stage import ResidualStream, Stage
from headrace.train.models.trunks.attention_pool import AttentionPool
from headrace.train.models.trunks.patch_projection import PatchProjection, PatchProjectionKind
from headrace.train.models.vit import (
    Gelu,
    Mlp,
    SelfAttention,
    VitConfig,
    initialise,
    over_heads,
    sincos_positions,
    with_branch,
)

if TYPE_CHECKING:
    from torch.nn.attention.flex_attention import BlockMask

Pool = Literal["class_token", "mean", "map"]
Positions = Literal["sincos", "learned", "none"]
# Nearly nothing: MoCo v3's code.
CLASS_TOKEN_STD = 1e-6
# ViT's and timm's learned positions.
POSITIONS_STD = 0.02
POSITIONS_TOLERANCE = 1e-2
"""Largest difference of stored sines and cosines from computed ones: bfloat16 keeps numbers of up to 1 within 0.004."""


# What came after the first files of features, whose names hold the shape as text: left out of that where it is idle.
ADDED = ("mlp_width", "gelu", "bias")


@dataclass(frozen=True, kw_only=True, slots=True, repr=False)
class StandardVitConfig:
    """The shape of one such transformer."""

    grid: VitConfig
    """Sizes of images, patches and blocks."""
    pool: Pool = "class_token"
    """What stands for a picture."""
    last_norm: bool = True
    """A LayerNorm behind the last block."""
    positions: Positions = "sincos"
    """How tokens know their place."""
    patch_projection: PatchProjectionKind = "learned"
    """How the first layer is trained."""
    patch_clip: float = math.inf
    """With patch_projection clipped: the longest gradient of the first layer."""
    mlp_width: int | None = None
    """Channels inside the MLPs; None = four times the width."""
    gelu: Gelu = "exact"
    """Which of the two GELUs."""
    bias: bool = True
    """Biases of the linear layers in the blocks."""

    def __post_init__(self) -> None:
        if self.mlp_width is not None and self.mlp_width < 1:
            raise ValueError(f"mlp_width must be at least 1, got {self.mlp_width}")

    def __repr__(self) -> str:
        shown = [
            field for field in fields(self) if field.name not in ADDED or getattr(self, field.name) != field.default
        ]
        return f"StandardVitConfig({', '.join(f'{field.name}={getattr(self, field.name)!r}' for field in shown)})"

    @property
    def image_size(self) -> int:
        """Side of the square input in pixels; others are taken as well."""
        return self.grid.image_size

    @property
    def patch(self) -> int:
        """Side of a patch in pixels."""
        return self.grid.patch

    @property
    def width(self) -> int:
        """Channels of a token."""
        return self.grid.width

    @property
    def depth(self) -> int:
        """Number of blocks."""
        return self.grid.depth

    @property
    def heads(self) -> int:
        """Attention heads."""
        return self.grid.heads

    @property
    def num_before(self) -> int:
        """Tokens that stand before the patches: the class token, if there is one."""
        return int(self.pool == "class_token")

    @property
    def num_patches(self) -> int:
        """Tokens of one image, the class token among them."""
        return self.grid.num_patches + self.num_before


class StandardVit(TunableEncoder):
    """Patches and class token -> pre-norm blocks -> LayerNorm -> class token, mean, or attention pooling."""

    pos_embed: Tensor | None

    def __init__(self, config: StandardVitConfig) -> None:
        super().__init__()
        self.config, width = config, config.width
        self.cls_token = nn.Parameter(torch.empty(1, 1, width)) if config.num_before else None
        self.patch_embed = PatchProjection(width, config.patch, config.patch_projection)
        if config.positions == "learned":
            self.pos_embed = nn.Parameter(torch.empty(1, config.num_patches, width))
            nn.init.normal_(self.pos_embed, std=POSITIONS_STD)
        else:
            fixed = config.positions == "sincos"
            self.register_buffer("pos_embed", computed_positions(config, config.image_size) if fixed else None)
        self._of_sides: dict[int, Tensor] = {}
        self.residual = ResidualStream()
        self.blocks = nn.ModuleList(StandardBlock(config) for _ in range(config.depth))
        self.norm = nn.LayerNorm(width, eps=config.grid.norm_eps) if config.last_norm else nn.Identity()
        if self.cls_token is not None:
            nn.init.normal_(self.cls_token, std=CLASS_TOKEN_STD)
        initialise(self)
        self.attn_pool: AttentionPool | None = None
        if config.pool == "map":
            self.attn_pool = AttentionPool(width, config.heads, mlp_width=config.mlp_width, gelu=config.gelu)

    @property
    def shape(self) -> StandardVitConfig:
        """The sizes of this transformer."""
        return self.config

    def forward(
        self, images_B3HH: Tensor, attend: "Tensor | BlockMask | None" = None, kept_NB2: Tensor | None = None
    ) -> Tensor:
        """Return tokens [B, L, D] after the last norm, the class token first; arguments are those of `Vit`."""
        out: Tensor = self.norm(self._last(images_B3HH, attend, kept_NB2))
        return out

    def pooled(self, images_B3HH: Tensor, kept_NB2: Tensor | None = None) -> Tensor:
        """Return what stands for each image, [B, D], after the last norm."""
        x_BLD = self._last(images_B3HH, None, kept_NB2)
        if self.attn_pool is not None:
            read: Tensor = self.attn_pool(self.norm(x_BLD))
            return read
        # Of a class token the norm needs no other; a mean is one of normalised tokens.
        out: Tensor = self.pool(self.norm(x_BLD)) if self.cls_token is None else self.norm(self.pool(x_BLD))
        return out

    def pool(self, tokens_BLD: Tensor) -> Tensor:
        """Return the class token of each image, [B, D], or the mean of all tokens: attention pools the last alone."""
        return tokens_BLD.mean(dim=1) if self.cls_token is None else tokens_BLD[:, 0]

    def block_outputs(self, images_B3HH: Tensor, kept_NB2: Tensor | None = None) -> Iterator[Tensor]:
        """Yield each block's output [B, L, D], before the last norm."""
        return self._outputs(images_B3HH, None, kept_NB2)

    @property
    def feature_strides(self) -> tuple[int, ...]:
        """One map, of a place a patch."""
        return (self.config.patch,)

    @property
    def feature_channels(self) -> tuple[int, ...]:
        """The width."""
        return (self.config.width,)

    def feature_maps(self, images_B3HH: Tensor, kept_NB2: Tensor | None = None) -> list[Tensor]:
        """Return the patches after the last norm, without a class token, as one map [B, D, h, w]."""
        return [self._map(self._last(images_B3HH, None, kept_NB2), images_B3HH)]

    def masked_map(self, images_B3HH: Tensor, hidden: Hidden, kept_NB2: Tensor | None = None) -> Tensor:
        """Return the patches as `feature_maps` does, [B, D, h, w], of images with patches hidden."""
        return self._map(self._last(images_B3HH, None, kept_NB2, hidden), images_B3HH)

    def _map(self, last_BLD: Tensor, images_B3HH: Tensor) -> Tensor:
        tokens_BLD = self.norm(last_BLD)[:, self.config.num_before :]
        return as_map(tokens_BLD, side=images_B3HH.shape[-1] // self.config.patch)

    def depth_of(self, name: str) -> int:
        """Return where a parameter stands: 0 before the blocks, i + 1 in block i, depth + 1 behind them."""
        kind, _, rest = name.partition(".")
        if kind == "blocks":
            return int(rest.split(".")[0]) + 1
        return self.config.depth + 1 if kind in ("norm", "attn_pool") else 0

    def fitted(self, name: str, tensor: Tensor) -> Tensor:
        """Return a file's tensor for this encoder: positions of another resolution, or those that are computed here.

        Raises ValueError where positions are computed, and the file's are others.
        """
        if name != "pos_embed" or self.pos_embed is None or tensor.ndim != 3 or tensor.shape[2] != self.config.width:
            return tensor
        if self.config.positions == "learned":
            other = None if tensor.shape == self.pos_embed.shape else resampled(tensor[0], self.pos_embed.shape[1])
            return tensor if other is None else other[None]
        side = math.isqrt(tensor.shape[1] - self.config.num_before)
        if side**2 + self.config.num_before != tensor.shape[1]:
            return tensor
        computed = computed_positions(self.config, side * self.config.patch)
        away = float((tensor.float() - computed.to(tensor.device)).abs().max())
        if not away <= POSITIONS_TOLERANCE:
            raise ValueError(
                f"its positions are not MoCo's sines and cosines, but up to {away:.3g} away: set positions: learned"
            )
        return computed_positions(self.config, self.config.image_size)

    def plain_state(self) -> dict[str, Tensor]:
        """Return the state with the first layer as a plain convolution, which computes the same at evaluation."""
        inside = ("patch_embed.norm.", "patch_embed.length")
        state = {name: tensor for name, tensor in self.state_dict().items() if not name.startswith(inside)}
        state["patch_embed.proj.weight"], state["patch_embed.proj.bias"] = self.patch_embed.plain()
        return state

    def before_update(self) -> None:
        """Clip the gradient of the first layer, where the config says so."""
        if self.config.patch_projection == "clipped":
            self.patch_embed.clip_gradient(self.config.patch_clip)

    def _last(
        self,
        images_B3HH: Tensor,
        attend: "Tensor | BlockMask | None" = None,
        kept_NB2: Tensor | None = None,
        hidden: Hidden | None = None,
    ) -> Tensor:
        x_BLD = None
        for x_BLD in self._outputs(images_B3HH, attend, kept_NB2, hidden):  # noqa: B007  the last is wanted
            pass
        assert x_BLD is not None, "the depth is at least 1"
        return x_BLD

    def _outputs(
        self,
        images_B3HH: Tensor,
        attend: "Tensor | BlockMask | None",
        kept_NB2: Tensor | None,
        hidden: Hidden | None = None,
    ) -> Iterator[Tensor]:
        x_BLD, mask = self.residual(self._tokens(images_B3HH, hidden)), over_heads(attend)
        for number, block in enumerate(self.blocks):
            x_BLD = block(x_BLD, mask) if kept_NB2 is None else block(x_BLD, mask, kept_NB2[number])
            yield x_BLD

    def _tokens(self, images_B3HH: Tensor, hidden: Hidden | None) -> Tensor:
        x_BLD = with_hidden(self.patch_embed(images_B3HH), hidden)
        if self.cls_token is not None:
            x_BLD = torch.cat([self.cls_token.expand(len(x_BLD), -1, -1), x_BLD], dim=1)
        return x_BLD if self.pos_embed is None else x_BLD + self._positions(self.pos_embed, images_B3HH.shape[-1])

    def _positions(self, own_1LD: Tensor, side: int) -> Tensor:
        if side == self.config.image_size:
            return own_1LD
        if self.config.positions == "sincos":
            if side not in self._of_sides or self._of_sides[side].device != own_1LD.device:
                self._of_sides[side] = computed_positions(self.config, side).to(own_1LD.device)
            return self._of_sides[side]
        num_tokens = (side // self.config.patch) ** 2 + self.config.num_before
        other_LD = resampled(own_1LD[0], num_tokens)
        assert other_LD is not None, "both grids are squares"
        return other_LD[None]


class StandardBlock(Stage):
    """x + attention(norm(x)), then x + mlp(norm(x)), with biases unless the config says otherwise."""

    def __init__(self, config: StandardVitConfig) -> None:
        super().__init__()
        width, norm_eps = config.width, config.grid.norm_eps
        self.norm1 = nn.LayerNorm(width, eps=norm_eps)
        self.attn = SelfAttention(width, config.heads, bias=config.bias)
        self.norm2 = nn.LayerNorm(width, eps=norm_eps)
        self.mlp = Mlp(width, bias=config.bias, hidden=config.mlp_width, gelu=config.gelu)

    def forward(self, x_BLD: Tensor, mask: "Tensor | BlockMask | None", kept_B2: Tensor | None = None) -> Tensor:
        return self.computed(x_BLD, mask) if kept_B2 is None else self.computed(x_BLD, mask, kept_B2)

    def compute(self, x_BLD: Tensor, mask: "Tensor | BlockMask | None", kept_B2: Tensor | None = None) -> Tensor:
        """Return the block's output; drop path multiplies a picture's two branches by its numbers in `kept_B2`."""
        x_BLD = with_branch(x_BLD, self.attn(self.norm1(x_BLD), mask), kept_B2, 0)
        return with_branch(x_BLD, self.mlp(self.norm2(x_BLD)), kept_B2, 1)


def computed_positions(config: StandardVitConfig, image_size: int) -> Tensor:
    """Return sines and cosines [1, L, D] for square images of this side; the class token's are 0.

    The first half encodes the row: MoCo v3's meshgrid counts rows first. In AIM and MAE the first half is the column.
    """
    side = image_size // config.patch
    grid_LD = sincos_positions(side, side, config.width).roll(config.width // 2, dims=1)
    return torch.cat([grid_LD.new_zeros(config.num_before, config.width), grid_LD])[None]
