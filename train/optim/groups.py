"""Which parameters an optimizer moves: those that are trained, in groups of decayed and undecayed ones."""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, Literal

import torch
from torch import nn

from headrace.train.optim.decay import multiplied
from headrace.train.optim.layers import layers_below_top

Decays = Literal["matrices", "all"]

UNDECAYED = ("positional_embedding", "class_embedding", "pos_embed", "cls_token", "logit_scale", "attn_pool.latent")
"""Learnt positions, tokens, scales and queries, which have two dimensions or more: of CLIP's towers, and of timm's
names."""
TELLS_PLACES = ".cpb_mlp."
"""Matrices of SwinV2 that are not decayed: SimMIM's code."""


def parameter_groups(
    module: nn.Module,
    *,
    lr: float,
    weight_decay: float,
    decays: Decays = "matrices",
    layer_decay: float = 1.0,
    decay_multipliers: Mapping[str, float] = MappingProxyType({}),
) -> list[dict[str, Any]]:
    """Return the trained parameters in groups: decayed and not, with layer decay those of each depth.

    Each says so: `decayed`, `decay_times`, what the decay is multiplied by, `below`, how many layers below the head it
    stands, and `rate_times`, what the rate is multiplied by for that. A frozen one is in none. Raises ValueError if
    nothing is trained, if the rates are to differ by depth and the model has no trunk that says how deep it is, or if
    a pattern of `decay_multipliers` is not of parameters that are decayed.
    """
    layers = layers_below_top(module) if layer_decay < 1 else {}
    trained = {name: parameter for name, parameter in module.named_parameters() if parameter.requires_grad}
    if not trained:
        raise ValueError("optimizer: every parameter is frozen, so there is nothing to train")
    decayed = [name for name, parameter in trained.items() if decays == "all" or is_decayed(name, parameter)]
    times = dict.fromkeys(trained, 0.0) | multiplied(decayed, decay_multipliers, getattr(module, "released_prefix", ""))
    members: dict[tuple[int, float], list[nn.Parameter]] = {}
    for name, parameter in trained.items():
        members.setdefault((layers.get(name, 0), times[name]), []).append(parameter)
    depths = sorted({below for below, _ in members}) if layers else [0]
    others = sorted(set(times.values()) - {0.0, 1.0})
    return [
        {
            "params": members.get((below, multiplier), []),
            "weight_decay": weight_decay * multiplier,
            "decayed": multiplier > 0,
            "decay_times": multiplier,
            "below": below,
            "rate_times": layer_decay**below,
            "lr": lr * layer_decay**below,
        }
        for below in depths
        for multiplier in (1.0, *others, 0.0)
    ]


def is_decayed(name: str, parameter: torch.Tensor) -> bool:
    """True if weight decay applies: matrices and kernels, but not learnt positions and tokens."""
    return parameter.ndim >= 2 and not name.endswith(UNDECAYED) and TELLS_PLACES not in name
