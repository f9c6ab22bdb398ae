"""How deep each parameter stands, for rates that fall with depth.

The head stands at the top; the last block is one below it, the patch projection depth + 1. A rate is multiplied by the
decay once for each layer below the top. Source: BEiT, arXiv:2106.08254, and MAE's fine-tuning code after it.
"""

from typing import Any

from torch import nn


def layers_below_top(module: nn.Module) -> dict[str, int]:
    """Return for each parameter of `module` how many layers it stands below the head.

    Raises ValueError if `module` has no trunk, or one that does not say how deep its parameters are.
    """
    trunk: Any = getattr(module, "trunk", None)
    if trunk is None:
        raise ValueError(f"optimizer.layer_decay: {type(module).__name__} has no trunk with layers; leave it at 1")
    top = trunk.shape.depth + 1
    below = {id(parameter): top - trunk.depth_of(name) for name, parameter in trunk.named_parameters()}
    return {name: below.get(id(parameter), 0) for name, parameter in module.named_parameters()}
