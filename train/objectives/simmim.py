"""SimMIM: predict the pixels of hidden parts of a picture from the rest of it.

Tokens of the first layer are replaced by a learnt one in cells of 32 pixels, nothing is dropped, and one linear layer
predicts pixels from each place of the last map. Which cells are hidden is a function of (seed, global position).
Sources: SimMIM, arXiv:2111.09886; with SwinV2, sliding targets and drop path: arXiv:2206.04664 and its code.
"""

# B batch, L tokens of the first layer, C cells, D width, H image side in pixels

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from headrace.pipeline import Batch
from headrace.shards.permutation import make_key
from headrace.train.models.backbones import BackboneConfig
from headrace.train.models.batch_norm import BatchNorm
from headrace.train.models.encoder import Encoder, Hidden, HidesTokens
from headrace.train.objectives.image_targets import cell_errors, patch_normalised, sliding_normalised
from headrace.train.objectives.objective import Objective
from headrace.train.objectives.patch_choice import chosen_patches, over_tokens
from headrace.train.objectives.tuned import kept_branches
from headrace.train.pixels import IMAGENET_MEAN, IMAGENET_STD, Normalise, on_device

MASK_TOKEN_STD = 0.02
TARGET_WINDOW = 47


def _swin() -> BackboneConfig:
    return BackboneConfig(model="swinv2-b")


@dataclass(frozen=True, kw_only=True, slots=True)
class SimmimConfig:
    """SimMIM: predict the pixels of hidden cells of a picture; a SwinV2 or a transformer, and one linear layer."""

    kind: Literal["simmim"]
    """The tag of this objective."""
    backbone: BackboneConfig = field(default_factory=_swin)
    """The encoder: a SwinV2, or a vision transformer with pool class_token or mean."""
    mask_patch: int = 32
    """Side of a cell in pixels, hidden or seen as a whole; divides image_size."""
    mask_ratio: float = 0.6
    """Share of the cells that are hidden, rounded up: 22 of the 36 of 192 pixels."""
    targets: Literal["pixels", "sliding", "normalised"] = "sliding"
    """pixels = as they are; sliding = each less the mean around it, over the deviation, as in arXiv:2206.04664;
    normalised = each patch that one output predicts with mean 0 and variance 1, as MAE. All by absolute error."""
    target_window: int = TARGET_WINDOW
    """With targets sliding: side in pixels of the square that is around a pixel; odd."""
    drop_path: float = 0.0
    """Share of pictures that skip a branch of the last block; it grows from 0 at the first block. The study has 0.1."""

    def __post_init__(self) -> None:
        if self.mask_patch < 1 or not 0 < self.mask_ratio < 1:
            raise ValueError(
                "mask_patch must be at least 1 and mask_ratio within 0..1, ends excluded, got "
                f"{self.mask_patch} and {self.mask_ratio}"
            )
        if self.target_window < 3 or self.target_window % 2 == 0:
            raise ValueError(f"target_window must be odd and at least 3, got {self.target_window}")
        if self.targets != "sliding" and self.target_window != TARGET_WINDOW:
            raise ValueError(f"target_window is for targets sliding, not {self.targets}")
        if not 0 <= self.drop_path < 1:
            raise ValueError(f"drop_path must be in [0, 1), got {self.drop_path}")

    def build(self, *, image_size: int, seed: int) -> "Simmim":
        """Return the objective for images of this side; `seed` decides what is hidden and what is dropped.

        Raises ValueError if encoder, cells and image do not fit each other.
        """
        encoder = self.backbone.build(image_size)
        if not isinstance(encoder, HidesTokens) or self.backbone.pool == "map":
            what = "pool map reads a picture" if isinstance(encoder, HidesTokens) else "it has no tokens to hide"
            raise ValueError(
                f"backbone {self.backbone.model}: {what}; simmim takes a SwinV2, or a transformer with pool "
                "class_token or mean"
            )
        return Simmim(self, encoder, image_size=image_size, seed=seed)


class Simmim(Objective):
    """An encoder that sees pictures with cells hidden, and a layer that predicts the pixels there."""

    released_prefix = "encoder."

    def __init__(self, config: SimmimConfig, encoder: Encoder, *, image_size: int, seed: int) -> None:
        super().__init__()
        assert isinstance(encoder, HidesTokens), "the config has looked"
        self.config, self.image_size, self.seed = config, image_size, seed
        first, self.stride = encoder.feature_strides[0], encoder.feature_strides[-1]
        self.num_cells = _num_cells(config, image_size, token=first, stride=self.stride)
        self.num_hidden = math.ceil(self.num_cells * config.mask_ratio)
        if self.num_hidden == self.num_cells:
            raise ValueError(
                f"mask_ratio {config.mask_ratio} hides all {self.num_cells} cells of {config.mask_patch} pixels; lower "
                "it, or mask_patch"
            )
        self.tokens_per_cell = config.mask_patch // first
        self.normalise = Normalise(IMAGENET_MEAN, IMAGENET_STD)
        self.encoder = encoder
        self.mask_token = nn.Parameter(torch.empty(encoder.feature_channels[0]))
        # Not trunc_normal_, which cuts at 2, a hundred deviations away, and cannot draw without memory (a dry run).
        nn.init.normal_(self.mask_token, std=MASK_TOKEN_STD)
        self.decoder = nn.Sequential(
            nn.Conv2d(encoder.feature_channels[-1], 3 * self.stride**2, 1), nn.PixelShuffle(self.stride)
        )
        if any(isinstance(module, BatchNorm) for module in encoder.modules()):
            # Statistics are those of the batch: processes may share it, parts may not.
            self.splits, self.gathers, self.averages = False, True, False

    @property
    def trunk(self) -> Encoder:
        """The encoder, which sees whole pictures when a probe reads it."""
        return self.encoder

    @cached_property
    def train_flops_per_image(self) -> float:
        """Forward and backward of the encoder and of the layer that predicts."""
        places = (self.image_size // self.stride) ** 2
        predicting = sum(parameter.numel() for parameter in self.decoder.parameters() if parameter.ndim > 1)
        return 3.0 * (self.encoder.forward_flops + 2.0 * predicting * places)

    def num_terms(self, batch: Batch) -> int:
        """Return the number of hidden cells."""
        return self.num_hidden * int(batch.valid.sum())

    def hidden(self, batch: Batch) -> NDArray[np.bool_]:
        """Return [B, C], True for the cells that are hidden, a function of (seed, global position)."""
        return chosen_patches(batch.position, self.num_cells, self.num_hidden, key=make_key(self.seed, "mask"))

    def forward(self, batch: Batch) -> tuple[Tensor, Mapping[str, Tensor]]:
        """Return the sum over hidden cells of the mean absolute error of their pixels."""
        images_B3HH, hidden_BC = self.normalise(batch.images), self.hidden(batch)
        device = images_B3HH.device
        where_BL = over_tokens(hidden_BC, tokens_per_side=self.tokens_per_cell)
        predicted_B3HH = self.predicted(images_B3HH, on_device(where_BL, device), self._kept(batch.position, device))
        error_BC = cell_errors(predicted_B3HH, self.target(images_B3HH), self.config.mask_patch)
        counted_BC = on_device(hidden_BC & batch.valid[:, None], device)
        return error_BC.mul(counted_BC).sum(), {}

    def predicted(self, images_B3HH: Tensor, where_BL: Tensor, kept_NB2: Tensor | None = None) -> Tensor:
        """Return what is predicted of every pixel, [B, 3, H, H], where the tokens `where_BL` are hidden."""
        assert isinstance(self.encoder, HidesTokens)
        map_BDHW = self.encoder.masked_map(images_B3HH, Hidden(where_BL, self.mask_token), kept_NB2)
        out: Tensor = self.decoder(map_BDHW)
        return out

    @torch.no_grad()
    def target(self, images_B3HH: Tensor) -> Tensor:
        """Return what is to be predicted of normalised images, [B, 3, H, H]."""
        if self.config.targets == "sliding":
            return sliding_normalised(images_B3HH, self.config.target_window)
        return patch_normalised(images_B3HH, self.stride) if self.config.targets == "normalised" else images_B3HH

    def _kept(self, position_B: NDArray[np.int64], device: torch.device) -> Tensor | None:
        rate = self.config.drop_path if self.training else 0.0
        return kept_branches(rate, self.encoder.shape.depth, seed=self.seed, position=position_B, device=device)


def _num_cells(config: SimmimConfig, image_size: int, *, token: int, stride: int) -> int:
    """Return the cells of a picture. Raises ValueError for sizes that do not go into each other."""
    for what, part in (("mask_patch", config.mask_patch), (f"the stride of {config.backbone.model}", stride)):
        if image_size % part:
            raise ValueError(f"{what}, {part}, does not divide image_size {image_size}")
    if config.mask_patch % token:
        raise ValueError(
            f"mask_patch {config.mask_patch} is not whole tokens of the first layer, which are {token} pixels"
        )
    return (image_size // config.mask_patch) ** 2
