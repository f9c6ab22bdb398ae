"""From a run's config to the objective it trains.

Invariant: the initial weights are a function of the seed alone. The one thing a reader would get wrong: torch's global
generator is only borrowed here; it is as before afterwards.
"""

import torch

from headrace.shards.permutation import make_key
from headrace.train.config import ObjectiveConfig
from headrace.train.objectives.aim import Aim, AimConfig
from headrace.train.objectives.clip import Clip


def build_objective(config: ObjectiveConfig, *, image_size: int, seed: int) -> Aim | Clip:
    """Return the objective with its initial weights, on the CPU (or on the device of an enclosing `torch.device`)."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(make_key(seed, "weights"))
        if isinstance(config, AimConfig):
            return Aim(config, image_size=image_size, seed=seed)
        return Clip(config, image_size=image_size)
