"""The state of any optimizer goes into a checkpoint and comes back bit for bit."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from headrace.train.optim.lamb import LambConfig
from headrace.train.optim.lars import LarsConfig
from headrace.train.runs.optimizer_state import make_state, optimizer_tensors, restore_optimizer

Build = Callable[[nn.Module], torch.optim.Optimizer]


class Counting(torch.optim.SGD):
    """An optimizer that keeps a plain number and moves weights even at rate 0."""

    def step(self) -> None:  # type: ignore[override]
        super().step()
        for group in self.param_groups:
            for parameter in group["params"]:
                state = self.state[parameter]
                state["count"] = state.get("count", 0) + 1
                with torch.no_grad():
                    parameter.mul_(0.5)


OPTIMIZERS: dict[str, Build] = {
    "adamw": lambda module: torch.optim.AdamW(module.parameters(), lr=0.1),
    "amsgrad": lambda module: torch.optim.AdamW(module.parameters(), lr=0.1, amsgrad=True),
    # Factored: a row and a column where the parameter is a matrix.
    "adafactor": lambda module: torch.optim.Adafactor(module.parameters(), lr=0.1),
    "sgd": lambda module: torch.optim.SGD(module.parameters(), lr=0.1, momentum=0.9),
    "lars": lambda module: LarsConfig(lr=0.1).build(module),
    "lamb": lambda module: LambConfig(lr=0.1).build(module),
    "plain sgd": lambda module: torch.optim.SGD(module.parameters(), lr=0.1),
    "counting": lambda module: Counting(module.parameters(), lr=0.1, momentum=0.9),
}


def new(build: Build, seed: int) -> tuple[nn.Module, torch.optim.Optimizer]:
    torch.manual_seed(seed)
    module = nn.Sequential(nn.Linear(6, 4), nn.Linear(4, 2))
    return module, build(module)


def steps(module: nn.Module, optimizer: torch.optim.Optimizer, first: int, last: int) -> None:
    for step in range(first, last):
        torch.manual_seed(step)
        module(torch.randn(5, 6)).square().sum().backward()
        optimizer.step()
        optimizer.zero_grad()


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_what_is_restored_goes_on_bit_for_bit(name: str) -> None:
    module, optimizer = new(OPTIMIZERS[name], seed=0)
    steps(module, optimizer, 0, 3)
    kept = {key: tensor.clone() for key, tensor in optimizer_tensors(module, optimizer).items()}
    weights = {key: tensor.clone() for key, tensor in module.state_dict().items()}
    steps(module, optimizer, 3, 6)

    again, other = new(OPTIMIZERS[name], seed=1)
    make_state(other)
    again.load_state_dict(weights)
    restore_optimizer(kept, again, other)
    assert {group["lr"] for group in other.param_groups} == {0.1}
    steps(again, other, 3, 6)
    for one, two in zip(module.parameters(), again.parameters(), strict=True):
        assert torch.equal(one, two)


def test_a_parameter_that_never_had_a_gradient_has_no_state_afterwards() -> None:
    module, optimizer = new(OPTIMIZERS["adamw"], seed=0)
    module[1].requires_grad_(False)  # type: ignore[index]
    steps(module, optimizer, 0, 2)
    kept = optimizer_tensors(module, optimizer)
    assert {key.split("/")[0] for key in kept} == {"0.weight", "0.bias"}
    again, other = new(OPTIMIZERS["adamw"], seed=1)
    make_state(other)
    restore_optimizer(kept, again, other)
    assert len(other.state) == 2


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda kept: kept.pop("0.weight/exp_avg"), "optimizer state 0.weight/exp_avg: missing"),
        (lambda kept: kept.update({"0.weight/row_var": torch.zeros(6)}), "row_var: this optimizer does not keep it"),
        (lambda kept: kept.update({"0.bias/exp_avg": torch.zeros(6)}), r"has the shape \[6\], expected \[4\]"),
        (lambda kept: kept.update({"2.bias/exp_avg": torch.zeros(4)}), "unknown parameter '2.bias'"),
    ],
)
def test_the_state_of_another_optimizer_is_refused_by_name(
    spoil: Callable[[dict[str, Tensor]], object], message: str
) -> None:
    module, optimizer = new(OPTIMIZERS["adamw"], seed=0)
    steps(module, optimizer, 0, 1)
    kept = optimizer_tensors(module, optimizer)
    spoil(kept)
    again, other = new(OPTIMIZERS["adamw"], seed=1)
    make_state(other)
    with pytest.raises(ValueError, match=message):
        restore_optimizer(kept, again, other)


def test_restored_tensors_hold_on_to_nothing_that_was_read() -> None:
    """A run that was resumed must not keep the file of the old checkpoint mapped."""
    module, optimizer = new(OPTIMIZERS["adamw"], seed=0)
    steps(module, optimizer, 0, 1)
    kept = optimizer_tensors(module, optimizer)
    again, other = new(OPTIMIZERS["adamw"], seed=1)
    make_state(other)
    restore_optimizer(kept, again, other)
    owned = {tensor.data_ptr() for tensor in optimizer_tensors(again, other).values()}
    assert not owned & {tensor.data_ptr() for tensor in kept.values()}
