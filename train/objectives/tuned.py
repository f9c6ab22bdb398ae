"""What objectives share that stand on the trunk of another: fine-tuning, segmentation, detection."""

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from headrace.pipeline.augment.philox import draws_at
from headrace.shards.permutation import make_key
from headrace.train.models.encoder import FeatureMaps, TunableEncoder
from headrace.train.objectives.objective import ObjectiveConfig
from headrace.train.pixels import Normalise, on_device

TUNED = ("finetune", "segment", "detect")
"""Objectives that stand on the trunk of another: none of them on each other."""


def pretrained_configs() -> dict[str, type[ObjectiveConfig]]:
    """Return the objectives whose trunk can be fine-tuned."""
    from headrace.train.objectives import objective_configs  # that module imports those that call this

    return {name: config for name, config in objective_configs().items() if name not in TUNED}


def trunk_of_maps(
    of: ObjectiveConfig, *, image_size: int, seed: int, drop_path: float
) -> tuple[TunableEncoder, Normalise]:
    """Return the trunk that `of` trains, all of it to be trained, and how its pictures are normalised.

    Raises ValueError if it has none that gives maps.
    """
    pretrained = of.build(image_size=image_size, seed=seed)
    trunk = pretrained.trunk
    if not isinstance(trunk, TunableEncoder) or not isinstance(trunk, FeatureMaps):
        what = "none" if trunk is None else f"a {type(trunk).__name__}"
        raise ValueError(f"segmentation and detection take a trunk that gives feature maps; {of.kind} has {what}")
    if trunk.convolves and drop_path:
        raise ValueError("a ResNet has no `drop_path`: leave it at 0")
    trunk.requires_grad_(True)  # also what pretraining left as it was drawn: a frozen patch projection
    return trunk, pretrained.normalise


def kept_branches(
    rate: float, depth: int, *, seed: int, position: NDArray[np.int64], device: torch.device
) -> Tensor | None:
    """Return what the branches of each block are multiplied by, [N, B, 2]: 0, or more than 1 so that the mean is 1.

    A function of (seed, position, block); the rate grows from 0 at the first block. None where nothing is dropped.
    """
    if not rate:
        return None
    rates = rate * np.arange(depth) / max(1, depth - 1)
    drawn = np.stack([draws_at(make_key(seed, "drop path", n), position, 2) for n in range(depth)])
    kept_NB2 = (drawn >= rates[:, None, None]) / (1 - rates[:, None, None])
    return on_device(kept_NB2.astype(np.float32), device)


def touching(module: nn.Module) -> Tensor:
    """Return 0, with a gradient of 0 for every trained weight: ranks wait for one of each, also of what nothing read.

    A picture without a thing reads no mask head, and no map reads a trunk's own pooling. Of a spread model only what is
    gathered for the whole forward is meant: each of its blocks is gathered apart, and read by every picture or by none.
    """
    from torch.distributed.tensor import DTensor

    trained = [parameter for parameter in module.parameters() if parameter.requires_grad]
    sums = [parameter.sum() for parameter in trained if not isinstance(parameter, DTensor)]
    return torch.stack(sums).sum() * 0.0
