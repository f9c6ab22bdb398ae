"""AdamW with the papers' exclusions.

Weight decay skips every tensor with fewer than two dimensions *and* learnt positions, which have two.
"""

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import nn

from headrace.train.optim.layers import layers_below_top


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
    layer_decay: float = 1.0
    """The rate of a block is this times that of the block above; 1 = all the same. For fine-tuning: 0.65 to 0.75."""
    kind: Literal["adamw"] = "adamw"
    """The tag of this optimizer."""

    def __post_init__(self) -> None:
        if not 0 < self.lr < math.inf or not 0 < self.eps < math.inf or not 0 <= self.weight_decay < math.inf:
            raise ValueError("lr and eps must be above 0, weight_decay at least 0, all finite")
        if not all(0 <= beta < 1 for beta in self.betas):
            raise ValueError(f"betas must be in [0, 1), got {self.betas}")
        if not 0 < self.layer_decay <= 1:
            raise ValueError(f"layer_decay must be above 0 and at most 1, got {self.layer_decay}")

    @property
    def idle(self) -> tuple[str, ...]:
        """Fields that came after the first runs, and have the value that those runs mean."""
        return ("layer_decay",) if self.layer_decay == 1 else ()

    def build(self, module: nn.Module) -> torch.optim.Optimizer:
        """Return the optimizer over the trainable parameters of `module`."""
        return build_optimizer(module, self)

    def set_groups(self, optimizer: torch.optim.Optimizer, *, lr: float) -> None:
        """Give the groups of an optimizer that `build` made these numbers, and `lr` as learning rate."""
        for group in optimizer.param_groups:
            if group["decayed"]:
                group["weight_decay"] = self.weight_decay
            group["lr"] = lr * self.layer_decay ** group["below"]
            group["betas"], group["eps"] = self.betas, self.eps


def build_optimizer(module: nn.Module, config: AdamWConfig) -> torch.optim.AdamW:
    """Return AdamW over the trainable parameters, in groups: decayed and not, with layer decay those of each depth.

    Raises ValueError if the rates are to differ by depth and the model has no trunk that says how deep it is.
    """
    layers = layers_below_top(module) if config.layer_decay < 1 else {}
    members: dict[tuple[int, bool], list[nn.Parameter]] = {}
    for name, parameter in module.named_parameters():
        if parameter.requires_grad:
            members.setdefault((layers.get(name, 0), is_decayed(name, parameter)), []).append(parameter)
    depths = sorted({below for below, _ in members}) if layers else [0]
    groups = [
        {
            "params": members.get((below, decayed), []),
            "weight_decay": config.weight_decay if decayed else 0.0,
            "decayed": decayed,
            "below": below,
            "lr": config.lr * config.layer_decay**below,
        }
        for below in depths
        for decayed in (True, False)
    ]
    on_cuda = next(iter(members.values()))[0].is_cuda
    return torch.optim.AdamW(groups, lr=config.lr, betas=config.betas, eps=config.eps, fused=on_cuda)


def is_decayed(name: str, parameter: torch.Tensor) -> bool:
    """True if weight decay applies: matrices and kernels, but not learnt positions."""
    return parameter.ndim >= 2 and not name.endswith(("positional_embedding", "class_embedding"))
