"""AdamW with the papers' exclusions, and the learning rate as a function of the step.

Invariant: nothing here has state of its own but AdamW's moments; the rate is computed, not stepped. The one thing a
reader would get wrong: weight decay skips every tensor with fewer than two dimensions *and* learnt positions, which
have two.
"""

import math

import torch
from torch import nn

from headrace.train.config import OptimizerConfig, RunConfig


def build_optimizer(module: nn.Module, config: OptimizerConfig) -> torch.optim.AdamW:
    """Return AdamW over the trainable parameters, in two groups: decayed and not."""
    named = [(name, parameter) for name, parameter in module.named_parameters() if parameter.requires_grad]
    groups = [
        {"params": [p for name, p in named if is_decayed(name, p)], "weight_decay": config.weight_decay},
        {"params": [p for name, p in named if not is_decayed(name, p)], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=config.lr, betas=config.betas, eps=config.eps, fused=named[0][1].is_cuda)


def is_decayed(name: str, parameter: torch.Tensor) -> bool:
    """True if weight decay applies: matrices and kernels, but not learnt positions."""
    return parameter.ndim >= 2 and not name.endswith(("positional_embedding", "class_embedding"))


def learning_rate(step: int, config: RunConfig) -> float:
    """Return the rate of step `step` (0-based): linear from warmup_lr to lr, then a cosine down to final_lr."""
    schedule, peak = config.schedule, config.optimizer.lr
    warmup = round(schedule.warmup_fraction * config.steps)
    if step < warmup:
        return schedule.warmup_lr + (peak - schedule.warmup_lr) * step / warmup
    progress = (step - warmup) / max(1, config.steps - warmup)
    return schedule.final_lr + (peak - schedule.final_lr) * (1 + math.cos(math.pi * progress)) / 2
