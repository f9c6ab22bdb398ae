"""The learning rate as a function of the step: computed, not stepped, so there is nothing to save."""

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
        if not 0 <= self.warmup_fraction < 1:
            raise ValueError(f"warmup_fraction must be in [0, 1), got {self.warmup_fraction}")
        if not (0 <= self.warmup_lr < math.inf and 0 <= self.final_lr < math.inf):
            raise ValueError("warmup_lr and final_lr must be at least 0 and finite")

    def rate(self, step: int, *, steps: int, peak: float) -> float:
        """Return the rate of step `step` (0-based): linear from warmup_lr to `peak`, then down to final_lr."""
        warmup = round(self.warmup_fraction * steps)
        if step < warmup:
            return self.warmup_lr + (peak - self.warmup_lr) * step / warmup
        progress = (step - warmup) / max(1, steps - warmup)
        return self.final_lr + (peak - self.final_lr) * (1 + math.cos(math.pi * progress)) / 2
