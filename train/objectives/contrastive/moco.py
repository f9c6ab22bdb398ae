"""MoCo v3: each view finds its picture among the keys of all pictures of the batch.

Queries come from encoder, projector and predictor; keys from a momentum encoder, without a predictor and without a
gradient. Source: Chen, Xie, He, arXiv:2104.02057, algorithm 1, and its code.
"""

# B pictures of this process, D width

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor

from headrace.pipeline import Batch
from headrace.train.models.backbones import BackboneConfig
from headrace.train.models.mlp_heads import moco_predictor, moco_projector
from headrace.train.objectives.contrastive.contrastive import check_positive, mean_of, spread_of
from headrace.train.objectives.contrastive.losses import info_nce, unit
from headrace.train.objectives.contrastive.momentum import WithMomentum, check_momentum, share_at


@dataclass(frozen=True, kw_only=True, slots=True)
class MocoConfig:
    """MoCo v3: each view is to find its own picture among all of the batch, as a momentum encoder sees them."""

    kind: Literal["moco"]
    """The tag of this objective."""
    backbone: BackboneConfig = field(default_factory=BackboneConfig)
    """The encoder."""
    temperature: float = 0.2
    """What cosines are divided by; the paper has 0.2 for its ViTs and 1.0 for ResNet-50."""
    momentum: float = 0.99
    """What the momentum encoder keeps of itself at the first step; it rises to 1 by half a cosine."""

    hidden_width: int = 4096
    """Channels inside projector and predictor."""
    feature_width: int = 256
    """Channels that are compared."""

    def __post_init__(self) -> None:
        check_positive(self, "temperature", "hidden_width", "feature_width")
        check_momentum(self.momentum)

    def build(self, *, image_size: int, seed: int) -> "Moco":  # noqa: ARG002  torch's generator is seeded by then
        """Return the objective for images of this side."""
        return Moco(self, image_size=image_size)


class Moco(WithMomentum):
    """Queries of one view against the momentum encoder's keys of the other, both ways."""

    reports = ("contrast_accuracy", "feature_spread")

    def __init__(self, config: MocoConfig, *, image_size: int) -> None:
        sizes = {"hidden": config.hidden_width, "out": config.feature_width}
        super().__init__(
            config.backbone,
            image_size=image_size,
            projector=lambda encoder: moco_projector(encoder, **sizes),
            predictor=lambda encoder: moco_predictor(encoder, **sizes),
        )
        self.config = config

    def forward(self, batch: Batch) -> tuple[Tensor, Mapping[str, Tensor]]:
        """Return the sum over pictures of their loss, and how often the right key is the best."""
        views = [self.normalise(view) for view in batch.views]
        queries = [unit(self.predictor(self.projector(self.encoder.pooled(view)))) for view in views]
        keys, rows = self._gathered([unit(self.momentum(view)) for view in views], batch)
        with torch.autocast(rows.counted_B.device.type, enabled=False):
            both = [
                info_nce(query, key, rows, temperature=self.config.temperature)
                for query, key in zip(queries, reversed(keys), strict=True)
            ]
        loss_B, right_B = (first + second for first, second in zip(*both, strict=True))
        return loss_B.sum(), {
            "contrast_accuracy": mean_of(right_B, rows) / 2,
            "feature_spread": spread_of(queries[0], rows.counted_B),
        }

    def before_step(self, step: int, steps: int) -> None:
        """Find what the momentum encoder takes of the weights that step `step` makes.

        The paper moves it in step t with the weights before that step. These are the weights behind step t - 1, so it
        moves there: a step that is done again, or passed over, then moves it as often as the weights.
        """
        self.share = share_at(step + 1, steps=steps, momentum=self.config.momentum)
