"""AdamW with the papers' exclusions.

Weight decay skips every tensor with fewer than two dimensions *and* learnt positions, which have two.
"""

import math
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import nn

from headrace.train.optim.decay import DecayFollows, check_decay, give_decay
from headrace.train.optim.groups import Decays, parameter_groups


@dataclass(frozen=True, kw_only=True, slots=True)
class AdamWConfig:
    """AdamW. The defaults are AIM's: arXiv:2401.08541, section 4.2, and the training code's config."""

    lr: float = 1e-3
    """Highest learning rate, reached at the end of the warm-up."""
    betas: tuple[float, float] = (0.9, 0.95)
    """Decay of the first and second moment."""
    eps: float = 1e-8
    """Added to the root of the second moment."""
    weight_decay: float = 0.05
    """Decoupled."""
    decays: Decays = "matrices"
    """Which parameters are decayed: matrices = no biases, norms, scales and positions; all = every one, as MoCo v3."""
    decay_multipliers: dict[str, float] = field(default_factory=dict)
    """What weight_decay is multiplied by, by pattern of a parameter's name in the exported file: {"head.*": 100}."""
    decay_follows: DecayFollows = "rate"
    """A step takes from a weight: rate = weight_decay x the learning rate of it; schedule = weight_decay x the part of
    the highest rate that the schedule has reached, as big_vision, so that lr may change and the decay stays."""
    layer_decay: float = 1.0
    """The rate of a block is this times that of the block above; 1 = all the same. For fine-tuning: 0.65 to 0.75."""
    lr_per_images: int = 0
    """lr is that of a step of so many images, and grows with the global batch: MAE and MoCo v3 mean 256, SimMIM 512.
    0 = lr is the rate, whatever the batch."""
    kind: Literal["adamw"] = "adamw"
    """The tag of this optimizer."""

    def __post_init__(self) -> None:
        if not 0 < self.lr < math.inf or not 0 < self.eps < math.inf or not 0 <= self.weight_decay < math.inf:
            raise ValueError("lr and eps must be above 0, weight_decay at least 0, all finite")
        check_decay(self)
        if not all(0 <= beta < 1 for beta in self.betas):
            raise ValueError(f"betas must be in [0, 1), got {self.betas}")
        if not 0 < self.layer_decay <= 1:
            raise ValueError(f"layer_decay must be above 0 and at most 1, got {self.layer_decay}")
        if self.lr_per_images < 0:
            raise ValueError(f"lr_per_images must be at least 0, got {self.lr_per_images}")

    @property
    def idle(self) -> tuple[str, ...]:
        """Fields that came after the first runs, and have the value that those runs mean."""
        means: dict[str, object] = {"layer_decay": 1.0, "decays": "matrices", "lr_per_images": 0}
        means |= {"decay_multipliers": {}, "decay_follows": "rate"}
        return tuple(name for name, meant in means.items() if getattr(self, name) == meant)

    def build(self, module: nn.Module) -> torch.optim.Optimizer:
        """Return the optimizer over the trainable parameters of `module`."""
        return build_optimizer(module, self)

    def set_groups(self, optimizer: torch.optim.Optimizer, *, lr: float) -> None:
        """Give the groups of an optimizer that `build` made these numbers, and `lr` as learning rate."""
        for group in optimizer.param_groups:
            group["lr"] = lr * group["rate_times"]
            group["betas"], group["eps"] = self.betas, self.eps
        give_decay(self, optimizer)


def build_optimizer(module: nn.Module, config: AdamWConfig) -> torch.optim.AdamW:
    """Return AdamW over the trainable parameters, in groups: decayed and not, with layer decay those of each depth.

    Raises ValueError if the rates are to differ by depth and the model has no trunk that says how deep it is.
    """
    groups = parameter_groups(
        module,
        lr=config.lr,
        weight_decay=config.weight_decay,
        decays=config.decays,
        layer_decay=config.layer_decay,
        decay_multipliers=config.decay_multipliers,
    )
    on_cuda = any(parameter.is_cuda for group in groups for parameter in group["params"])
    optimizer = torch.optim.AdamW(groups, lr=config.lr, betas=config.betas, eps=config.eps, fused=on_cuda)
    give_decay(config, optimizer)
    return optimizer
