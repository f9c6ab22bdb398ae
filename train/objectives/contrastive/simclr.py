"""SimCLR: each view finds the other view of its picture among all views of the batch.

One encoder and one projector for all views, with gradients through both sides of every comparison. Source: Chen et al.,
arXiv:2002.05709, section 2, equation 1.
"""

# B pictures of this process, D width

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Literal

import torch
from torch import Tensor

from headrace.pipeline import Batch
from headrace.train.models.backbones import BackboneConfig
from headrace.train.models.mlp_heads import simclr_projector
from headrace.train.objectives.contrastive.contrastive import Contrastive, check_positive, mean_of, spread_of
from headrace.train.objectives.contrastive.losses import nt_xent, unit


@dataclass(frozen=True, kw_only=True, slots=True)
class SimclrConfig:
    """SimCLR: each view is to find the other view of its picture among all views of the batch."""

    kind: Literal["simclr"]
    """The tag of this objective."""
    backbone: BackboneConfig = field(default_factory=BackboneConfig)
    """The encoder."""
    temperature: float = 0.1
    """What cosines are divided by: 0.1 on ImageNet, 0.5 on CIFAR-10 in the paper."""
    hidden_width: int = 2048
    """Channels inside the projector."""
    feature_width: int = 128
    """Channels that are compared."""

    def __post_init__(self) -> None:
        check_positive(self, "temperature", "hidden_width", "feature_width")

    def build(self, *, image_size: int, seed: int) -> "Simclr":  # noqa: ARG002  torch's generator is seeded by then
        """Return the objective for images of this side."""
        return Simclr(self, image_size=image_size)


class Simclr(Contrastive):
    """Both views against each other and against both of every other picture."""

    reports = ("contrast_accuracy", "feature_spread")

    def __init__(self, config: SimclrConfig, *, image_size: int) -> None:
        super().__init__(config.backbone, image_size=image_size)
        self.config = config
        self.projector = simclr_projector(self.encoder, hidden=config.hidden_width, out=config.feature_width)

    @cached_property
    def train_flops_per_image(self) -> float:
        """Forward and backward of both views through encoder and projector."""
        return 2 * 3 * self.forward_flops([self.projector], self.image_size)

    def forward(self, batch: Batch) -> tuple[Tensor, Mapping[str, Tensor]]:
        """Return the sum over pictures of the mean loss of their views, and how often the partner is the best."""
        # Both views at once, as the paper: BatchNorm sees them together.
        images = torch.cat([self.normalise(view) for view in batch.views])
        own = unit(self.projector(self.encoder.pooled(images))).chunk(2)
        every, rows = self._gathered(own, batch)
        with torch.autocast(images.device.type, enabled=False):
            loss_B, right_B = nt_xent(torch.stack(own), torch.stack(every), rows, temperature=self.config.temperature)
        return loss_B.sum(), {
            "contrast_accuracy": mean_of(right_B, rows),
            "feature_spread": spread_of(own[0], rows.counted_B),
        }
