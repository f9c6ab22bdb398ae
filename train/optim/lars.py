"""LARS: momentum on gradients that each layer's trust ratio has scaled.

As in MoCo v3's and MAE's code: biases and norms are neither decayed nor scaled, the learning rate stands outside the
momentum, and there is no Nesterov step.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import nn

from headrace.train.optim.groups import Decays, parameter_groups
from headrace.train.optim.trust import TrustOptimizer, local_pieces, shard_group, trust_ratios


@dataclass(frozen=True, kw_only=True, slots=True)
class LarsConfig:
    """LARS, arXiv:1708.03888. The defaults are MoCo v3's for a ResNet-50 (arXiv:2104.02057 and its code)."""

    lr: float = 0.3
    """Highest learning rate, reached at the end of the warm-up."""
    lr_per_images: int = 0
    """lr is that of a step of so many images, and grows with the global batch; MoCo v3, SimCLR and BYOL mean 256.
    0 = lr is the rate, whatever the batch."""
    momentum: float = 0.9
    """What stays of the last step."""
    trust_coefficient: float = 0.001
    """How far a layer may move: this share of its length, times lr."""
    weight_decay: float = 1.5e-6
    """Times the weights, added to the gradient before it is scaled."""
    decays: Decays = "matrices"
    """Which parameters are decayed and scaled: matrices = no biases, norms and positions; all = every one."""
    kind: Literal["lars"] = "lars"
    """The tag of this optimizer."""
    num_moments: ClassVar[int] = 1
    """Tensors of a parameter's size that it keeps."""

    def __post_init__(self) -> None:
        if not 0 < self.lr < math.inf or not 0 <= self.weight_decay < math.inf:
            raise ValueError("lr must be above 0, weight_decay at least 0, both finite")
        if not 0 <= self.momentum < 1:
            raise ValueError(f"momentum must be in [0, 1), got {self.momentum}")
        if not 0 < self.trust_coefficient < math.inf:
            raise ValueError(f"trust_coefficient must be above 0 and finite, got {self.trust_coefficient}")
        if self.lr_per_images < 0:
            raise ValueError(f"lr_per_images must be at least 0, got {self.lr_per_images}")

    def build(self, module: nn.Module) -> torch.optim.Optimizer:
        """Return the optimizer over the trainable parameters of `module`."""
        groups = parameter_groups(module, lr=self.lr, weight_decay=self.weight_decay, decays=self.decays)
        return Lars(groups, momentum=self.momentum, trust_coefficient=self.trust_coefficient)

    def set_groups(self, optimizer: torch.optim.Optimizer, *, lr: float) -> None:
        """Give the groups of an optimizer that `build` made these numbers, and `lr` as learning rate."""
        for group in optimizer.param_groups:
            group["weight_decay"] = self.weight_decay if group["decayed"] else 0.0
            group["lr"], group["momentum"], group["trust_coefficient"] = lr, self.momentum, self.trust_coefficient


class Lars(TrustOptimizer):
    """The optimizer."""

    def __init__(self, groups: Iterable[dict[str, Any]], *, momentum: float, trust_coefficient: float) -> None:
        super().__init__(groups, {"momentum": momentum, "trust_coefficient": trust_coefficient})

    def _move(self, parameters: list[nn.Parameter], group: dict[str, Any]) -> None:
        for parameter in parameters:
            if not self.state[parameter]:
                self.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)
        weights = local_pieces(parameters)
        updates = local_pieces([parameter.grad for parameter in parameters if parameter.grad is not None])
        if group["decayed"]:
            updates = list(torch._foreach_add(updates, weights, alpha=group["weight_decay"]))
            ratios = trust_ratios(
                weights, updates, group=shard_group(parameters), coefficient=group["trust_coefficient"]
            )
            torch._foreach_mul_(updates, list(ratios))
        buffers = local_pieces([self.state[parameter]["momentum_buffer"] for parameter in parameters])
        torch._foreach_mul_(buffers, group["momentum"])
        torch._foreach_add_(buffers, updates)
        torch._foreach_add_(weights, buffers, alpha=-group["lr"])
