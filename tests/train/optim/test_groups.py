"""An optimizer of others needs no `set_groups`: its learning rate moves, and what would not is refused."""

from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from torch import nn

from headrace.train.optim import SetsGroups, set_groups
from headrace.train.optim.adamw import AdamWConfig
from headrace.train.steady import changes


@dataclass(frozen=True, kw_only=True, slots=True)
class Plain:
    """SGD, as an extension has it."""

    kind: str = "plain"
    lr: float = 0.1
    momentum: float = 0.9

    def build(self, module: nn.Module) -> torch.optim.Optimizer:
        """Return the optimizer."""
        return torch.optim.SGD(module.parameters(), lr=self.lr, momentum=self.momentum)


@dataclass(frozen=True, kw_only=True, slots=True)
class Run:
    """What `_changed` looks at of a run's config."""

    optimizer: Any = field(default_factory=Plain)


def test_an_optimizer_without_set_groups_gets_its_learning_rate() -> None:
    config = Plain()
    optimizer = config.build(nn.Linear(2, 2))
    set_groups(config, optimizer, lr=0.03)
    assert [(group["lr"], group["momentum"]) for group in optimizer.param_groups] == [(0.03, 0.9)]
    assert isinstance(AdamWConfig(), SetsGroups)


def test_a_change_that_it_would_not_take_is_refused() -> None:
    with pytest.raises(ValueError, match=r"optimizer\.momentum cannot change on the way: plain has no set_groups"):
        changes._changed(Run(), {"optimizer.lr": 0.2, "optimizer.momentum": 0.5})  # type: ignore[arg-type]
