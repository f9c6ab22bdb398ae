"""Who is decayed, and how the rate moves."""

import math
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn

from headrace.train.config import RunConfig, load_run
from headrace.train.objectives.aim import AimConfig
from headrace.train.objectives.build import build_objective
from headrace.train.optim.adamw import build_optimizer
from headrace.train.optim.groups import is_decayed


def learning_rate(step: int, config: RunConfig) -> float:
    return config.schedule.rate(step, steps=config.steps, peak=config.optimizer.lr)


def test_the_rate_warms_up_linearly_and_falls_as_a_cosine(run_file: Callable[..., Path]) -> None:
    config = load_run(
        run_file(
            steps=110, schedule={"warmup_fraction": 10 / 110, "warmup_lr": 0.1, "final_lr": 0.2}, optimizer={"lr": 1.1}
        )
    )
    assert [learning_rate(step, config) for step in range(11)] == pytest.approx(
        [0.1 + 0.1 * step for step in range(11)]
    )
    for step in range(10, 110):
        expected = 0.2 + 0.9 * (1 + math.cos(math.pi * (step - 10) / 100)) / 2
        assert learning_rate(step, config) == pytest.approx(expected)
    assert learning_rate(110, config) == pytest.approx(0.2)


def test_without_warm_up_the_first_step_has_the_peak(run_file: Callable[..., Path]) -> None:
    config = load_run(run_file(schedule={"warmup_fraction": 0.0}, steps=1))
    assert learning_rate(0, config) == config.optimizer.lr


def test_biases_norms_and_positions_are_not_decayed(run_file: Callable[..., Path]) -> None:
    objective = build_objective(AimConfig(kind="aim", model="tiny", patch=4), image_size=16, seed=0)
    optimizer = build_optimizer(objective, load_run(run_file()).optimizer)
    names = {id(parameter): name for name, parameter in objective.named_parameters()}
    decayed, kept = ({names[id(p)] for p in group["params"]} for group in optimizer.param_groups)
    assert [group["weight_decay"] for group in optimizer.param_groups] == [0.05, 0.0]
    assert kept == {name for name in names.values() if "norm" in name or name.endswith("bias")}
    assert decayed | kept == set(names.values())
    assert not is_decayed("model.positional_embedding", nn.Parameter(torch.zeros(4, 8)))
    assert not is_decayed("backbone.cls_token", nn.Parameter(torch.zeros(1, 1, 8)))
    assert not is_decayed("model.logit_scale", nn.Parameter(torch.zeros(())))
    assert is_decayed("model.token_embedding.weight", nn.Parameter(torch.zeros(4, 8)))
