"""The state of an optimizer as flat tensors named `PARAMETER/KIND`, and back.

Which kinds there are and of what shape is the optimizer's business (Adafactor keeps factored moments): it is asked, by
letting it make its state, and what a checkpoint holds is copied into that.
"""

from collections.abc import Mapping

import torch
from torch import Tensor, nn


def optimizer_tensors(module: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """Return the optimizer's state; a plain number becomes a tensor of no dimensions."""
    return {
        f"{name}/{kind}": torch.as_tensor(value)
        for name, parameter in _parameters(module, optimizer).items()
        for kind, value in optimizer.state.get(parameter, {}).items()
    }


def make_state(optimizer: torch.optim.Optimizer) -> None:
    """Let a fresh optimizer make all the state it keeps: a step of rate 0 with gradients of 0.

    Some optimizers move the weights even so: put those into place afterwards.
    """
    if optimizer.state:
        return
    rates = [group["lr"] for group in optimizer.param_groups]
    for group in optimizer.param_groups:
        group["lr"] = 0.0
        for parameter in group["params"]:
            parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    for group, rate in zip(optimizer.param_groups, rates, strict=True):
        group["lr"] = rate


def restore_optimizer(tensors: Mapping[str, Tensor], module: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    """Copy `tensors` into the state that `make_state` made.

    Raises ValueError naming what the optimizer does not keep, or keeps in another shape.
    """
    parameters = _parameters(module, optimizer)
    saved: dict[str, dict[str, Tensor]] = {}
    for key, tensor in tensors.items():
        name, _, kind = key.rpartition("/")
        if name not in parameters:
            raise ValueError(f"optimizer state of an unknown parameter {name!r}")
        saved.setdefault(name, {})[kind] = tensor
    for name, parameter in parameters.items():
        if name not in saved:
            optimizer.state.pop(parameter, None)  # it never had a gradient
            continue
        own = optimizer.state[parameter]
        differing = sorted(own.keys() ^ saved[name].keys())
        if differing:
            raise ValueError(f"optimizer state {name}/{differing[0]}: {_whose(differing[0], own)}")
        for kind, tensor in saved[name].items():
            _copy(own, kind, tensor, f"{name}/{kind}")


def _copy(own: dict[str, Tensor | float], kind: str, tensor: Tensor, key: str) -> None:
    value = own[kind]
    expected = torch.as_tensor(value).shape
    if tensor.shape != expected:
        raise ValueError(f"optimizer state {key!r} has the shape {list(tensor.shape)}, expected {list(expected)}")
    if isinstance(value, Tensor):
        value.copy_(tensor)
    else:
        own[kind] = type(value)(tensor.item())


def _parameters(module: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, nn.Parameter]:
    names = {id(parameter): name for name, parameter in module.named_parameters()}
    return {names[id(parameter)]: parameter for group in optimizer.param_groups for parameter in group["params"]}


def _whose(kind: str, own: Mapping[str, object]) -> str:
    return "missing" if kind in own else "this optimizer does not keep it"
