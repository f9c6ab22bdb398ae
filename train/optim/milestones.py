"""A learning rate that falls by a factor at given places of a run."""

import itertools
import math
from bisect import bisect_right
from dataclasses import dataclass
from typing import Literal

from headrace.train.optim.schedules import check_fraction, check_rates, warming


@dataclass(frozen=True, kw_only=True, slots=True)
class StepConfig:
    """Linear warm-up, then the peak, times a factor at each milestone.

    The defaults are SimMIM's: x 0.1 at 700 of 800 epochs, 10 of which warm up.
    """

    warmup_fraction: float = 0.0125
    """Part of the steps that warm up."""
    warmup_lr: float = 1e-6
    """Learning rate of step 0."""
    milestones: tuple[float, ...] = (0.875,)
    """Parts of the steps that are done when the rate falls, in order."""
    factor: float = 0.1
    """What the rate is multiplied by at each."""
    kind: Literal["step"] = "step"
    """The tag of this schedule."""

    def __post_init__(self) -> None:
        check_fraction(self.warmup_fraction)
        check_rates(warmup_lr=self.warmup_lr)
        ordered = (self.warmup_fraction, *self.milestones, 1.0)
        if not all(before < after for before, after in itertools.pairwise(ordered)):
            raise ValueError(
                f"milestones must rise and lie between warmup_fraction and 1, got {list(self.milestones)} with "
                f"warmup_fraction {self.warmup_fraction}"
            )
        if not 0 < self.factor < math.inf:
            raise ValueError(f"factor must be above 0 and finite, got {self.factor}")

    def rate(self, step: int, *, steps: int, peak: float) -> float:
        """Return the rate of step `step` (0-based)."""
        warmup = round(self.warmup_fraction * steps)
        if step < warmup:
            return warming(step, warmup, low=self.warmup_lr, peak=peak)
        return peak * self.factor ** bisect_right([round(part * steps) for part in self.milestones], step)
