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
    targets = state_targets({name: tuple(tensor.shape) for name, tensor in tensors.items()}, module, optimizer)
    for name, target in targets.items():
        target.copy_(tensors[name])
    finish_state(targets, module, optimizer)


def state_targets(
    shapes: Mapping[str, tuple[int, ...]], module: nn.Module, optimizer: torch.optim.Optimizer
) -> dict[str, Tensor]:
    """Return for each name of a saved state the tensor that takes it; a plain number gets one of no dimensions.

    Call `finish_state` when they are filled. Raises ValueError naming what the optimizer does not keep, or keeps in
    another shape.
    """
    parameters = _parameters(module, optimizer)
    saved: dict[str, set[str]] = {}
    for key in shapes:
        name, _, kind = key.rpartition("/")
        if name not in parameters:
            raise ValueError(f"optimizer state of an unknown parameter {name!r}")
        saved.setdefault(name, set()).add(kind)
    targets = {}
    for name, kinds in saved.items():
        own = optimizer.state[parameters[name]]
        differing = sorted(own.keys() ^ kinds)
        if differing:
            raise ValueError(f"optimizer state {name}/{differing[0]}: {_whose(differing[0], own)}")
        for kind, value in own.items():
            key, target = f"{name}/{kind}", torch.as_tensor(value)
            if shapes[key] != target.shape:
                raise ValueError(
                    f"optimizer state {key!r} has the shape {list(shapes[key])}, expected {list(target.shape)}"
                )
            targets[key] = target
    return targets


def finish_state(targets: Mapping[str, Tensor], module: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    """Take over the plain numbers of `targets`; forget what `make_state` made for parameters without a saved state."""
    for name, parameter in _parameters(module, optimizer).items():
        own = optimizer.state[parameter]
        if not any(f"{name}/{kind}" in targets for kind in own):
            optimizer.state.pop(parameter, None)  # it never had a gradient
            continue
        for kind, value in own.items():
            if not isinstance(value, Tensor):
                own[kind] = type(value)(targets[f"{name}/{kind}"].item())


def _parameters(module: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, nn.Parameter]:
    names = {id(parameter): name for name, parameter in module.named_parameters()}
    return {names[id(parameter)]: parameter for group in optimizer.param_groups for parameter in group["params"]}


def _whose(kind: str, own: Mapping[str, object]) -> str:
    return "missing" if kind in own else "this optimizer does not keep it"
