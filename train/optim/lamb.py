"""LAMB: Adam's update plus decay, scaled so that each layer moves by a like share of its length."""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import nn

from headrace.train.optim.groups import Decays, parameter_groups
from headrace.train.optim.trust import TrustOptimizer, local_pieces, shard_group, trust_ratios


@dataclass(frozen=True, kw_only=True, slots=True)
class LambConfig:
    """LAMB, arXiv:1904.00962, algorithm 2, with bias correction."""

    lr: float = 1e-3
    """Highest learning rate, reached at the end of the warm-up."""
    lr_per_images: int = 0
    """lr is that of a step of so many images, and grows with the global batch: 256 in MoCo v3's study. 0 = lr is the
    rate, whatever the batch."""
    betas: tuple[float, float] = (0.9, 0.999)
    """Decay of the first and second moment."""
    eps: float = 1e-6
    """Added to the root of the second moment."""
    weight_decay: float = 0.01
    """Times the weights, added to the update before it is scaled."""
    decays: Decays = "matrices"
    """Which parameters are decayed and scaled: matrices = no biases, norms and positions; all = every one."""
    max_trust: float | None = None
    """Largest trust ratio: LAMBC (arXiv:2011.13584) has 1. null = none. Other programs also scale the gradient to a
    length of 1 first; here that is `clip_grad_norm`."""
    kind: Literal["lamb"] = "lamb"
    """The tag of this optimizer."""

    def __post_init__(self) -> None:
        if not 0 < self.lr < math.inf or not 0 < self.eps < math.inf or not 0 <= self.weight_decay < math.inf:
            raise ValueError("lr and eps must be above 0, weight_decay at least 0, all finite")
        if not all(0 <= beta < 1 for beta in self.betas):
            raise ValueError(f"betas must be in [0, 1), got {self.betas}")
        if self.max_trust is not None and not 0 < self.max_trust < math.inf:
            raise ValueError(f"max_trust must be above 0 and finite, got {self.max_trust}")
        if self.lr_per_images < 0:
            raise ValueError(f"lr_per_images must be at least 0, got {self.lr_per_images}")

    def build(self, module: nn.Module) -> torch.optim.Optimizer:
        """Return the optimizer over the trainable parameters of `module`."""
        groups = parameter_groups(module, lr=self.lr, weight_decay=self.weight_decay, decays=self.decays)
        return Lamb(groups, betas=self.betas, eps=self.eps, max_trust=self.max_trust)

    def set_groups(self, optimizer: torch.optim.Optimizer, *, lr: float) -> None:
        """Give the groups of an optimizer that `build` made these numbers, and `lr` as learning rate."""
        for group in optimizer.param_groups:
            group["weight_decay"] = self.weight_decay if group["decayed"] else 0.0
            group["lr"], group["betas"], group["eps"], group["max_trust"] = lr, self.betas, self.eps, self.max_trust


class Lamb(TrustOptimizer):
    """The optimizer."""

    def __init__(
        self,
        groups: Iterable[dict[str, Any]],
        *,
        betas: tuple[float, float],
        eps: float = 1e-6,
        max_trust: float | None = None,
    ) -> None:
        super().__init__(groups, {"betas": betas, "eps": eps, "max_trust": max_trust})

    def _move(self, parameters: list[nn.Parameter], group: dict[str, Any]) -> None:
        weights, updates = local_pieces(parameters), self._adam_updates(parameters, group)
        if group["decayed"]:
            torch._foreach_add_(updates, weights, alpha=group["weight_decay"])
            ratios = trust_ratios(weights, updates, group=shard_group(parameters))
            if group["max_trust"] is not None:
                ratios = ratios.clamp(max=group["max_trust"])
            torch._foreach_mul_(updates, list(ratios))
        torch._foreach_add_(weights, updates, alpha=-group["lr"])

    def _adam_updates(self, parameters: list[nn.Parameter], group: dict[str, Any]) -> list[torch.Tensor]:
        """Return first moment / (root of the second + eps), both freed of their bias, for what this process holds."""
        for parameter in parameters:
            state = self.state[parameter]
            if not state:
                state["step"] = 0
                state["exp_avg"], state["exp_avg_sq"] = torch.zeros_like(parameter), torch.zeros_like(parameter)
            state["step"] += 1
        states, (beta1, beta2) = [self.state[parameter] for parameter in parameters], group["betas"]
        gradients = local_pieces([parameter.grad for parameter in parameters if parameter.grad is not None])
        first, second = (local_pieces([state[name] for state in states]) for name in ("exp_avg", "exp_avg_sq"))
        torch._foreach_lerp_(first, gradients, 1 - beta1)
        torch._foreach_mul_(second, beta2)
        torch._foreach_addcmul_(second, gradients, gradients, value=1 - beta2)
        roots = torch._foreach_sqrt(second)
        torch._foreach_div_(roots, [math.sqrt(1 - beta2 ** state["step"]) for state in states])
        torch._foreach_add_(roots, group["eps"])
        updates = torch._foreach_div(first, [1 - beta1 ** state["step"] for state in states])
        torch._foreach_div_(updates, roots)
        return list(updates)
