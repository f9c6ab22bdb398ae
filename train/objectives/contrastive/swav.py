"""SwAV: what one view is assigned to among prototypes is predicted from the other views.

Assignments (codes) of the first two views are levelled over all pictures of the batch, and of a queue where batches are
small; further, smaller views only predict. Source: Caron et al., arXiv:2006.09882, section 3, and its code.
"""

# B pictures of this process, N pictures of all, Q pictures in the queue, D width, K prototypes

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from headrace.pipeline import Batch
from headrace.train.models.backbones import BackboneConfig
from headrace.train.models.mlp_heads import swav_projector
from headrace.train.objectives.contrastive.contrastive import Contrastive, check_positive, spread_of
from headrace.train.objectives.contrastive.losses import sinkhorn, swapped_prediction, unit
from headrace.train.parallel.gathering import gather_rows
from headrace.train.parallel.layout import piece_of
from headrace.train.pixels import on_device

CODE_VIEWS = 2
LEAST_EPSILON = 0.02  # exp(1 / epsilon) and its inverse lie in fp32


@dataclass(frozen=True, kw_only=True, slots=True)
class SwavConfig:
    """SwAV: the prototypes that one view is assigned to are to be predicted from the other views."""

    kind: Literal["swav"]
    """The tag of this objective."""
    backbone: BackboneConfig = field(default_factory=BackboneConfig)
    """The encoder."""
    prototypes: int = 3000
    """Directions that pictures are shared out among, each as many; at most the pictures of a batch with its queue."""
    temperature: float = 0.1
    """What cosines of predictions are divided by."""
    epsilon: float = 0.05
    """What cosines of assignments are divided by: how soft they are."""
    iterations: int = 3
    """Rounds of levelling prototypes and pictures."""
    hidden_width: int = 2048
    """Channels inside the projector."""
    feature_width: int = 128
    """Channels that are compared with prototypes."""
    frozen_steps: int = 0
    """First steps in which the prototypes stay as they were drawn."""
    queue_images: int = 0
    """Latest pictures of earlier steps that have a part in the levelling; 0 = none."""
    queue_from: int = 0
    """Step from which on pictures go into the queue; it counts once it is full."""

    def __post_init__(self) -> None:
        check_positive(self, "prototypes", "temperature", "iterations", "hidden_width", "feature_width")
        if not LEAST_EPSILON <= self.epsilon < 10:
            raise ValueError(f"epsilon must be {LEAST_EPSILON} to 10, got {self.epsilon}")
        for name in ("frozen_steps", "queue_images", "queue_from"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} must be at least 0, got {getattr(self, name)}")

    def build(self, *, image_size: int, seed: int) -> "Swav":  # noqa: ARG002  torch's generator is seeded by then
        """Return the objective for images of this side."""
        return Swav(self, image_size=image_size)


class Swav(Contrastive):
    """Every view against the codes of the first two."""

    reports = ("used_prototypes", "feature_spread")
    queue_AQD: Tensor
    """Features of the latest pictures, the newest first; row by row of length 1, or 0 where there is none yet."""

    def __init__(self, config: SwavConfig, *, image_size: int) -> None:
        super().__init__(config.backbone, image_size=image_size)
        self.config, self.least_samples = config, config.prototypes
        self.projector = swav_projector(self.encoder, hidden=config.hidden_width, out=config.feature_width)
        self.prototypes = nn.Linear(config.feature_width, config.prototypes, bias=False)
        queue = torch.zeros(CODE_VIEWS, config.queue_images, config.feature_width)
        self.register_buffer("queue_AQD", queue, persistent=config.queue_images > 0)
        self._step = 0
        self.follow_weights()

    def expect_views(self, sides: Sequence[int], *, global_batch: int) -> None:
        """Raise ValueError for under two large views, a view that the encoder does not take, or too few pictures."""
        super().expect_views(sides, global_batch=global_batch)
        config = self.config
        pictures = global_batch + config.queue_images
        if pictures < config.prototypes:
            raise ValueError(
                f"{config.prototypes:,} prototypes are to have as many pictures each, and there are {pictures:,} "
                f"(global_batch {global_batch:,}, queue_images {config.queue_images:,}): fewer prototypes, a larger "
                "batch, or a queue"
            )

    def check_sides(self, sides: Sequence[int]) -> None:
        """Raise ValueError unless the first two views have the encoder's side, and it takes the others."""
        if len(sides) < CODE_VIEWS or any(side != self.image_size for side in sides[:CODE_VIEWS]):
            given = ", ".join(map(str, sides))
            raise ValueError(
                f"its first {CODE_VIEWS} views are as large as the mixture's image_size, {self.image_size} pixels, and "
                f"the mixture's are of {given}: set mixture.preset to swav, or write `views`"
            )

    @property
    def train_flops_per_image(self) -> float:
        """Forward and backward of all views through encoder, projector and prototypes."""
        heads = [self.projector, self.prototypes]
        return 3 * sum(self.forward_flops(heads, side) for side in self.sides)

    def forward(self, batch: Batch) -> tuple[Tensor, Mapping[str, Tensor]]:
        """Return the sum over pictures of their loss, and the share of prototypes that are some picture's best."""
        views = self._features([self.normalise(view) for view in batch.views])
        every, rows = self._gathered([view.detach() for view in views[:CODE_VIEWS]], batch)
        with torch.autocast(rows.counted_B.device.type, enabled=False):
            prototypes_KD = self.prototypes.weight.to(views[0].dtype)
            codes = [self._codes(number, x_ND, prototypes_KD, rows.counted_N) for number, x_ND in enumerate(every)]
            cosines = [view @ prototypes_KD.T for view in views]
            own = [code_NK[rows.place_B] for code_NK in codes]
            loss_B = swapped_prediction(cosines, own, temperature=self.config.temperature) * rows.counted_B
        self._remember(every, batch)
        return loss_B.sum(), {
            "used_prototypes": _share_used(codes[0], rows.counted_N),
            "feature_spread": spread_of(views[0], rows.counted_B),
        }

    def _features(self, views: Sequence[Tensor]) -> list[Tensor]:
        """Return the features of each view; views of one size go through the encoder at once, all through the head."""
        pooled: dict[int, Tensor] = {}
        for side in dict.fromkeys(view.shape[-1] for view in views):
            numbers = [number for number, view in enumerate(views) if view.shape[-1] == side]
            outputs = self.encoder.pooled(torch.cat([views[number] for number in numbers])).chunk(len(numbers))
            pooled |= dict(zip(numbers, outputs, strict=True))
        together = torch.cat([pooled[number] for number in range(len(views))])
        return list(unit(self.projector(together)).chunk(len(views)))

    @torch.no_grad()
    def _codes(self, number: int, every_ND: Tensor, prototypes_KD: Tensor, counted_N: Tensor) -> Tensor:
        """Return the codes [N, K] of a view of all processes, levelled together with its queue where that is full."""
        config, num_own = self.config, len(every_ND)
        if config.queue_images and self.training:
            queue_QD = self.queue_AQD[number].to(every_ND.dtype)
            is_full = queue_QD[-1].any().to(counted_N.dtype)
            every_ND = torch.cat([every_ND, queue_QD])
            counted_N = torch.cat([counted_N, is_full.expand(len(queue_QD))])
        codes = sinkhorn(every_ND @ prototypes_KD.T, counted_N, epsilon=config.epsilon, iterations=config.iterations)
        return codes[:num_own]

    @torch.no_grad()
    def _remember(self, every: Sequence[Tensor], batch: Batch) -> None:
        if not self.config.queue_images or not self.training or self._step < self.config.queue_from:
            return
        position_B = on_device(batch.position, every[0].device)
        # The same order for any number of processes.
        order_N = gather_rows(position_B, self.ranks, "the positions of all pictures").argsort()
        for number, x_ND in enumerate(every):
            queue_QD = self.queue_AQD[number]
            queue_QD.copy_(torch.cat([x_ND[order_N].to(queue_QD.dtype), queue_QD])[: len(queue_QD)])

    def before_step(self, step: int, steps: int) -> None:  # noqa: ARG002
        """Know which step it is."""
        self._step = step

    def before_update(self) -> None:
        """Leave the prototypes where they are in the first steps: an optimizer passes over what has no gradient."""
        super().before_update()
        if self._step < self.config.frozen_steps:
            self.prototypes.weight.grad = None

    def after_step(self) -> None:
        """Bring prototypes that have moved back to length 1."""
        if self._step >= self.config.frozen_steps:
            self.follow_weights()

    @torch.no_grad()
    def follow_weights(self, given: Collection[str] = ()) -> None:  # noqa: ARG002
        """Bring the prototypes to length 1."""
        rows = piece_of(self.prototypes.weight).local
        rows.copy_(functional.normalize(rows, dim=1))


def _share_used(codes_NK: Tensor, counted_N: Tensor) -> Tensor:
    """Return how many prototypes are the best of some picture, as a share of those that could be."""
    pictures_K = torch.zeros_like(codes_NK[0]).index_add(0, codes_NK.argmax(dim=1), counted_N)
    return (pictures_K > 0).sum() / counted_N.sum().clamp(min=1, max=codes_NK.shape[1])
