"""Runs of SimMIM: many ranks and parts are one, a killed run goes on to the bit, and its trunk goes everywhere."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from headrace.train.config import load_run
from headrace.train.evaluate.trunk import open_trunk
from headrace.train.loop import train
from headrace.train.objectives.simmim import Simmim
from headrace.train.runs.formats import export_weights
from headrace.train.runs.metrics import read_metrics
from headrace.train.runs.plan import plan_run
from headrace.train.runs.weights import read_weights
from tests.train.objectives.contrastive.test_runs import assert_close, losses_of, tensors_of
from tests.train.objectives.test_clip_ranks import together
from tests.train.parallel.test_strategy import TRAIN

SWIN = {"model": "swinv2-mini", "width": 16, "heads": 2, "depths": [1, 2], "window": 2}
VIT = {"model": "tiny", "patch": 8, "width": 16, "depth": 2, "heads": 2}


def simmim_file(run_file: Callable[..., Path], name: str, backbone: dict[str, Any], **changes: Any) -> Path:
    objective = {"kind": "simmim", "backbone": backbone, "mask_patch": 8, "target_window": 5, "drop_path": 0.3}
    optimizer = {"lr": 0.01, "eps": 0.01, "betas": [0.9, 0.999]}
    schedule = {"kind": "step", "warmup_fraction": 0.25, "milestones": [0.75]}
    given = {"steps": 4, "checkpoint": {"every": 2, "keep": 9}, "optimizer": optimizer, "schedule": schedule}
    return run_file(name, objective=objective, **given | changes)


@pytest.mark.parametrize("ranks", [2, pytest.param(4, marks=pytest.mark.full)])
def test_any_number_of_ranks_and_parts_is_one(run_file: Callable[..., Path], tmp_path: Path, ranks: int) -> None:
    """Losses, those of validation too, weights and moments: a whole batch, parts of it, and a model that is spread."""
    files = {"swin": simmim_file(run_file, "swin", SWIN), "vit": simmim_file(run_file, "vit", VIT)}
    runs = {
        "swin-many": [str(files["swin"])],
        "swin-spread": [str(files["swin"]), "parallel.strategy=fsdp", "images_per_micro_batch=2"],
        "vit-many": [str(files["vit"]), "images_per_micro_batch=2"],
    }
    del runs["vit-many" if ranks == 2 else "swin-spread"]
    together(ranks, TRAIN, *(json.dumps([*given, f"out={tmp_path / name}"]) for name, given in runs.items()))
    for name in {name.partition("-")[0] for name in runs}:
        train(load_run(files[name]))
    for name in runs:
        alone = tmp_path / name.partition("-")[0]
        assert losses_of(tmp_path / name) == pytest.approx(losses_of(alone), rel=2e-5), name
        if not name.endswith("spread"):
            assert_close(tensors_of(tmp_path / name, 4), tensors_of(alone, 4), name)


@pytest.mark.parametrize("backbone", [SWIN, VIT], ids=["swin", "vit"])
def test_a_run_that_is_killed_between_two_saves_goes_on_to_the_bit(
    run_file: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, backbone: dict[str, Any]
) -> None:
    path, calls = simmim_file(run_file, "whole", backbone, steps=6), []
    train(load_run(path))
    killed, after_step = load_run(path, [f"out={tmp_path / 'killed'}"]), Simmim.after_step

    def dies(self: Simmim) -> None:
        after_step(self)
        calls.append(1)
        if len(calls) == 5:
            raise InterruptedError

    monkeypatch.setattr(Simmim, "after_step", dies)
    with pytest.raises(InterruptedError):
        train(killed)
    assert train(killed).finished
    found, wanted = tensors_of(tmp_path / "killed", 6), tensors_of(tmp_path / "whole", 6)
    assert found.keys() == wanted.keys()
    assert all(torch.equal(found[name], wanted[name]) for name in wanted)
    assert losses_of(tmp_path / "killed") == losses_of(tmp_path / "whole")


def test_the_trunk_is_probed_exported_and_fine_tuned_as_any_other(
    run_file: Callable[..., Path], tmp_path: Path, pictures: str, other_pictures: str
) -> None:
    """At the end with adapters, another side of picture, and places measured in the windows of pretraining."""
    both = {"train": pictures, "test": other_pictures, "every": 2}
    knn = {"kind": "knn", "layers": "end", **both}
    few = {"kind": "few_shot", **both}
    path = simmim_file(run_file, "mim", SWIN, steps=2, monitors=[knn, few])
    train(load_run(path))
    lines = read_metrics(tmp_path / "mim" / "metrics.jsonl")
    assert {line["event"] for line in lines} >= {"monitor/knn", "monitor/few_shot", "validation"}
    trunk = open_trunk(tmp_path / "mim")
    batch = torch.zeros(2, 16, 16, 3, dtype=torch.uint8)
    assert trunk.means(batch, [(1, 2)])[0].shape == (2, 4, 32)
    export_weights(read_weights(tmp_path / "mim"), tmp_path / "timm", form="timm")
    of = {"kind": "simmim", "backbone": SWIN | {"bias_windows": [2, 2]}, "mask_patch": 8}
    for name, source, changes in (
        ("tuned", "mim", {"drop_path": 0.2}),
        ("adapted", "timm", {"lora": {"rank": 2}, "head": "attentive", "blocks": 2}),
    ):
        objective = {"kind": "finetune", "num_classes": 3, "of": of, **changes}
        optimizer = {"lr": 0.001, "layer_decay": 0.75}
        tuned = run_file(name, objective=objective, steps=1, optimizer=optimizer, init_from=str(tmp_path / source))
        train(load_run(tuned, ["mixture.image_size=24"]))
        assert read_weights(tmp_path / name).tensors.keys() >= trunk.encoder.state_dict().keys()


def test_a_part_of_the_data_that_is_smaller_than_the_lanes_is_one_line(
    run_file: Callable[..., Path], tmp_path: Path
) -> None:
    """Steps are those that the run says, whatever part of the data it has; of too small a part nothing begins."""
    path = simmim_file(run_file, "part", SWIN, steps=7, validation=None)
    train(load_run(path, ["mixture.sources.0.fraction=0.1"]))
    assert [line["step"] for line in read_metrics(tmp_path / "part" / "metrics.jsonl") if "loss" in line][-1] == 7
    for starts in (lambda config: plan_run(config), lambda config: train(config)):
        config = load_run(path, ["mixture.sources.0.fraction=0.02", f"out={tmp_path / 'none'}"])
        with pytest.raises(ValueError, match=r"pictures.*lanes|lanes.*pictures") as caught:
            starts(config)
        assert "\n" not in str(caught.value)
    assert not (tmp_path / "none" / "checkpoints").exists()
