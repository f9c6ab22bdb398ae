"""The momentum encoder: a copy that follows the weights of the trained one and takes no gradient.

Only parameters follow. Running statistics of BatchNorm are the copy's own: it sees its own activations, as in the
reference code of MoCo v3.
"""

# B batch, D width, H image side in pixels

import math
from collections.abc import Callable, Collection
from functools import cached_property

import torch
from torch import Tensor, nn

from headrace.train.models.backbones import BackboneConfig
from headrace.train.models.encoder import Encoder
from headrace.train.models.mlp_heads import MlpHead
from headrace.train.objectives.contrastive.contrastive import Contrastive
from headrace.train.parallel.layout import piece_of


def share_at(step: int, *, steps: int, momentum: float) -> float:
    """Return what the copy takes of the weights at `step` of `steps`: 1 - `momentum` at first, and 0 at the end.

    It is (1 - momentum) (1 + cos(pi step / steps)) / 2: MoCo v3, arXiv:2104.02057, section 4.1, and BYOL,
    arXiv:2006.07733, section 3.3.
    """
    return (1 - momentum) * (1 + math.cos(math.pi * min(step, steps) / steps)) / 2


def check_momentum(momentum: float) -> None:
    """Raise ValueError for what is no momentum."""
    if not 0 <= momentum <= 1:
        raise ValueError(f"momentum must be 0..1, got {momentum}")


@torch.no_grad()
def follow(copied: nn.Module, trained: nn.Module, share: float) -> None:
    """Move the copy's parameters towards the trained ones: (1 - share) x own + share x trained.

    Of a spread model each process moves the rows that it holds.
    """
    own = [piece_of(parameter).local for parameter in copied.parameters()]
    goal = [piece_of(parameter).local for parameter in trained.parameters()]
    # What is added is small beside what is there: in this form no digits of it are lost, and a share of 0 is exact.
    torch._foreach_lerp_(own, goal, share)


class MomentumBranch(nn.Module):
    """Another encoder and its projector, which give targets, follow the trained ones, and take no gradient."""

    def __init__(self, encoder: Encoder, projector: nn.Module) -> None:
        super().__init__()
        self.encoder: Encoder = encoder.requires_grad_(False)
        self.projector: nn.Module = projector.requires_grad_(False)

    @torch.no_grad()
    def forward(self, images_B3HH: Tensor) -> Tensor:
        """Return the projected features of normalised images, [B, D]."""
        out: Tensor = self.projector(self.encoder.pooled(images_B3HH))
        return out

    def begin(self, encoder: Encoder, projector: nn.Module, given: Collection[str] = ()) -> None:
        """Begin as the trained ones; a part that `given` names whole (`momentum.encoder.*`) keeps its own."""
        for part, trained in (("encoder", encoder), ("projector", projector)):
            copied = getattr(self, part)
            if not all(f"momentum.{part}.{name}" in given for name, _ in copied.named_parameters()):
                follow(copied, trained, 1.0)

    def follow(self, encoder: Encoder, projector: nn.Module, share: float) -> None:
        """Move the parameters towards the trained ones."""
        follow(self.encoder, encoder, share)
        follow(self.projector, projector, share)


class WithMomentum(Contrastive):
    """Two views through encoder, projector and predictor, and through a momentum encoder: MoCo v3 and BYOL."""

    share = 0.0
    """What the momentum encoder takes of the weights that the step makes; `before_step` sets it."""

    def __init__(
        self,
        backbone: BackboneConfig,
        *,
        image_size: int,
        projector: Callable[[Encoder], MlpHead],
        predictor: Callable[[Encoder], MlpHead],
    ) -> None:
        super().__init__(backbone, image_size=image_size)
        self.projector = projector(self.encoder)
        self.predictor = predictor(self.encoder)
        self.momentum = MomentumBranch(backbone.build(image_size), projector(self.encoder))
        self.follow_weights()

    @cached_property
    def train_flops_per_image(self) -> float:
        """Forward and backward of both views through encoder and heads, and forward through the momentum encoder."""
        trained = self.forward_flops([self.projector, self.predictor], self.image_size)
        return 2 * (3 * trained + self.forward_flops([self.projector], self.image_size))

    def follow_weights(self, given: Collection[str] = ()) -> None:
        """Let the momentum encoder begin as the encoder does, but for what was given of it."""
        self.momentum.begin(self.encoder, self.projector, given)

    def after_step(self) -> None:
        """Move the momentum encoder."""
        self.momentum.follow(self.encoder, self.projector, self.share)
