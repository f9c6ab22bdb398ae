"""Learning rates that do not depend on the number of steps until they cool down.

So a run may go on without an end in sight, and be cooled down from any of its checkpoints.
"""

import math
from dataclasses import dataclass
from typing import Literal

from headrace.train.optim.schedules import check_rates, warming

Cooldown = Literal["linear", "sqrt"]


@dataclass(frozen=True, kw_only=True, slots=True)
class RsqrtConfig:
    """Linear warm-up, then peak / sqrt(1 + (step - warm-up) / timescale), and a cooldown behind the end of that.

    The defaults are those of the ViT scaling study: arXiv:2106.04560, appendices B and G, and its code, big_vision.
    """

    warmup_steps: int = 10_000
    """Steps that warm up."""
    warmup_lr: float = 0.0
    """Learning rate of step 0."""
    timescale_steps: int = 10_000
    """Steps behind the warm-up until the rate is peak / sqrt(2)."""
    cooldown_steps: int = 50_000
    """Last steps, in which the rate falls to final_lr. 0 = it does not."""
    cooldown: Cooldown = "linear"
    """How it falls: in proportion to the steps that are left, or by 1 - sqrt of those that are done."""
    final_lr: float = 0.0
    """Learning rate that the cooldown reaches after the last step."""
    kind: Literal["rsqrt"] = "rsqrt"
    """The tag of this schedule."""

    def __post_init__(self) -> None:
        _check_steps(warmup_steps=self.warmup_steps, cooldown_steps=self.cooldown_steps)
        check_rates(warmup_lr=self.warmup_lr, final_lr=self.final_lr)
        if self.timescale_steps < 1:
            raise ValueError(f"timescale_steps must be at least 1, got {self.timescale_steps}")

    def check(self, steps: int) -> None:
        """Raise ValueError if a run of so many steps has no room for this."""
        _check_room(steps, warmup=self.warmup_steps, cooldown=self.cooldown_steps)

    def rate(self, step: int, *, steps: int, peak: float) -> float:
        """Return the rate of step `step` (0-based)."""
        if step < self.warmup_steps:
            return warming(step, self.warmup_steps, low=self.warmup_lr, peak=peak)
        rate = peak / math.sqrt(1 + (step - self.warmup_steps) / self.timescale_steps)
        left = _share_left(step, steps, cooldown=self.cooldown_steps, shape=self.cooldown)
        return self.final_lr + (rate - self.final_lr) * left


@dataclass(frozen=True, kw_only=True, slots=True)
class ConstantConfig:
    """Linear warm-up, then the peak, then a cooldown ("warmup-stable-decay": arXiv:2405.18392, arXiv:2404.06395)."""

    warmup_steps: int = 0
    """Steps that warm up."""
    warmup_lr: float = 0.0
    """Learning rate of step 0."""
    cooldown_steps: int = 0
    """Last steps, in which the rate falls to final_lr. 0 = it does not."""
    cooldown: Cooldown = "sqrt"
    """How it falls: in proportion to the steps that are left, or by 1 - sqrt of those that are done."""
    final_lr: float = 0.0
    """Learning rate that the cooldown reaches after the last step."""
    kind: Literal["constant"] = "constant"
    """The tag of this schedule."""

    def __post_init__(self) -> None:
        _check_steps(warmup_steps=self.warmup_steps, cooldown_steps=self.cooldown_steps)
        check_rates(warmup_lr=self.warmup_lr, final_lr=self.final_lr)

    def check(self, steps: int) -> None:
        """Raise ValueError if a run of so many steps has no room for this."""
        _check_room(steps, warmup=self.warmup_steps, cooldown=self.cooldown_steps)

    def rate(self, step: int, *, steps: int, peak: float) -> float:
        """Return the rate of step `step` (0-based)."""
        if step < self.warmup_steps:
            return warming(step, self.warmup_steps, low=self.warmup_lr, peak=peak)
        left = _share_left(step, steps, cooldown=self.cooldown_steps, shape=self.cooldown)
        return self.final_lr + (peak - self.final_lr) * left


def _share_left(step: int, steps: int, *, cooldown: int, shape: Cooldown) -> float:
    """Return what part of the rate above its end is left: 1 before the cooldown, 0 after the last step."""
    left = steps - step
    if left >= cooldown:
        return 1.0
    return left / cooldown if shape == "linear" else 1 - math.sqrt((cooldown - left) / cooldown)


def _check_steps(**counts: int) -> None:
    for name, count in counts.items():
        if count < 0:
            raise ValueError(f"{name} must be at least 0, got {count}")


def _check_room(steps: int, *, warmup: int, cooldown: int) -> None:
    if warmup + cooldown > steps:
        raise ValueError(
            f"warmup_steps {warmup:,} and cooldown_steps {cooldown:,} do not fit into {steps:,} steps; lower them"
        )
