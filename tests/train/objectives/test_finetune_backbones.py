"""The trunk of a contrastive run is fine-tuned as any other: class token or mean, a ResNet over several processes."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from headrace.config import build_config
from headrace.pipeline import Batch
from headrace.train.config import load_run
from headrace.train.loop import train
from headrace.train.models.lora import LoraConfig, is_lora, merge_lora
from headrace.train.objectives.build import build_objective
from headrace.train.objectives.finetune import Finetune, FinetuneConfig
from headrace.train.runs.metrics import read_metrics
from tests.train.objectives.test_clip_ranks import together
from tests.train.parallel.test_strategy import TRAIN

VIT = {"model": "tiny", "patch": 4, "width": 16, "depth": 2, "heads": 2}
RESNET = {"model": "resnet18", "width": 8, "small_images": True}


def of_moco(backbone: dict[str, Any], **changes: Any) -> dict[str, Any]:
    moco = {"kind": "moco", "backbone": backbone, "hidden_width": 8, "feature_width": 4}
    return {"kind": "finetune", "of": moco, "num_classes": 3, **changes}


def tuned(backbone: dict[str, Any], **changes: Any) -> Finetune:
    config = build_config(FinetuneConfig, of_moco(backbone, **changes))
    objective = build_objective(config, image_size=16, seed=7)
    assert isinstance(objective, Finetune)
    torch.manual_seed(7)
    torch.nn.init.normal_(objective.classifier.linear.weight, std=0.5)
    return objective


@pytest.mark.parametrize(
    ("backbone", "changes"),
    [
        (VIT, {"drop_path": 0.5}),
        (VIT | {"pool": "mean", "patch_projection": "frozen"}, {}),
        (VIT, {"head": "attentive"}),
        (VIT, {"lora": {"rank": 2}}),
        (RESNET, {}),
        (RESNET, {"head": "attentive"}),
    ],
)
def test_every_trained_parameter_gets_a_gradient(
    make_batch: Callable[..., Batch], backbone: dict[str, Any], changes: dict[str, Any]
) -> None:
    objective = tuned(backbone, **changes)
    objective(make_batch(6))[0].backward()
    assert all((p.grad is not None) == p.requires_grad for p in objective.parameters())
    if changes.keys().isdisjoint({"lora", "head"}):  # an attentive head leaves the last norm out
        assert all(p.requires_grad for p in objective.parameters())
    assert objective.splits == (backbone is not RESNET)
    if "head" not in changes:
        objective.eval()
        images = objective.normalise(make_batch(2).images)
        expected = objective.classifier.linear(objective.encoder.pooled(images))
        assert torch.equal(objective.logits(images), expected)


@torch.no_grad()
def test_adapters_of_layers_with_biases_merge_to_the_same_outputs(make_batch: Callable[..., Batch]) -> None:
    adapted, plain = tuned(VIT, lora={"rank": 2}).eval(), tuned(VIT).eval()
    for name, parameter in adapted.named_parameters():
        if is_lora(name) or name.endswith("bias"):
            parameter.normal_()
    plain.load_state_dict(merge_lora(adapted.state_dict(), LoraConfig(rank=2)))
    images = plain.normalise(make_batch(2).images)
    torch.testing.assert_close(adapted.logits(images), plain.logits(images))


def test_what_a_resnet_has_not_is_refused() -> None:
    for changes in ({"lora": {}}, {"drop_path": 0.1}):
        with pytest.raises(ValueError, match="a ResNet has no attention for `lora` and no `drop_path`"):
            tuned(RESNET, **changes)


def test_a_resnet_on_two_processes_is_the_one_of_one(run_file: Callable[..., Path], tmp_path: Path) -> None:
    changes = {"objective": of_moco(RESNET), "steps": 3, "checkpoint": {"every": 3}}
    changes["optimizer"] = {"lr": 0.01, "eps": 0.01}
    path = run_file("labels", **changes)
    alone = train(load_run(path)).out
    together(2, TRAIN, json.dumps([str(path), f"out={tmp_path / 'two'}"]))
    losses = [
        [line["loss"] for line in read_metrics(out / "metrics.jsonl") if "loss" in line]
        for out in (alone, tmp_path / "two")
    ]
    assert losses[1] == pytest.approx(losses[0], rel=1e-4)
    one, two = (load_file(out / "model.safetensors") for out in (alone, tmp_path / "two"))
    for name, tensor in one.items():
        torch.testing.assert_close(two[name], tensor, atol=1e-4, rtol=1e-3, msg=name)
