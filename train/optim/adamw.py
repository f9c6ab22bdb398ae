"""AdamW with the papers' exclusions.

Weight decay skips every tensor with fewer than two dimensions *and* learnt positions, which have two.
"""

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import nn


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
    """Decoupled; never on biases, norms, scales and positions."""
    kind: Literal["adamw"] = "adamw"
    """The tag of this optimizer."""

    def __post_init__(self) -> None:
        if not 0 < self.lr < math.inf or not 0 < self.eps < math.inf or not 0 <= self.weight_decay < math.inf:
            raise ValueError("lr and eps must be above 0, weight_decay at least 0, all finite")
        if not all(0 <= beta < 1 for beta in self.betas):
            raise ValueError(f"betas must be in [0, 1), got {self.betas}")

    def build(self, module: nn.Module) -> torch.optim.Optimizer:
        """Return the optimizer over the trainable parameters of `module`."""
        return build_optimizer(module, self)

    def set_groups(self, optimizer: torch.optim.Optimizer, *, lr: float) -> None:
        """Give the groups of an optimizer that `build` made these numbers, and `lr` as learning rate."""
        decayed, others = optimizer.param_groups
        decayed["weight_decay"] = self.weight_decay
        for group in (decayed, others):
            group["lr"], group["betas"], group["eps"] = lr, self.betas, self.eps


def build_optimizer(module: nn.Module, config: AdamWConfig) -> torch.optim.AdamW:
    """Return AdamW over the trainable parameters, in two groups: decayed and not."""
    named = [(name, parameter) for name, parameter in module.named_parameters() if parameter.requires_grad]
    groups = [
        {"params": [p for name, p in named if is_decayed(name, p)], "weight_decay": config.weight_decay},
        {"params": [p for name, p in named if not is_decayed(name, p)], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=config.lr, betas=config.betas, eps=config.eps, fused=named[0][1].is_cuda)


def is_decayed(name: str, parameter: torch.Tensor) -> bool:
    """True if weight decay applies: matrices and kernels, but not learnt positions."""
    return parameter.ndim >= 2 and not name.endswith(("positional_embedding", "class_embedding"))
