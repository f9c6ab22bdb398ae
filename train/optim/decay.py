"""Weight decay of its own for some parameters, and apart from the learning rate.

The scaling study decays the class head a hundred times as much as the body: arXiv:2106.04560, section 3.1.
"""

import fnmatch
import math
from collections.abc import Mapping
from typing import Literal, Protocol

import torch

SHOWN = 5
DecayFollows = Literal["rate", "schedule"]


class DecayConfig(Protocol):
    """What configs of optimizers with multipliers of decay have in common."""

    @property
    def lr(self) -> float: ...
    @property
    def lr_per_images(self) -> int: ...
    @property
    def weight_decay(self) -> float: ...
    @property
    def decay_multipliers(self) -> dict[str, float]: ...
    @property
    def decay_follows(self) -> DecayFollows: ...


def check_decay(config: DecayConfig) -> None:
    """Raise ValueError if numbers of the decay cannot be, or do not go together."""
    if not 0 <= config.weight_decay < math.inf:
        raise ValueError(f"weight_decay must be at least 0 and finite, got {config.weight_decay}")
    for pattern, times in config.decay_multipliers.items():
        if not 0 <= times < math.inf:
            raise ValueError(f"decay_multipliers: {pattern!r} must be at least 0 and finite, got {times}")
    if config.decay_follows == "schedule" and config.lr_per_images:
        raise ValueError("decay_follows schedule is for a rate as it is: write lr for your batch, and no lr_per_images")


def give_decay(config: DecayConfig, optimizer: torch.optim.Optimizer) -> None:
    """Give the groups of an optimizer the decay of this config: what is multiplied with the rate of a step.

    Where it is to follow the schedule alone, the highest rate is divided out; a group's own multiple of that too.
    """
    for group in optimizer.param_groups:
        decay = config.weight_decay * group["decay_times"]
        group["weight_decay"] = decay if config.decay_follows == "rate" else decay / (config.lr * group["rate_times"])


def multiplied(names: list[str], multipliers: Mapping[str, float], prefix: str) -> dict[str, float]:
    """Return what the decay of each parameter is multiplied by; patterns are of names without `prefix`.

    Raises ValueError for a pattern that is of none of `names`, and for two that are of the same.
    """
    found = dict.fromkeys(names, 1.0)
    taken: dict[str, str] = {}
    for pattern, times in multipliers.items():
        matched = [name for name in names if fnmatch.fnmatchcase(name.removeprefix(prefix), pattern)]
        if not matched:
            shown = ", ".join(name.removeprefix(prefix) for name in names[-SHOWN:])
            raise ValueError(
                f"optimizer.decay_multipliers: {pattern!r} is no name of a decayed parameter, nor a pattern of some; "
                f"the last are {shown}"
            )
        for name in matched:
            if name in taken:
                raise ValueError(
                    f"optimizer.decay_multipliers: {taken[name]!r} and {pattern!r} both mean "
                    f"{name.removeprefix(prefix)}: make them differ"
                )
            taken[name], found[name] = pattern, times
    return found
