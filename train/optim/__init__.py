"""Optimisers and schedules: the value of `kind` in a run file -> the config that is meant."""

from typing import Protocol, runtime_checkable

import torch
from torch import nn

from headrace.train.optim.adafactor import AdafactorConfig
from headrace.train.optim.adamw import AdamWConfig
from headrace.train.optim.cooldown import ConstantConfig, RsqrtConfig
from headrace.train.optim.lamb import LambConfig
from headrace.train.optim.lars import LarsConfig
from headrace.train.optim.milestones import StepConfig
from headrace.train.optim.schedules import CosineConfig


class OptimizerConfig(Protocol):
    """What the frozen dataclass of an optimizer has in common with the others."""

    @property
    def kind(self) -> str:
        """The tag in a run file."""
        ...

    @property
    def lr(self) -> float:
        """Highest learning rate; the schedule moves it."""
        ...

    def build(self, module: nn.Module) -> torch.optim.Optimizer:
        """Return the optimizer over the trainable parameters of `module`, without state."""
        ...


@runtime_checkable
class SetsGroups(Protocol):
    """What the config of an optimizer may have besides: a run can then plan changes of more than its learning rate."""

    def set_groups(self, optimizer: torch.optim.Optimizer, *, lr: float) -> None:
        """Give the groups of an optimizer that `build` made this config's numbers, and `lr` as learning rate."""
        ...


def set_groups(config: OptimizerConfig, optimizer: torch.optim.Optimizer, *, lr: float) -> None:
    """Give the groups of an optimizer the numbers of its config as they are at this step."""
    if isinstance(config, SetsGroups):
        config.set_groups(optimizer, lr=lr)
        return
    for group in optimizer.param_groups:
        group["lr"] = lr


@runtime_checkable
class ScalesRate(Protocol):
    """What the config of an optimizer may have besides: its learning rate may be that of a smaller batch."""

    @property
    def lr_per_images(self) -> int:
        """Images of a step that `lr` is meant for; 0 = of any."""
        ...


def peak_rate(config: OptimizerConfig, *, global_batch: int) -> float:
    """Return the highest learning rate of a run: `lr`, or what it comes to for a larger batch than it is meant for."""
    if isinstance(config, ScalesRate) and config.lr_per_images:
        return config.lr * global_batch / config.lr_per_images
    return config.lr


class ScheduleConfig(Protocol):
    """What the frozen dataclass of a schedule has in common with the others."""

    @property
    def kind(self) -> str:
        """The tag in a run file."""
        ...

    def rate(self, step: int, *, steps: int, peak: float) -> float:
        """Return the learning rate of step `step` (0-based) of `steps`."""
        ...


@runtime_checkable
class ChecksSteps(Protocol):
    """What the config of a schedule may have besides: it refuses a run that has no room for it."""

    def check(self, steps: int) -> None:
        """Raise ValueError if a run of so many steps has no room for this."""
        ...


@runtime_checkable
class CountsState(Protocol):
    """What the config of an optimizer may have besides: its moments are not two tensors of a parameter's size."""

    def state_bytes(self, module: nn.Module) -> int:
        """Return the bytes that the moments of the trainable parameters of `module` take."""
        ...


OPTIMIZERS: dict[str, type[OptimizerConfig]] = {
    "adafactor": AdafactorConfig,
    "adamw": AdamWConfig,
    "lamb": LambConfig,
    "lars": LarsConfig,
}
SCHEDULES: dict[str, type[ScheduleConfig]] = {
    "cosine": CosineConfig,
    "rsqrt": RsqrtConfig,
    "step": StepConfig,
    "constant": ConstantConfig,
}
