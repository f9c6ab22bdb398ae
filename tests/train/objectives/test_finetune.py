"""Fine-tuning against slow loops; the same run on one process and on two; what starts it and what it gives away."""

import dataclasses
import math
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

from headrace.config import build_config
from headrace.pipeline import Batch
from headrace.train.batches import micro_batches
from headrace.train.config import load_run
from headrace.train.loop import train
from headrace.train.models.lora import LoraConfig, is_lora
from headrace.train.objectives.aim import AimConfig
from headrace.train.objectives.build import build_objective
from headrace.train.objectives.finetune import PARTNER, Finetune, FinetuneConfig
from headrace.train.objectives.mixing import MixConfig, draw_mixes
from headrace.train.objectives.objective import RowError
from headrace.train.runs.metrics import read_metrics
from headrace.train.runs.plan import plan_run
from headrace.train.runs.weights import read_model, read_weights

AIM: dict[str, Any] = {
    "kind": "aim",
    "model": "tiny",
    "patch": 4,
    "width": 16,
    "depth": 2,
    "heads": 2,
    "head_width": 16,
    "head_depth": 1,
}
TUNED: dict[str, Any] = {"kind": "finetune", "of": AIM, "num_classes": 3}
EVERYTHING: dict[str, Any] = {
    **TUNED,
    "label_smoothing": 0.1,
    "drop_path": 0.4,
    "mix": {"mixup": 0.8, "cutmix": 1.0},
}
ADAPTED: dict[str, Any] = {**TUNED, "head": "attentive", "mix": {"mixup": 0.8}, "lora": {"rank": 4}}


def tuned(**changes: Any) -> Finetune:
    objective = build_objective(
        FinetuneConfig(kind="finetune", of=AimConfig(**AIM), num_classes=3, **changes), image_size=16, seed=7
    )
    assert isinstance(objective, Finetune)
    torch.manual_seed(7)
    torch.nn.init.normal_(objective.classifier.linear.weight, std=0.5)
    return objective


def with_lanes(batch: Batch, lanes: int = 2) -> Batch:
    return dataclasses.replace(batch, lane=batch.position % lanes)


@torch.no_grad()
def test_the_loss_of_mixed_pictures_is_the_slow_loop(make_batch: Callable[..., Batch]) -> None:
    objective = tuned(mix=MixConfig(mixup=0.8, cutmix=1.0), label_smoothing=0.1)
    labels = np.array([0, 1, 2, -1, 1, 0])
    batch = objective.before_cut(with_lanes(make_batch(6, label=labels)))
    other = batch.columns[PARTNER.format("label")]
    loss, report = objective(batch)
    mixes = draw_mixes(batch.position, objective.config.mix, seed=7, side=16)
    total, right, terms = 0.0, 0, 0
    for row in range(6):
        if labels[row] < 0:
            continue
        own, partner = (objective.normalise(view[row : row + 1]) for view in batch.views)
        share, (top, bottom, left, end) = mixes.share_B[row], mixes.box_B4[row]
        if other[row] < 0:  # nobody knows what the partner shows
            share, image = 1.0, own
        elif bottom > top and end > left:
            image = own.clone()
            image[..., top:bottom, left:end] = partner[..., top:bottom, left:end]
        else:
            image = own * share + partner * (1 - share)
        logits = objective.logits(image)[0].tolist()
        chances = [math.exp(logit) / sum(map(math.exp, logits)) for logit in logits]
        for c in range(3):
            target = share * (c == labels[row]) + (1 - share) * (c == other[row])
            total -= (0.9 * target + 0.1 / 3) * math.log(chances[c])
        right += int(np.argmax(chances)) == (labels[row] if share >= 0.5 else other[row])
        terms += 1
    assert objective.num_terms(batch) == terms == 5
    assert float(loss) == pytest.approx(total, rel=1e-5)
    assert float(report["top1"]) == pytest.approx(right / terms)


@pytest.mark.parametrize(
    "changes", [{"drop_path": 0.5, "mix": MixConfig(mixup=0.8, cutmix=1.0)}, {"head": "attentive"}]
)
@torch.no_grad()
def test_parts_sum_to_the_whole(make_batch: Callable[..., Batch], changes: dict[str, Any]) -> None:
    objective = tuned(**changes)
    batch = objective.before_cut(with_lanes(make_batch(8, label=np.array([0, 1, -1, 2, 0, -1, 1, 2]))))
    parts = micro_batches(batch, 3)
    assert sum(objective.num_terms(part) for part in parts) == objective.num_terms(batch) == 6
    assert sum(float(objective(part)[0]) for part in parts) == pytest.approx(float(objective(batch)[0]), rel=1e-5)


@torch.no_grad()
def test_dropped_branches_are_made_up_for_by_those_that_stay(make_batch: Callable[..., Batch]) -> None:
    objective = tuned(drop_path=0.5)
    kept = objective._kept(np.arange(4000), torch.device("cpu"))
    assert kept is not None
    assert torch.equal(kept[0], torch.ones(4000, 2))
    assert set(kept[1].unique().tolist()) == {0.0, 2.0}
    assert float(kept[1].mean()) == pytest.approx(1, abs=0.05)
    images = objective.normalise(make_batch(2).images)
    first, second = objective.encoder.block_outputs(images, torch.zeros(2, 2, 2))
    assert torch.equal(first, objective.encoder.preprocessor(images))
    assert torch.equal(second, first)
    whole = objective.encoder(images, None, torch.ones(2, 2, 2))
    assert torch.equal(whole, objective.encoder(images))


@torch.no_grad()
def test_validation_mixes_drops_and_smooths_nothing(make_batch: Callable[..., Batch]) -> None:
    plain, full = tuned(), tuned(drop_path=0.5, label_smoothing=0.1, mix=MixConfig(mixup=0.8))
    full.eval()
    batch = with_lanes(make_batch(4))
    assert float(full(batch)[0]) == float(plain(batch)[0])
    full.train()
    assert float(full(full.before_cut(batch))[0]) != float(plain(batch)[0])


@pytest.mark.parametrize("changes", [{}, {"head": "attentive"}, {"lora": LoraConfig()}])
def test_every_trained_parameter_gets_a_gradient_also_where_no_picture_counts(
    make_batch: Callable[..., Batch], changes: dict[str, Any]
) -> None:
    """Ranks reduce gradients together, so each must have all of them."""
    objective = tuned(**changes)
    objective(make_batch(2, label=np.array([-1, -1])))[0].backward()
    trained = {name: p for name, p in objective.named_parameters() if p.requires_grad}
    assert [name for name, p in trained.items() if p.grad is None] == []
    if "lora" in changes:
        assert {name.split(".")[0] for name in trained if not is_lora(name)} == {"classifier"}


def test_a_lane_without_a_partner_is_refused_before_the_run_has_a_folder(run_file: Callable[..., Path]) -> None:
    for change in ({}, {"changes_at": {3: {"mixture.lanes": 16}}}):
        config = load_run(run_file(objective=EVERYTHING, **change), [] if change else ["mixture.lanes=16"])
        for start in (train, plan_run):
            with pytest.raises(ValueError, match=r"lower mixture\.lanes to at most half of global_batch"):
                start(config)
        assert not Path(config.out).exists()
    # A segment behind the last step never begins.
    plan_run(load_run(run_file(objective=EVERYTHING), ["mixture.segments=[{start: 16000, lanes: 16}]"]))


def test_what_cannot_be_is_refused(make_batch: Callable[..., Batch]) -> None:
    for change, message in (
        ({"num_classes": 1}, "num_classes must be at least 2"),
        ({"drop_path": 1.0}, "drop_path must be in"),
        ({"mix": {"mixup": -1.0}}, "mixup and cutmix must be at least 0"),
        ({"lora": {"rank": 0}}, "rank must be at least 1"),
        ({"of": TUNED}, "unknown 'finetune'"),
    ):
        with pytest.raises(ValueError, match=message):
            build_config(FinetuneConfig, {**TUNED, **change})
    with pytest.raises(RowError, match="2 labels; fine-tuning wants one a picture"):
        tuned().num_terms(make_batch(2, label=[[0], [0, 1]]))


@pytest.mark.parametrize("objective", [EVERYTHING, ADAPTED])
def test_a_resumed_run_goes_on_to_the_last_bit(run_file: Callable[..., Path], objective: dict[str, Any]) -> None:
    config = load_run(run_file(objective=objective, optimizer={"layer_decay": 0.7}))
    out = train(config).out
    whole = [line["loss"] for line in read_metrics(out / "metrics.jsonl")]
    last = (out / "model.safetensors").read_bytes()
    for step in ("00000006", "00000009", "00000012"):
        shutil.rmtree(out / "checkpoints" / step)
    train(config)
    assert [line["loss"] for line in read_metrics(out / "metrics.jsonl")] == whole
    assert (out / "model.safetensors").read_bytes() == last


def test_adapters_are_exported_merged_and_frozen_weights_have_no_moments(
    run_file: Callable[..., Path], make_batch: Callable[..., Batch]
) -> None:
    before = train(load_run(run_file("before", steps=2))).out
    # The pixel head of aim is left out, whatever its names.
    path = run_file("thin", objective=ADAPTED, init_from=str(before), optimizer={"lr": 0.05})
    out = train(load_run(path)).out
    newest = out / "checkpoints" / "00000012"
    moments = {name.rpartition("/")[0] for name in load_file(newest / "optimizer.safetensors")}
    assert moments == {
        name for name in load_file(newest / "model.safetensors") if is_lora(name) or "classifier" in name
    }
    with safe_open(out / "model.safetensors", "pt") as file:
        assert not any(is_lora(name) for name in file.keys())  # noqa: SIM118  it is no dict
    apart = build_objective(load_run(path).objective, image_size=16, seed=3)
    apart.load_state_dict(load_file(newest / "model.safetensors"))
    merged, again = (read_weights(place) for place in (out / "model.safetensors", newest))
    assert all(torch.equal(tensor, again.tensors[name]) for name, tensor in merged.tensors.items())
    assert read_model(out) == read_model(newest) == read_model(out / "model.safetensors") == merged.model
    joined = merged.model.build()
    images = make_batch(4).images
    logits = []
    with torch.no_grad():
        merged.load_into(joined)
        for model in (apart, joined):
            assert isinstance(model, Finetune)
            logits.append(model.eval().logits(model.normalise(images)))
    assert (logits[0] - logits[1]).abs().max() < 1e-6 * max(1.0, float(logits[0].abs().max()))
    old, new = load_file(before / "model.safetensors"), merged.tensors
    changed = {name for name in old.keys() & new.keys() if not torch.equal(old[name], new[name])}
    assert changed == {f"trunk.blocks.{n}.attn.{part}.weight" for n in range(2) for part in ("qkv", "proj")}


def test_it_starts_from_another_resolution_and_learns(run_file: Callable[..., Path], other_pictures: str) -> None:
    before = train(load_run(run_file("before", steps=2))).out
    path = run_file(
        "after",
        objective=TUNED,
        steps=40,
        optimizer={"lr": 0.01, "layer_decay": 0.75},
        init_from=str(before / "model.safetensors"),
        validation={"dataset": other_pictures, "every": 40},
    )
    out = train(load_run(path, ["mixture.image_size=32"])).out
    first, last = (line for line in read_metrics(out / "metrics.jsonl") if line["event"] == "validation")
    assert first["loss"] == pytest.approx(math.log(3), rel=1e-3)
    assert last["top1"] > 0.9 > first["top1"]
