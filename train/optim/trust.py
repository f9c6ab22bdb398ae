"""Trust ratios: the length of a layer's weights over that of its update, so that each layer moves by a like share.

The lengths are those of whole parameters. Where a model is spread over processes, each of them holds some rows, and all
their squares are summed in one reduction a step.
"""

# N parameters

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, distributed, nn

from headrace.train.parallel.layout import piece_of


class TrustOptimizer(torch.optim.Optimizer):
    """The base of LARS and LAMB; a group says with `decayed` if it is decayed and scaled."""

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """Move the weights; all processes of a spread model do it together."""
        assert closure is None, "the gradients are there"
        for group in self.param_groups:
            parameters = [parameter for parameter in group["params"] if parameter.grad is not None]
            if parameters:
                self._move(parameters, group)

    def _move(self, parameters: list[nn.Parameter], group: dict[str, Any]) -> None:
        raise NotImplementedError


def local_pieces(tensors: Sequence[Tensor]) -> list[Tensor]:
    """Return what this process holds of each tensor; changes of it change the tensor."""
    return [piece_of(tensor).local for tensor in tensors]


def shard_group(parameters: Sequence[Tensor]) -> Any:
    """Return the process group over which the rows of these parameters lie; None where each process has all of them."""
    parts = {piece_of(parameter).is_part for parameter in parameters}
    if True not in parts:
        return None
    assert len(parts) == 1, "a spread model is spread in all its parameters"
    mesh = parameters[0].device_mesh  # type: ignore[attr-defined]
    return mesh.get_group(mesh.ndim - 1)


def trust_ratios(
    weights: list[Tensor], updates: list[Tensor], *, group: Any = None, coefficient: float = 1.0
) -> Tensor:
    """Return coefficient * |weights| / |update| of each parameter, float32 [N] on its device; 1 where either is 0.

    `weights` and `updates` are this process's pieces, `group` the processes that hold the others.
    """
    norms = torch.stack([*torch._foreach_norm(weights), *torch._foreach_norm(updates)]).float()
    if group is not None:
        squares = norms.square()
        distributed.all_reduce(squares, group=group)
        norms = squares.sqrt()
    weight_N, update_N = norms.chunk(2)
    return torch.where((weight_N > 0) & (update_N > 0), coefficient * weight_N / update_N, torch.ones_like(weight_N))
