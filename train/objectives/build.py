"""From a run's config to the objective it trains.

The initial weights are a function of the seed alone: torch's global generator is only borrowed, and is as before
afterwards.
"""

import torch

from headrace.shards.permutation import make_key
from headrace.train.objectives.objective import Objective, ObjectiveConfig


def build_objective(config: ObjectiveConfig, *, image_size: int, seed: int) -> Objective:
    """Return the objective with its initial weights, on the CPU (or on the device of an enclosing `torch.device`)."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(make_key(seed, "weights"))
        return config.build(image_size=image_size, seed=seed)
