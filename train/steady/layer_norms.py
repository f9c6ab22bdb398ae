"""Gradient norms of every layer: where in the model an instability begins.

Two fused calls over all gradients, on the steps that are logged only; the numbers come to the host with the loss, so
nothing waits for them alone.
"""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from headrace.train.config import RunConfig
from headrace.train.parallel.layout import Layout, piece_of
from headrace.train.parallel.ranks import Ranks
from headrace.train.parallel.strategy import blocks_of, is_spread
from headrace.train.runs.metrics import Metrics

EVENT = "gradients"


class _Layer(NamedTuple):
    name: str
    parameters: list[nn.Parameter]


def layers_of(module: nn.Module) -> list[_Layer]:
    """Return the layers of a model in the order of its parameters: its blocks, and each module beside them.

    Only what is trained: neither a frozen patch projection nor a momentum encoder has a gradient.
    """
    of_block = {
        name: block_name
        for block_name, block in _named(module, blocks_of(module))
        for name in (f"{block_name}.{inside}" for inside, _ in block.named_parameters())
    }
    found: dict[str, _Layer] = {}
    for name, parameter in module.named_parameters():
        if not parameter.requires_grad:
            continue
        layer = of_block.get(name, name.rpartition(".")[0] or name)
        found.setdefault(layer, _Layer(layer, [])).parameters.append(parameter)
    return list(found.values())


def _named(module: nn.Module, wanted: list[nn.Module]) -> list[tuple[str, nn.Module]]:
    ids = {id(block) for block in wanted}
    return [(name, child) for name, child in module.named_modules() if id(child) in ids]


def is_due(config: RunConfig, steps_done: int) -> bool:
    """True if the norms of the step that makes it `steps_done` are logged."""
    return config.gradient_norms == "by_layer" and (
        steps_done % config.log_every == 0 or steps_done == config.total_steps
    )


def own_norms(module: nn.Module, device: torch.device) -> tuple[list[int], Tensor]:
    """Return the layers of the gradients that this process holds something of, one number a gradient, and its norms.

    The norms are float32 [2 * gradients] on the device: L2 of each, behind them the largest magnitude of each.
    """
    layers, gradients = [], []
    for number, layer in enumerate(layers_of(module)):
        for parameter in layer.parameters:
            local = None if parameter.grad is None else piece_of(parameter.grad).local
            if local is not None and local.numel():  # of a matrix with few rows a process may hold none
                layers.append(number)
                gradients.append(local)
    if not gradients:
        return [], torch.empty(0, device=device)
    norms = [*torch._foreach_norm(gradients, 2), *torch._foreach_norm(gradients, torch.inf)]
    return layers, torch.stack(norms).float()


@dataclass(frozen=True, slots=True)
class LayerNorms:
    """What one process knows of the gradient of a step: `own_norms`, on the host."""

    layers: list[int]
    values: list[float]

    def line(self, module: nn.Module, *, layout: Layout, ranks: Ranks, step: int) -> Metrics:
        """Return the line of metrics: `l2/LAYER` and `max/LAYER`, before clipping; called on all ranks.

        A layer without a gradient has 0.
        """
        names = [layer.name for layer in layers_of(module)]
        squares, largest = np.zeros(len(names)), np.zeros(len(names))
        l2_G, max_G = np.array(self.values).reshape(2, -1)
        np.add.at(squares, self.layers, l2_G**2)
        np.maximum.at(largest, self.layers, max_G)
        if is_spread(module):
            of_ranks = np.array(ranks.each([*squares, *largest], f"the gradient norms of step {step}"))
            of_ranks = of_ranks.reshape(ranks.size, 2, -1)
            # Each replica of the shards has the same again.
            squares, largest = of_ranks[:, 0].sum(axis=0) / len(layout.replicas), of_ranks[:, 1].max(axis=0)
        line: Metrics = {"event": EVENT, "step": step}
        line |= {f"l2/{name}": float(value) for name, value in zip(names, np.sqrt(squares), strict=True)}
        return line | {f"max/{name}": float(value) for name, value in zip(names, largest, strict=True)}
