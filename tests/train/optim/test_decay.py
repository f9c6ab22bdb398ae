"""Weight decay of its own for a head, and apart from the rate: AdamW and Adafactor alike."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from headrace.train.config import load_run, run_digest
from headrace.train.models.trunks.big_vision import BigVisionConfig
from headrace.train.objectives.build import build_objective
from headrace.train.objectives.supervised import Supervised, SupervisedConfig
from headrace.train.optim import set_groups
from headrace.train.optim.adafactor import AdafactorConfig
from headrace.train.optim.adamw import AdamWConfig
from headrace.train.runs.plan import plan_run

KINDS: list[type[AdafactorConfig] | type[AdamWConfig]] = [AdafactorConfig, AdamWConfig]
HEAD = {"head.*": 100.0}


def objective() -> Supervised:
    config = SupervisedConfig(
        kind="supervised", num_classes=3, patch=4, width=16, depth=2, heads=2, vit=BigVisionConfig(), pixels="centred"
    )
    made = build_objective(config, image_size=16, seed=0)
    assert isinstance(made, Supervised)
    return made


def lost(config: AdafactorConfig | AdamWConfig, *, lr: float) -> dict[str, float]:
    """Return which part of each parameter a step of this rate takes away where gradients are 0."""
    module = objective()
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.fill_(1.0)
    optimizer = config.build(module)
    set_groups(config, optimizer, lr=lr)
    for parameter in module.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    return {name: 1 - float(p.detach().double().mean()) for name, p in module.named_parameters()}


@pytest.mark.parametrize("kind", KINDS)
def test_only_kernels_are_decayed_and_the_head_by_its_own_number(kind: type[AdafactorConfig]) -> None:
    """As the study: 3 for the head, 0.03 for the body; no bias, norm, position or query."""
    found = lost(kind(lr=1e-2, weight_decay=0.03, decay_multipliers=HEAD), lr=1e-2)
    assert found["head.weight"] == pytest.approx(0.03, rel=1e-3)
    kernels = {
        "patch_embed.proj",
        "attn.qkv",
        "attn.proj",
        "fc1",
        "fc2",
        "attn_pool.q",
        "attn_pool.kv",
        "attn_pool.proj",
    }
    for name, part in found.items():
        decayed = name.endswith(tuple(f"{kernel}.weight" for kernel in kernels))
        if name != "head.weight":
            assert part == pytest.approx(3e-4 if decayed else 0.0, abs=1e-7), name


@pytest.mark.parametrize("kind", KINDS)
def test_decay_that_follows_the_schedule_does_not_know_the_rate(kind: type[AdafactorConfig]) -> None:
    """big_vision's: a step takes decay x what the schedule has of its highest value, whatever lr is."""
    for lr in (1e-3, 1e-1):
        config = kind(lr=lr, weight_decay=2e-3, decay_multipliers=HEAD, decay_follows="schedule")
        for part in (1.0, 0.25):
            found = lost(config, lr=lr * part)
            assert found["head.weight"] == pytest.approx(0.2 * part, rel=1e-4)
            assert found["encoder.blocks.1.mlp.fc2.weight"] == pytest.approx(2e-3 * part, rel=1e-3)


def test_with_layer_decay_the_rate_of_a_block_does_not_change_its_decay() -> None:
    config = AdamWConfig(lr=0.1, weight_decay=2e-3, layer_decay=0.5, decay_follows="schedule")
    found = lost(config, lr=0.05)
    assert found["encoder.blocks.0.mlp.fc1.weight"] == pytest.approx(1e-3, rel=1e-3)
    assert found["head.weight"] == pytest.approx(1e-3, rel=1e-3)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("given", "message"),
    [
        (
            {"decay_multipliers": {"head.*": -1.0}},
            "decay_multipliers: 'head.*' must be at least 0 and finite, got -1.0",
        ),
        ({"decay_follows": "schedule", "lr_per_images": 256}, "decay_follows schedule is for a rate as it is"),
        ({"weight_decay": math.inf}, "weight_decay"),
    ],
)
def test_numbers_that_cannot_be_are_refused(kind: type[AdafactorConfig], given: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        kind(**given)


@pytest.mark.parametrize(
    ("multipliers", "message"),
    [
        (
            {"heads.*": 2.0},
            r"'heads\.\*' is no name of a decayed parameter, nor a pattern of some; the last are .*head",
        ),
        ({"head.bias": 2.0}, "'head.bias' is no name of a decayed parameter"),
        ({"head.*": 2.0, "*.weight": 3.0}, r"'head\.\*' and '\*\.weight' both mean head\.weight: make them differ"),
    ],
)
def test_a_pattern_that_would_do_nothing_or_is_one_too_many_is_refused(
    multipliers: dict[str, float], message: str
) -> None:
    with pytest.raises(ValueError, match=f"^optimizer.decay_multipliers: {message}"):
        AdamWConfig(decay_multipliers=multipliers).build(objective())


def test_a_plan_refuses_a_pattern_that_would_do_nothing(run_file: Callable[..., Path]) -> None:
    with pytest.raises(ValueError, match=r"^optimizer\.decay_multipliers: 'heads' is no name of a decayed parameter"):
        plan_run(load_run(run_file(optimizer={"kind": "adafactor", "decay_multipliers": {"heads": 3.0}})))


def test_a_run_from_before_goes_on_and_the_multipliers_stay(run_file: Callable[..., Path]) -> None:
    plain = load_run(run_file(optimizer={"lr": 0.01}))
    named = load_run(run_file(optimizer={"lr": 0.01, "decay_multipliers": {}, "decay_follows": "rate"}))
    other = load_run(run_file(optimizer={"lr": 0.01, "decay_multipliers": {"head.*": 2}}))
    assert run_digest(plain) == run_digest(named) != run_digest(other)
    with pytest.raises(ValueError, match=r"optimizer\.decay_multipliers\.head\.\* cannot change on the way"):
        load_run(run_file(changes_at={4: {"optimizer.decay_multipliers": {"head.*": 3}}}))
