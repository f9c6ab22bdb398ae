"""AIM: predict each patch's pixels from the patches before it, with a random prefix that sees itself.

The loss is a function of (weights, images, seed, global position of each sample); no generator is kept. The output at
patch i predicts patch i + 1, so with a prefix of S patches the first output that counts is number S - 1, and S runs
over 1..K-1 inclusive. Source: AIM, arXiv:2401.08541, sections 3 and 4.2.
"""

# B batch, L patches, D width, P values of a patch, N predicted patches of the whole batch

import dataclasses
import logging
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Literal

import numpy as np
from numpy.typing import NDArray
from torch import Tensor, nn

from headrace.pipeline import Batch
from headrace.train.execution import Execution
from headrace.train.models.rows import take_distinct_rows
from headrace.train.models.stage import ResidualStream, Stage, mark_varying
from headrace.train.models.vit import Mlp, Vit, VitConfig, initialise, prefix_attention, sincos_positions
from headrace.train.objectives.objective import Objective
from headrace.train.objectives.prefixes import prefix_lengths
from headrace.train.pixels import IMAGENET_MEAN, IMAGENET_STD, Normalise, on_device

if TYPE_CHECKING:
    from torch.nn.attention.flex_attention import BlockMask

TARGET_EPS = 1e-6
HEAD_NORM_EPS = 1e-5
FLEX_MIN_CHANNELS = 16

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True, slots=True)
class AimShape:
    """One row of the model table."""

    width: int
    depth: int
    heads: int
    head_width: int
    head_depth: int


# AIM, arXiv:2401.08541, table 1 (head: section 4.2, table 4); tiny is ours, for tests and studies on a CPU.
AIM_SHAPES = {
    "tiny": AimShape(width=192, depth=6, heads=3, head_width=256, head_depth=2),
    "0.6B": AimShape(width=1536, depth=24, heads=12, head_width=2048, head_depth=12),
    "1B": AimShape(width=2048, depth=24, heads=16, head_width=2048, head_depth=12),
    "3B": AimShape(width=3072, depth=24, heads=24, head_width=2048, head_depth=12),
    "7B": AimShape(width=4096, depth=32, heads=32, head_width=2048, head_depth=12),
}


@dataclass(frozen=True, kw_only=True, slots=True)
class AimConfig:
    """AIM: predict each patch's pixels from the patches before it; a trunk from the model table and a pixel head."""

    kind: Literal["aim"]
    """The tag of this objective."""
    model: str
    """A row of the model table: tiny, 0.6B, 1B, 3B or 7B."""
    patch: int = 14
    """Side of a patch in pixels; divides the mixture's image_size."""
    width: int | None = None
    """Channels of the trunk; null = the table's."""
    depth: int | None = None
    """Blocks of the trunk; null = the table's."""
    heads: int | None = None
    """Attention heads of the trunk; null = the table's."""
    head_width: int | None = None
    """Channels of the pixel head; null = the table's."""
    head_depth: int | None = None
    """MLP blocks of the pixel head; null = the table's."""
    head_identity_residual: bool = False
    """True = as in Apple's training code, each block starts with x = x + norm(x); False = the paper's MLP blocks."""

    def __post_init__(self) -> None:
        if self.model not in AIM_SHAPES:
            raise ValueError(f"unknown model {self.model!r}; known models: {', '.join(AIM_SHAPES)}")
        shape = self.shape
        if shape.head_width < 4 or shape.head_width % 4 or shape.head_depth < 0:
            raise ValueError(f"head_width must be a multiple of 4 and head_depth >= 0, got {shape}")

    @property
    def shape(self) -> AimShape:
        """The table's row with this config's changes."""
        row = AIM_SHAPES[self.model]
        names = ("width", "depth", "heads", "head_width", "head_depth")
        return AimShape(
            **{name: getattr(row, name) if getattr(self, name) is None else getattr(self, name) for name in names}
        )

    def build(self, *, image_size: int, seed: int) -> "Aim":
        """Return the objective for images of this side; `seed` decides the prefixes."""
        return Aim(self, image_size=image_size, seed=seed)

    def trunk(self, image_size: int) -> VitConfig:
        """Return the trunk for images of this side. Raises ValueError if they do not fit."""
        shape = self.shape
        return VitConfig(
            image_size=image_size, patch=self.patch, width=shape.width, depth=shape.depth, heads=shape.heads
        )


class Aim(Objective):
    """Trunk with prefix attention, MLP head, squared error on normalised pixels."""

    released_prefix = "encoder."

    def __init__(self, config: AimConfig, *, image_size: int, seed: int) -> None:
        super().__init__()
        trunk = config.trunk(image_size)
        if trunk.num_patches < 2:
            raise ValueError(
                f"one patch of {config.patch} fills the image of {image_size}: nothing follows it to predict"
            )
        self.config, self.seed = config, seed
        self.num_patches, self.patch = trunk.num_patches, config.patch
        self.normalise = Normalise(IMAGENET_MEAN, IMAGENET_STD)
        self.encoder = Vit(trunk)
        self.head = PixelHead(trunk, config)

    def run_as(self, execution: Execution) -> None:
        """Compute as `execution` says; FlexAttention has no kernels for heads of under 16 channels."""
        shape = self.encoder.config
        if execution.flex and shape.width // shape.heads < FLEX_MIN_CHANNELS:
            log.warning("heads of %d channels are too narrow for flex: sdpa", shape.width // shape.heads)
            execution = dataclasses.replace(execution, flex=False)
        super().run_as(execution)
        self.head.compiled = execution.compiled

    @property
    def trunk(self) -> Vit:
        """The encoder, which attends everywhere when a probe reads it."""
        return self.encoder

    @cached_property
    def train_flops_per_image(self) -> float:
        """6 x parameters x tokens + 12 x depth x width x tokens^2: all positions, as published counts do."""
        tokens, trunk = self.num_patches, self.encoder.config
        parameters = sum(parameter.numel() for parameter in self.parameters())
        return 6.0 * parameters * tokens + 12.0 * trunk.depth * trunk.width * tokens * tokens

    def needed_flops(self, batch: Batch) -> float:
        """Return the operations of a step that the loss of `batch` needs.

        The head counts where its output is in the loss, attention where a patch sees another.
        """
        tokens, trunk, prefix_B = self.num_patches, self.encoder.config, self.prefixes(batch).astype(np.float64)
        sizes = [sum(parameter.numel() for parameter in part.parameters()) for part in (self.encoder, self.head)]
        pairs = float((tokens * (tokens + 1) / 2 + prefix_B * (prefix_B - 1) / 2).sum())
        dense = 6.0 * (sizes[0] * tokens * len(prefix_B) + sizes[1] * self.num_terms(batch))
        return dense + 12.0 * trunk.depth * trunk.width * pairs

    def num_terms(self, batch: Batch) -> int:
        """Return the number of predicted patches."""
        prefix_B = self.prefixes(batch)
        return int((self.num_patches - prefix_B)[batch.valid].sum())

    def prefixes(self, batch: Batch) -> NDArray[np.int64]:
        """Return the prefix length of each sample, a function of (seed, global position)."""
        return prefix_lengths(batch.position, self.num_patches, self.seed)

    def forward(self, batch: Batch) -> tuple[Tensor, Mapping[str, Tensor]]:
        """Return the sum over predicted patches of their mean squared pixel error."""
        images_B3HH = self.normalise(batch.images)
        prefix_B, device = self.prefixes(batch), images_B3HH.device
        rows, count = self._head_rows(predicting_rows(prefix_B, batch.valid, self.num_patches), prefix_B.size)
        rows_N = on_device(rows, device)
        tokens_BLD = self.encoder(images_B3HH, self._attends(on_device(prefix_B, device)))
        # The head has no attention, so running it on the outputs that count alone is exact, and halves its work.
        take = take_distinct_rows if self.execution.compiled else Tensor.__getitem__
        predicted_NP = self.head(take(tokens_BLD.flatten(0, 1), rows_N), rows_N % self.num_patches)
        target_BLP = normalised_patches(images_B3HH, self.patch)
        # The last patch of all predicts nothing: where it stands among the rows that do not count, no row follows it.
        target_NP = target_BLP.flatten(0, 1)[(rows_N + 1) % (prefix_B.size * self.num_patches)]
        loss_N = (predicted_NP.to(target_NP.dtype) - target_NP).square().mean(dim=1)
        return loss_N[:count].sum(), {}

    def _attends(self, prefix_B: Tensor) -> "Tensor | BlockMask":
        if self.execution.flex:
            from headrace.train.models.block_mask import prefix_block_mask

            return prefix_block_mask(prefix_B, self.num_patches)
        return prefix_attention(prefix_B, self.num_patches)

    def _head_rows(self, rows_N: NDArray[np.int64], images: int) -> tuple[NDArray[np.int64], int]:
        """Return the rows of tokens that the head sees, and how many in front of them count."""
        pads = padded_with_others if self.execution.compiled else padded
        return pads(rows_N, images * self.num_patches)


class PixelHead(nn.Module):
    """Linear -> positions -> MLP blocks -> norm -> linear to pixels.

    Works on single tokens, whatever image they belong to.
    """

    positions_LD: Tensor
    compiled: bool = False
    """True if its blocks are compiled."""

    def __init__(self, trunk: VitConfig, config: AimConfig) -> None:
        super().__init__()
        shape, side = config.shape, trunk.image_size // trunk.patch
        self.decoder_projection = nn.Linear(shape.width, shape.head_width)
        self.register_buffer("positions_LD", sincos_positions(side, side, shape.head_width), persistent=False)
        self.residual = ResidualStream()
        self.decoder_blocks = nn.ModuleList(
            HeadBlock(shape.head_width, identity_residual=config.head_identity_residual)
            for _ in range(shape.head_depth)
        )
        self.decoder_norm = nn.LayerNorm(shape.head_width, eps=HEAD_NORM_EPS)
        self.decoder_pred = nn.Linear(shape.head_width, trunk.patch_values)
        initialise(self)
        for linear in (self.decoder_projection, self.decoder_pred):
            nn.init.xavier_uniform_(linear.weight)
            nn.init.zeros_(linear.bias)

    def forward(self, tokens_ND: Tensor, place_N: Tensor) -> Tensor:
        """Return predicted pixels [N, P] for tokens that stand at `place_N` in their images."""
        x_ND = self.residual(self.decoder_projection(tokens_ND) + self.positions_LD[place_N])
        for block in self.decoder_blocks:
            if self.compiled:
                mark_varying(x_ND)
            x_ND = block(x_ND)
        out: Tensor = self.decoder_pred(self.decoder_norm(x_ND))
        return out


class HeadBlock(Stage):
    """x + mlp(norm(x)), after x + norm(x) where `identity_residual` asks for the reference's training code."""

    varying_rows = True

    def __init__(self, width: int, *, identity_residual: bool) -> None:
        super().__init__()
        self.norm_1 = nn.LayerNorm(width, eps=HEAD_NORM_EPS) if identity_residual else None
        self.norm_2 = nn.LayerNorm(width, eps=HEAD_NORM_EPS)
        self.mlp = Mlp(width)

    def forward(self, x_ND: Tensor) -> Tensor:
        return self.computed(x_ND)

    def compute(self, x_ND: Tensor) -> Tensor:
        if self.norm_1 is not None:
            x_ND = x_ND + self.norm_1(x_ND)
        out: Tensor = x_ND + self.mlp(self.norm_2(x_ND))
        return out


def predicting_rows(prefix_B: NDArray[np.int64], valid_B: NDArray[np.bool_], num_patches: int) -> NDArray[np.int64]:
    """Return the rows of all tokens (batch-major) whose output predicts a patch behind its sample's prefix."""
    place_L = np.arange(num_patches)
    counts_BL = (place_L >= prefix_B[:, None] - 1) & (place_L < num_patches - 1) & valid_B[:, None]
    return np.flatnonzero(counts_BL)


def padded(rows_N: NDArray[np.int64], num_tokens: int) -> tuple[NDArray[np.int64], int]:
    """Return the rows followed by zeros up to one of about 32 lengths, and how many rows there were.

    A new length every step makes allocators keep one block for each: a run on a CPU grew by 3 GB in 800 steps.
    """
    step = max(1, num_tokens // 32)
    return np.pad(rows_N, (0, -len(rows_N) % step)), len(rows_N)


def padded_with_others(rows_N: NDArray[np.int64], num_tokens: int) -> tuple[NDArray[np.int64], int]:
    """Return the rows followed by others, distinct, up to one of the lengths of `padded`, and how many rows there were.

    Distinct, as `take_distinct_rows` wants them. A few lengths only, so that memory is used again; one compiled graph
    serves them all.
    """
    others = np.ones(num_tokens, np.bool_)
    others[rows_N] = False
    length = len(padded(rows_N, num_tokens)[0])
    return np.concatenate([rows_N, np.flatnonzero(others)[: length - len(rows_N)]]), len(rows_N)


def normalised_patches(images_B3HH: Tensor, patch: int) -> Tensor:
    """Return targets [B, L, P]: patches row by row, channel fastest inside, each with mean 0, unbiased variance 1."""
    batch, channels, height, width = images_B3HH.shape
    grid = images_B3HH.reshape(batch, channels, height // patch, patch, width // patch, patch)
    target_BLP = grid.permute(0, 2, 4, 3, 5, 1).reshape(batch, -1, patch * patch * channels)
    mean = target_BLP.mean(dim=-1, keepdim=True)
    variance = target_BLP.var(dim=-1, keepdim=True, unbiased=True)
    return (target_BLP - mean) / (variance + TARGET_EPS).sqrt()
