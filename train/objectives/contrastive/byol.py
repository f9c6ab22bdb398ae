"""BYOL: each view predicts what a slowly moving copy of the encoder makes of the other view; there are no negatives.

Source: Grill et al., arXiv:2006.07733, section 3, equation 2; all else is MoCo v3's frame, which comes from it.
"""

# B pictures of this process, D width

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor

from headrace.pipeline import Batch
from headrace.train.models.backbones import BackboneConfig
from headrace.train.models.mlp_heads import byol_predictor, byol_projector
from headrace.train.objectives.contrastive.contrastive import check_positive, spread_of
from headrace.train.objectives.contrastive.losses import squared_distance, unit
from headrace.train.objectives.contrastive.momentum import WithMomentum, check_momentum, share_at


@dataclass(frozen=True, kw_only=True, slots=True)
class ByolConfig:
    """BYOL: each view is to predict what a momentum encoder makes of the other view; no negatives."""

    kind: Literal["byol"]
    """The tag of this objective."""
    backbone: BackboneConfig = field(default_factory=BackboneConfig)
    """The encoder."""
    momentum: float = 0.996
    """What the momentum encoder keeps of itself at the first step; it rises to 1 by half a cosine."""
    hidden_width: int = 4096
    """Channels inside projector and predictor."""
    feature_width: int = 256
    """Channels that are compared."""

    def __post_init__(self) -> None:
        check_positive(self, "hidden_width", "feature_width")
        check_momentum(self.momentum)

    def build(self, *, image_size: int, seed: int) -> "Byol":  # noqa: ARG002  torch's generator is seeded by then
        """Return the objective for images of this side."""
        return Byol(self, image_size=image_size)


class Byol(WithMomentum):
    """Predictions of one view against the momentum encoder's features of the other, both ways."""

    reports = ("feature_spread",)

    def __init__(self, config: ByolConfig, *, image_size: int) -> None:
        sizes = {"hidden": config.hidden_width, "out": config.feature_width}
        super().__init__(
            config.backbone,
            image_size=image_size,
            projector=lambda encoder: byol_projector(encoder, **sizes),
            predictor=lambda _: byol_predictor(**sizes),
        )
        self.config = config

    def forward(self, batch: Batch) -> tuple[Tensor, Mapping[str, Tensor]]:
        """Return the sum over pictures of both squared distances, 0 to 8 a picture."""
        views = [self.normalise(view) for view in batch.views]
        predicted = [unit(self.predictor(self.projector(self.encoder.pooled(view)))) for view in views]
        targets = [unit(self.momentum(view)) for view in views]
        counted_B = self.counted_rows(batch, predicted[0])
        with torch.autocast(counted_B.device.type, enabled=False):
            loss_B = squared_distance(predicted[0], targets[1]) + squared_distance(predicted[1], targets[0])
        return (loss_B * counted_B).sum(), {"feature_spread": spread_of(predicted[0], counted_B)}

    def before_step(self, step: int, steps: int) -> None:
        """Find what the momentum encoder takes of the weights that step `step` makes: in algorithm 1 it moves then."""
        self.share = share_at(step, steps=steps, momentum=self.config.momentum)
