"""The base of the objectives that compare views: the encoder, what a batch must be, features of all processes.

The loss is one of the whole batch: BatchNorm takes its statistics over all processes, and pictures are compared with
those of all. So any number of processes computes what one does, and a batch in parts would compute something else.
"""

# B pictures of this process, N pictures of all, D width, H image side in pixels

import math
from collections.abc import Sequence
from functools import cache

import numpy as np
import torch
from torch import Tensor, nn

from headrace.pipeline import Batch
from headrace.train.models.backbones import BackboneConfig
from headrace.train.models.encoder import Encoder
from headrace.train.objectives.contrastive.losses import Rows
from headrace.train.objectives.objective import Objective
from headrace.train.parallel.gathering import gather_rows
from headrace.train.pixels import IMAGENET_MEAN, IMAGENET_STD, Normalise, on_device

VIEWS = 2


class Contrastive(Objective):
    """An encoder that is trained by comparing views of pictures."""

    splits = False
    gathers = True
    averages = False
    released_prefix = "encoder."

    def __init__(self, backbone: BackboneConfig, *, image_size: int) -> None:
        super().__init__()
        self.backbone, self.image_size = backbone, image_size
        self.normalise = Normalise(IMAGENET_MEAN, IMAGENET_STD)
        self.encoder: Encoder = backbone.build(image_size)
        self.sides: tuple[int, ...] = (image_size,) * VIEWS

    @property
    def trunk(self) -> Encoder:
        """The encoder."""
        return self.encoder

    def num_terms(self, batch: Batch) -> int:
        """Return the number of pictures."""
        return int(batch.valid.sum())

    def expect_views(self, sides: Sequence[int], *, global_batch: int) -> None:
        """Take note of the views' sides. Raises ValueError if they, or a batch of so many pictures, cannot be."""
        if global_batch < 2:
            raise ValueError(
                "a batch of 1 picture has no other to compare with, and no statistics for BatchNorm: global_batch "
                "must be at least 2"
            )
        self.check_sides(sides)
        for number, side in enumerate(sides):
            try:
                _encoder_flops(self.backbone, self.image_size, side)
            except ValueError as error:
                raise ValueError(f"view {number}: {error}") from error
        self.sides = tuple(sides)

    def check_sides(self, sides: Sequence[int]) -> None:
        """Raise ValueError unless there are two views of the encoder's side."""
        if len(sides) != VIEWS:
            raise ValueError(
                f"it compares {VIEWS} views of a picture, and the mixture gives {len(sides)}: set mixture.preset to "
                f"moco_v3, byol or simclr, or write {VIEWS} `views`"
            )
        for number, side in enumerate(sides):
            if side != self.image_size:
                raise ValueError(
                    f"its views are as large as the mixture's image_size, {self.image_size} pixels, and view {number} "
                    f"has {side}"
                )

    def forward_flops(self, heads: Sequence[nn.Module], side: int) -> float:
        """Return the operations of one forward pass of the encoder and `heads` for one view."""
        in_heads = sum(
            layer.weight.numel() for head in heads for layer in head.modules() if isinstance(layer, nn.Linear)
        )
        return _encoder_flops(self.backbone, self.image_size, side) + 2.0 * in_heads

    def counted_rows(self, batch: Batch, like: Tensor) -> Tensor:
        """Return 1 where a picture counts, on the device and in the format of `like`."""
        return on_device(batch.valid.astype(np.float32), like.device).to(like.dtype)

    def _gathered(self, views: Sequence[Tensor], batch: Batch) -> tuple[list[Tensor], Rows]:
        """Return each view's features [B, D] of all processes, [N, D], and which rows are whose."""
        counted_B = self.counted_rows(batch, views[0])
        # One exchange for all: two could come in another order on another rank.
        together = gather_rows(torch.cat([*views, counted_B[:, None]], dim=1), self.ranks, "the features of all views")
        widths = [view.shape[1] for view in views]
        *every, counted_N1 = torch.split(together, [*widths, 1], dim=1)
        place_B = torch.arange(len(counted_B), device=counted_B.device) + self.ranks.rank * len(counted_B)
        return list(every), Rows(place_B, counted_B, counted_N1.detach()[:, 0])


@cache
def _encoder_flops(backbone: BackboneConfig, image_size: int, side: int) -> float:
    """Return the operations of one forward pass for one image, counted on tensors without memory."""
    from torch.utils.flop_counter import FlopCounterMode

    with torch.device("meta"), torch.no_grad(), FlopCounterMode(display=False) as counter:
        backbone.build(image_size).eval().pooled(torch.empty(1, 3, side, side))
    return float(counter.get_total_flops())


@torch.no_grad()
def spread_of(feature_BD: Tensor, counted_B: Tensor) -> Tensor:
    """Return how far features of length 1 stand apart: 0 where all are the same (collapse), 1 where they cancel out.

    It is the root of 1 - |mean|^2 over this process's pictures.
    """
    mean_D = (feature_BD * counted_B[:, None]).sum(dim=0) / counted_B.sum().clamp(min=1)
    return (1 - mean_D.square().sum()).clamp(min=0).sqrt()


def mean_of(values_B: Tensor, rows: Rows) -> Tensor:
    """Return the mean over the pictures of this process that count."""
    return values_B.sum() / rows.counted_B.sum().clamp(min=1)


def check_positive(config: object, *names: str) -> None:
    """Raise ValueError naming the first of these fields that is not above 0 and finite."""
    for name in names:
        if not 0 < getattr(config, name) < math.inf:
            raise ValueError(f"{name} must be above 0 and finite, got {getattr(config, name)}")
