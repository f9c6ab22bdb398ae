"""An exponential moving average of the weights: smoother than the weights of any one step, and often better.

The average is part of the run: saved, resumed to the last bit, and a function of the config, which says since which
step there is one. It lies as the weights do, in fp32: of a spread model each process averages the rows that it holds.
"""

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from headrace.train.parallel.layout import piece_of


@dataclass(frozen=True, kw_only=True, slots=True)
class EmaConfig:
    """How the average moves: at each step, decay x average + (1 - decay) x weights."""

    decay: float = 0.9999
    """What stays of the average at a step; 0.9999 looks back over about 10,000 steps."""
    warmup: bool = True
    """The first updates forget faster: update n (from 0) has the decay (1 + n) / (10 + n) while that is lower."""

    def __post_init__(self) -> None:
        if not 0 <= self.decay < 1:
            raise ValueError(f"decay must be in [0, 1), got {self.decay}")

    def decay_at(self, update: int) -> float:
        """Return the decay of an update (0-based). The warm-up is that of TensorFlow's ExponentialMovingAverage."""
        return min(self.decay, (1 + update) / (10 + update)) if self.warmup else self.decay


class WeightAverage:
    """The averages of all parameters that are trained."""

    def __init__(self, module: nn.Module, *, first_step: int) -> None:
        """Begin with the weights that `module` has when `first_step` steps are done."""
        self.first_step = first_step
        self.tensors: dict[str, Tensor] = {
            name: parameter.detach().clone().float()
            for name, parameter in module.named_parameters()
            if parameter.requires_grad
        }

    @torch.no_grad()
    def update(self, module: nn.Module, config: EmaConfig, *, step: int) -> None:
        """Take in the weights that step `step` (0-based) has made."""
        averages = [piece_of(tensor).local for tensor in self.tensors.values()]
        weights = [local.float() for local in self._weights(module)]
        # In this form what is added is small beside the average and loses no digits of it.
        torch._foreach_lerp_(averages, weights, 1.0 - config.decay_at(step - self.first_step))

    @contextlib.contextmanager
    def in_place_of(self, module: nn.Module) -> Iterator[None]:
        """Let `module` have the averages as its weights within the context. Takes room for a copy of the weights."""
        weights = self._weights(module)
        kept = [local.clone() for local in weights]
        try:
            for local, average in zip(weights, self.tensors.values(), strict=True):
                local.copy_(piece_of(average).local)
            yield
        finally:
            for local, own in zip(weights, kept, strict=True):
                local.copy_(own)

    def _weights(self, module: nn.Module) -> list[Tensor]:
        parameters = dict(module.named_parameters())
        return [piece_of(parameters[name]).local for name in self.tensors]
