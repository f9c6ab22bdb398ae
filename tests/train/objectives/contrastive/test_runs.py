"""Every contrastive objective: many ranks are one, a killed run goes on to the bit, a bad step leaves nothing."""

import dataclasses
import json
import math
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file
from torch import Tensor

from headrace.pipeline import Batch
from headrace.train.config import RunConfig, load_run
from headrace.train.evaluate.trunk import open_trunk
from headrace.train.loop import train
from headrace.train.model import first_weights, place_model
from headrace.train.objectives import objective_configs
from headrace.train.objectives.build import build_objective
from headrace.train.objectives.contrastive.contrastive import Contrastive
from headrace.train.objectives.objective import Objective, names_in_trunk, released_names
from headrace.train.parallel.ranks import ALONE
from headrace.train.runs.formats import export_weights
from headrace.train.runs.metrics import read_metrics
from headrace.train.runs.plan import plan_run
from headrace.train.runs.weights import read_weights
from tests.train.objectives.test_clip_ranks import together
from tests.train.parallel.test_strategy import TRAIN

BACKBONE = {"model": "tiny", "patch": 8, "width": 16, "depth": 2, "heads": 2}
HEADS = {"hidden_width": 24, "feature_width": 8}
RUNS: dict[str, tuple[str, dict[str, Any]]] = {
    "moco": ("moco_v3", {"backbone": BACKBONE, **HEADS}),
    "simclr": ("simclr", {"backbone": BACKBONE, **HEADS}),
    "byol": ("byol", {"backbone": BACKBONE, **HEADS}),
    "swav": ("swav", {"backbone": BACKBONE, **HEADS, "prototypes": 12, "frozen_steps": 2, "queue_images": 32}),
}
KINDS = list(RUNS)


def file_of(run_file: Callable[..., Path], kind: str, name: str = "", **changes: Any) -> Path:
    """Write a run file of a small objective over two views of 16 pixels."""
    preset, objective = RUNS[kind]
    path = run_file(name or kind)
    data = yaml.safe_load(path.read_text())
    del data["mixture"]["augment"]
    data["mixture"]["preset"] = preset
    if kind == "swav":
        del data["mixture"]["preset"]
        small = {"count": 2, "image_size": 8, "augment": {"scale": [0.05, 0.4]}}
        data["mixture"]["views"] = [{"count": 2}, small]
    data |= {"objective": {"kind": kind, **objective}, "steps": 6, "checkpoint": {"every": 2, "keep": 9}}
    # Some gradients are 0 but for rounding (a bias before BatchNorm), which AdamW would blow up with a small eps.
    data["optimizer"] = {"lr": 0.01, "eps": 0.01}
    path.write_text(yaml.safe_dump({**data, **changes}))
    return path


def tensors_of(out: Path, step: int) -> dict[str, Tensor]:
    """Return weights, buffers and moments of a checkpoint."""
    folder = out / "checkpoints" / f"{step:08d}"
    return {
        f"{part}/{name}": x
        for part in ("model", "optimizer")
        for name, x in load_file(folder / f"{part}.safetensors").items()
    }


def losses_of(out: Path) -> list[float]:
    return [line["loss"] for line in read_metrics(out / "metrics.jsonl") if "loss" in line]


@pytest.mark.parametrize("ranks", [2, pytest.param(4, marks=pytest.mark.full)])
def test_any_number_of_ranks_is_one(run_file: Callable[..., Path], tmp_path: Path, ranks: int) -> None:
    """Losses, validation, weights, momentum encoders, statistics of BatchNorm, moments, queue and prototypes.

    Where each holds all of the model, and where it is spread, whose checkpoint one process continues.
    """
    files = {kind: file_of(run_file, kind, steps=4) for kind in KINDS}
    runs = [[str(path), f"out={tmp_path / kind}-many"] for kind, path in files.items()]
    runs += [[str(files[kind]), f"out={tmp_path / kind}-spread", "parallel.strategy=fsdp"] for kind in ("moco", "swav")]
    together(ranks, TRAIN, *map(json.dumps, runs))
    for kind, path in files.items():
        train(load_run(path))
        losses, tensors = losses_of(tmp_path / kind), tensors_of(tmp_path / kind, 4)
        many = tmp_path / f"{kind}-many"
        assert losses_of(many) == pytest.approx(losses, rel=2e-5), kind
        assert_close(tensors_of(many, 4), tensors, kind)
        if (spread := tmp_path / f"{kind}-spread").exists():
            assert losses_of(spread) == pytest.approx(losses, rel=2e-5), kind
            shutil.rmtree(spread / "checkpoints" / "00000004")
            train(load_run(path, [f"out={spread}"]))
            assert_close(tensors_of(spread, 4), tensors, f"{kind}, spread")


def assert_close(found: Mapping[str, Tensor], wanted: Mapping[str, Tensor], what: str) -> None:
    assert found.keys() == wanted.keys()
    for name, tensor in wanted.items():
        scale = float(tensor.abs().max()) if tensor.is_floating_point() else 0.0
        distance = float((found[name] - tensor).abs().max())
        assert torch.allclose(found[name], tensor, rtol=1e-4, atol=1e-4 * scale + 1e-7), f"{what} {name}: {distance}"


@pytest.mark.parametrize("kind", KINDS)
def test_a_run_that_is_killed_between_two_saves_goes_on_to_the_bit(
    run_file: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    path = file_of(run_file, kind)
    train(load_run(path))
    killed, calls = load_run(path, [f"out={tmp_path / 'killed'}"]), []
    after_step = objective_class(kind).after_step

    def dies(self: Contrastive) -> None:
        after_step(self)
        calls.append(1)
        if len(calls) == 5:
            raise InterruptedError

    monkeypatch.setattr(objective_class(kind), "after_step", dies)
    with pytest.raises(InterruptedError):
        train(killed)
    assert train(killed).finished
    for step in (2, 4, 6):
        found, wanted = tensors_of(tmp_path / "killed", step), tensors_of(tmp_path / kind, step)
        assert found.keys() == wanted.keys()
        assert all(torch.equal(found[name], wanted[name]) for name in wanted), step
    assert losses_of(tmp_path / "killed") == losses_of(tmp_path / kind)


@pytest.mark.parametrize("kind", ["moco", "swav"])
def test_a_step_that_is_skipped_leaves_no_trace(
    run_file: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    """Statistics of BatchNorm and the queue are as before it; a resumed run, which makes no pass of it, is the same."""
    path = file_of(run_file, kind, on_non_finite="skip", max_skipped_steps=3)
    forward, seen = objective_class(kind).forward, []

    def spoiled(self: Contrastive, batch: Batch) -> tuple[Tensor, Mapping[str, Tensor]]:
        if self.training and int(batch.position[0]) // 16 == 3:
            seen.append(1)
            nothing = np.full_like(batch.images, 0)
            batch = dataclasses.replace(batch, images=nothing, other_views=tuple(batch.other_views))
            loss, report = forward(self, batch)
            return loss * math.nan, report
        return forward(self, batch)

    monkeypatch.setattr(objective_class(kind), "forward", spoiled)
    train(load_run(path))
    resumed = load_run(path, [f"out={tmp_path / 'resumed'}"])
    shutil.copytree(tmp_path / kind, tmp_path / "resumed")
    for step in (4, 6):
        shutil.rmtree(tmp_path / "resumed" / "checkpoints" / f"{step:08d}")
    assert train(resumed).finished
    assert len(seen) == 1, "the resumed run passes over it"
    found, wanted = tensors_of(tmp_path / "resumed", 6), tensors_of(tmp_path / kind, 6)
    assert all(torch.equal(found[name], wanted[name]) for name in wanted)
    counts = {int(x) for name, x in wanted.items() if name.endswith("num_batches_tracked") and "encoder" not in name}
    assert counts == {5 * (1 if kind == "swav" else 2)}
    assert [line["step"] for line in read_metrics(tmp_path / kind / "metrics.jsonl") if line["event"] == "skipped"] == [
        4
    ]


REFUSED = {
    "one view": (
        {"mixture.preset": "", "mixture.augment": {}},
        "it compares 2 views of a picture, and the mixture gives 1",
    ),
    "views of two sizes": (
        {"mixture.preset": "", "mixture.views": [{"count": 1}, {"image_size": 8}]},
        "as large as the mixture's image_size, 16 pixels, and view 1 has 8",
    ),
    "eight views": ({"mixture.preset": "swav"}, "it compares 2 views of a picture, and the mixture gives 8"),
    "a batch of one": (
        {"global_batch": 1, "mixture.lanes": 1},
        "no statistics for BatchNorm: global_batch must be at least 2",
    ),
    "a batch in parts": ({"images_per_micro_batch": 4}, "images_per_micro_batch would cut it"),
    "an average": ({"ema": {"decay": 0.9}}, "BatchNorm, whose statistics .* leave `ema` out"),
    "an unknown preset": ({"mixture.preset": "moco"}, "mixture.preset: .*'moco_v3'.*got 'moco'"),
    "no temperature": ({"objective.temperature": 0.0}, "temperature must be above 0"),
    "momentum above 1": ({"objective.momentum": 1.5}, "momentum must be 0..1"),
    "a side of broken patches": ({"mixture.image_size": 20}, "20"),
}
REFUSED_OF_SWAV = {
    "one view": (
        {"mixture.views": [], "mixture.augment": {}},
        "its first 2 views are as large .* the mixture's are of 16",
    ),
    "no second large view": ({"mixture.views": [{"count": 1}, {"count": 3, "image_size": 8}]}, "are of 16, 8, 8, 8"),
    "small views of broken patches": ({"mixture.views": [{"count": 2}, {"image_size": 12}]}, "view 2: .*12"),
    "more prototypes than pictures": (
        {"objective.prototypes": 49},
        r"49 prototypes .* there are 48 \(global_batch 16, queue_images 32\)",
    ),
    "a smaller dataset than prototypes": (
        {"objective.prototypes": 97, "objective.queue_images": 96},
        "sources hold 96 pictures, and this objective has 97 prototypes",
    ),
    "codes too hard for fp32": ({"objective.epsilon": 0.001}, "epsilon must be 0.02 to 10"),
}
ALL_REFUSED = [("moco", *case) for case in REFUSED.values()] + [("swav", *case) for case in REFUSED_OF_SWAV.values()]


@pytest.mark.parametrize(
    ("kind", "changes", "message"), ALL_REFUSED, ids=[*REFUSED, *(f"swav, {n}" for n in REFUSED_OF_SWAV)]
)
def test_what_cannot_be_compared_is_one_line_before_the_first_step(
    run_file: Callable[..., Path], tmp_path: Path, kind: str, changes: dict[str, Any], message: str
) -> None:
    path = file_of(run_file, kind)
    data = yaml.safe_load(path.read_text())
    for where, value in changes.items():
        *sections, key = where.split(".")
        inside = data
        for section in sections:
            inside = inside[section]
        inside[key] = value
    path.write_text(yaml.safe_dump(data))
    for starts in (lambda config: plan_run(config), lambda config: train(config)):
        with pytest.raises(ValueError, match=message) as caught:
            starts(load_run(path))
        assert "\n" not in str(caught.value)
    assert not (tmp_path / kind / "metrics.jsonl").exists()


def objective_class(kind: str) -> type[Contrastive]:
    objective = build_of(kind)
    assert isinstance(objective, Contrastive)
    return type(objective)


def config_of(kind: str) -> Any:
    from headrace.config import build_config

    return build_config(objective_configs()[kind], {"kind": kind, **RUNS[kind][1]})


def test_features_a_finetune_and_a_probed_export_come_of_such_a_run(
    run_file: Callable[..., Path], tmp_path: Path, other_pictures: str, pictures: str
) -> None:
    """With a kNN monitor and a validation over the views of training; the trunk that is exported is the trained one."""
    knn = {"kind": "knn", "train": pictures, "test": other_pictures, "every": 2, "layers": "last1"}
    path = file_of(run_file, "moco", monitors=[knn], steps=2)
    train(load_run(path))
    lines = read_metrics(tmp_path / "moco" / "metrics.jsonl")
    assert [line["step"] for line in lines if line["event"] == "monitor/knn"] == [0, 2]
    validated = [line for line in lines if line["event"] == "validation"]
    assert {"loss", "contrast_accuracy", "feature_spread"} <= validated[0].keys()
    assert 0 < validated[0]["loss"] < 4 * 0.2 * 10

    weights = load_file(tmp_path / "moco" / "model.safetensors")
    trunk = open_trunk(tmp_path / "moco")
    assert torch.equal(trunk.encoder.state_dict()["blocks.1.mlp.fc1.weight"], weights["blocks.1.mlp.fc1.weight"])
    assert not torch.equal(weights["momentum.encoder.blocks.1.mlp.fc1.weight"], weights["blocks.1.mlp.fc1.weight"])
    export_weights(read_weights(tmp_path / "moco"), tmp_path / "timm", form="timm")
    assert (tmp_path / "timm" / "model.safetensors").exists()

    objective = yaml.safe_load(path.read_text())["objective"]
    tuned = run_file("tuned", objective={"kind": "finetune", "num_classes": 3, "of": objective}, steps=1)
    train(load_run(tuned, [f"init_from={tmp_path / 'moco'}"]))
    assert read_weights(tmp_path / "tuned").tensors.keys() == trunk.encoder.state_dict().keys() | {
        "classifier.linear.weight",
        "classifier.linear.bias",
    }


@pytest.mark.parametrize("kind", ["moco", "byol"])
def test_a_run_that_starts_from_another_has_its_momentum_encoder_too(
    run_file: Callable[..., Path], tmp_path: Path, kind: str
) -> None:
    """All that its file holds; of a trunk alone the momentum encoder is a copy."""
    path = file_of(run_file, kind, steps=2, validation=None)
    train(load_run(path))
    file = tmp_path / kind / "model.safetensors"
    weights, trunk = load_file(file), tmp_path / "trunk.safetensors"
    in_trunk = {name: x for name, x in weights.items() if name in names_in_trunk(build_of(kind))}
    save_file(in_trunk, trunk)
    found = started(load_run(path, [f"init_from={file}", "seed=8"]))
    assert found.keys() == weights.keys()
    assert all(torch.equal(found[name], tensor) for name, tensor in weights.items())
    found = started(load_run(path, [f"init_from={trunk}", "seed=8"]))
    copied = {name: x for name, x in found.items() if name.startswith("momentum.encoder.")}
    assert copied
    assert all(torch.equal(x, weights[name.removeprefix("momentum.encoder.")]) for name, x in copied.items())


def started(config: RunConfig) -> dict[str, Tensor]:
    """Return the weights of step 0 under released names."""
    objective, _ = place_model(config, ALONE)
    first_weights(config, objective, ALONE)
    return released_names(objective, objective.state_dict())


def build_of(kind: str) -> Objective:
    return build_objective(config_of(kind), image_size=16, seed=0)
