"""The learning rate as a function of the step: computed, not stepped, so there is nothing to save.

Here: warm-up, which all schedules share, and the cosine. Steps at milestones are in `milestones.py`, what may go on
without an end until it is cooled down in `cooldown.py`.
"""

import math
from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, kw_only=True, slots=True)
class CosineConfig:
    """Linear warm-up, then a cosine."""

    warmup_fraction: float = 0.025
    """Part of the steps that warm up."""
    warmup_lr: float = 1e-6
    """Learning rate of step 0."""
    final_lr: float = 0.0
    """Learning rate that the cosine reaches after the last step."""
    kind: Literal["cosine"] = "cosine"
    """The tag of this schedule."""

    def __post_init__(self) -> None:
        check_fraction(self.warmup_fraction)
        check_rates(warmup_lr=self.warmup_lr, final_lr=self.final_lr)

    def rate(self, step: int, *, steps: int, peak: float) -> float:
        """Return the rate of step `step` (0-based): linear from warmup_lr to `peak`, then down to final_lr."""
        warmup = round(self.warmup_fraction * steps)
        if step < warmup:
            return warming(step, warmup, low=self.warmup_lr, peak=peak)
        progress = (step - warmup) / max(1, steps - warmup)
        return self.final_lr + (peak - self.final_lr) * (1 + math.cos(math.pi * progress)) / 2


def warming(step: int, warmup: int, *, low: float, peak: float) -> float:
    """Return the rate of step `step` (0-based) of a warm-up of `warmup` steps: linear from `low`, `peak` behind it."""
    return low + (peak - low) * step / warmup


def check_fraction(warmup_fraction: float) -> None:
    """Raise ValueError if this is no part of a run."""
    if not 0 <= warmup_fraction < 1:
        raise ValueError(f"warmup_fraction must be in [0, 1), got {warmup_fraction}")


def check_rates(**rates: float) -> None:
    """Raise ValueError naming learning rates that cannot be."""
    if not all(0 <= rate < math.inf for rate in rates.values()):
        raise ValueError(f"{' and '.join(rates)} must be at least 0 and finite")
