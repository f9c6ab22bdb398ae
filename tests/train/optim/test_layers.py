"""Layer decay: rates by depth, no group for frozen weights, and the same decisions as without it at 1."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from headrace.train.config import load_run
from headrace.train.models.lora import LoraConfig
from headrace.train.objectives.aim import AimConfig
from headrace.train.objectives.build import build_objective
from headrace.train.objectives.finetune import FinetuneConfig
from headrace.train.optim import set_groups
from headrace.train.optim.adamw import AdamWConfig
from headrace.train.optim.layers import layers_below_top

OF = AimConfig(kind="aim", model="tiny", patch=4, width=16, depth=3, heads=2, head_width=16, head_depth=1)


def objective(**changes: object) -> torch.nn.Module:
    config = FinetuneConfig(kind="finetune", of=OF, num_classes=3, **changes)  # type: ignore[arg-type]
    return build_objective(config, image_size=16, seed=0)


def test_each_block_has_the_rate_of_the_one_above_times_the_decay() -> None:
    module, config = objective(), AdamWConfig(lr=0.1, layer_decay=0.5)
    optimizer = config.build(module)
    names = {id(parameter): name for name, parameter in module.named_parameters()}
    rates = {names[id(p)]: group["lr"] for group in optimizer.param_groups for p in group["params"]}
    assert rates.keys() == set(names.values())
    for name, rate in rates.items():
        below = 0
        if "preprocessor" in name:
            below = 4
        elif ".blocks." in name:
            below = 3 - int(name.split(".blocks.")[1].split(".")[0])
        assert rate == pytest.approx(0.1 * 0.5**below), name
    set_groups(config, optimizer, lr=0.01)
    assert {group["lr"] for group in optimizer.param_groups} == {0.01 * 0.5**below for below in range(5)}
    decayed = {names[id(p)] for group in optimizer.param_groups if group["weight_decay"] for p in group["params"]}
    assert decayed == {name for name in names.values() if "norm" not in name and "bias" not in name}


def test_without_decay_there_are_two_groups() -> None:
    assert len(AdamWConfig().build(objective()).param_groups) == 2


def test_frozen_weights_are_in_no_group() -> None:
    module = objective(lora=LoraConfig())
    for decay in (1.0, 0.7):
        optimizer = AdamWConfig(layer_decay=decay).build(module)
        held = {id(p) for group in optimizer.param_groups for p in group["params"]}
        assert held == {id(p) for p in module.parameters() if p.requires_grad}


def test_layer_decay_does_not_change_on_the_way(run_file: Callable[..., Path]) -> None:
    """Groups by depth are made once: a change would do nothing, and nobody would see it."""
    with pytest.raises(ValueError, match=r"optimizer\.layer_decay cannot change on the way"):
        load_run(run_file(changes_at={"4": {"optimizer.layer_decay": 0.7}}))


def test_what_has_no_trunk_refuses_layer_decay() -> None:
    with pytest.raises(ValueError, match=r"optimizer\.layer_decay: Linear has no trunk"):
        AdamWConfig(layer_decay=0.9).build(torch.nn.Linear(2, 2))
    with pytest.raises(ValueError, match="layer_decay must be above 0"):
        AdamWConfig(layer_decay=1.5)
    assert layers_below_top(objective())["classifier.linear.weight"] == 0
