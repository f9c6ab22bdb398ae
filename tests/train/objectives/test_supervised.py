"""The supervised loss against a slow loop; what is no label; a run that trains, resumes, exports and is probed."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors import safe_open

from headrace.config import build_config, config_to_dict
from headrace.pipeline import Batch
from headrace.train.batches import micro_batches
from headrace.train.config import load_run, run_digest
from headrace.train.evaluate.probe_config import ProbeConfig, protocol
from headrace.train.evaluate.probes import probe
from headrace.train.loop import train
from headrace.train.objectives.build import build_objective
from headrace.train.objectives.objective import RowError
from headrace.train.objectives.supervised import Supervised, SupervisedConfig, read_labels
from headrace.train.runs.metrics import read_metrics

SMALL: dict[str, Any] = {"kind": "supervised", "num_classes": 3, "patch": 4, "width": 16, "depth": 2, "heads": 2}
VITS: dict[str, dict[str, Any]] = {
    pool: {"vit": {"pool": pool}, "pixels": "centred"} for pool in ("map", "mean", "class_token")
}
# Without a place of this machine, so that what names a run is the same everywhere.
MIXTURE = {"seed": 5, "lanes": 4, "image_size": 16, "sources": [{"name": "pictures", "url": "data/x"}]}
KINDS = {
    "softmax": {},
    "smoothed": {"label_smoothing": 0.1},
    "sigmoid": {"loss": "sigmoid"},
}


def small(seed: int = 7, **changes: Any) -> Supervised:
    config = build_config(SupervisedConfig, {**SMALL, **changes})
    objective = build_objective(config, image_size=16, seed=seed)
    assert isinstance(objective, Supervised)
    torch.manual_seed(seed)
    torch.nn.init.normal_(objective.head.weight, std=0.5)  # from zeros every class looks the same
    return objective


def slow_loss(logits: list[float], classes: set[int], config: SupervisedConfig) -> float:
    if config.loss == "sigmoid":
        chances = [1 / (1 + math.exp(-logit)) for logit in logits]
        return -sum(math.log(p if c in classes else 1 - p) for c, p in enumerate(chances))
    total = sum(math.exp(logit) for logit in logits)
    part = config.label_smoothing / len(logits)
    (own,) = classes
    targets = [part + (1 - config.label_smoothing) * (c == own) for c in range(len(logits))]
    return -sum(target * math.log(math.exp(logit) / total) for target, logit in zip(targets, logits, strict=True))


@torch.no_grad()
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("form", ["numbers", "lists"])
def test_loss_and_top1_are_the_slow_loop(make_batch: Callable[..., Batch], kind: str, form: str) -> None:
    objective = small(**KINDS[kind])
    labels: list[Any] = [2, 0, -1, 1, 1]
    if form == "lists":
        labels = [[2], [0], None, [1], [1, 0] if kind == "sigmoid" else [1]]
    batch = make_batch(5, label=labels if form == "lists" else np.array(labels), valid=[True, True, True, True, False])
    loss, report = objective(batch)
    tokens = objective.encoder(objective.normalise(batch.images))
    logits = (tokens.mean(dim=1) @ objective.head.weight.T + objective.head.bias).tolist()
    total, right, terms = 0.0, 0, 0
    for row in (0, 1, 3):  # 2 has no label, 4 is not valid
        classes = set(labels[row]) if form == "lists" else {labels[row]}
        total += slow_loss(logits[row], classes, objective.config)
        right += max(range(3), key=logits[row].__getitem__) in classes
        terms += 1
    assert (objective.num_terms(batch), objective.num_missing(batch)) == (terms, 1)
    assert float(loss) == pytest.approx(total, rel=1e-5)
    assert float(report["top1"]) == pytest.approx(right / terms)


@torch.no_grad()
def test_a_picture_may_have_several_classes_or_none_with_sigmoid(make_batch: Callable[..., Batch]) -> None:
    objective = small(loss="sigmoid")
    batch = make_batch(3, label=[[0, 2, 2], [], None])
    logits = objective.head(objective.encoder(objective.normalise(batch.images)).mean(dim=1)).tolist()
    expected = sum(slow_loss(logits[row], classes, objective.config) for row, classes in ((0, {0, 2}), (1, set())))
    assert (objective.num_terms(batch), objective.num_missing(batch)) == (2, 1)
    assert float(objective(batch)[0]) == pytest.approx(expected, rel=1e-5)


@torch.no_grad()
def test_a_fresh_head_expects_one_class_a_picture(make_batch: Callable[..., Batch]) -> None:
    for loss, first in (("softmax", math.log(1000)), ("sigmoid", 999 * -math.log(1 - 1 / 1000) + math.log(1000))):
        config = SupervisedConfig(**{**SMALL, "num_classes": 1000, "loss": loss})
        objective = build_objective(config, image_size=16, seed=0)
        assert float(objective(make_batch(2))[0]) / 2 == pytest.approx(first, rel=1e-4)


def test_softmax_refuses_several_labels_and_leaves_out_none(make_batch: Callable[..., Batch]) -> None:
    objective = small()
    assert objective.num_missing(make_batch(3, label=[[], [1], None])) == 2
    with pytest.raises(RowError, match="2 labels; loss softmax wants one") as refused:
        objective.num_terms(make_batch(3, label=[[0], [1, 2], None]))
    assert refused.value.row == 1


@pytest.mark.parametrize(
    ("column", "row", "message"),
    [
        (np.array([0, 1, 3]), 2, "label 3 is out of range: num_classes is 3, so 0..2"),
        (np.array([0, -2]), 1, "label -2 is out of range"),
        ([[0], [0, 9]], 1, "label 9 is out of range"),
        ([None, [-1]], 1, "label -1 is out of range"),
        ([None, "dog"], 1, "label 'dog' is no whole number"),
        ([[0.5]], 0, "label 0.5 is no whole number"),
        ([[True]], 0, "label True is no whole number"),
        (np.array([0.0, np.nan]), 0, "the column of labels holds float64"),
        (np.array([True, False]), 0, "the column of labels holds bool"),
    ],
)
def test_what_is_no_class_is_refused_with_its_row(column: Any, row: int, message: str) -> None:
    with pytest.raises(RowError, match=message) as refused:
        read_labels(column, 3)
    assert refused.value.row == row


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"num_classes": 1}, "num_classes must be at least 2 with loss softmax"),
        ({"model": "XXL"}, "unknown model 'XXL'; known models: tiny, s, Ti"),
        ({"label_smoothing": 1.0}, "label_smoothing must be in"),
        ({"label_smoothing": 0.1, "loss": "sigmoid"}, "0 with sigmoid"),
        ({"model": "g", "width": None}, "model g has MLPs of 6144 channels, which only `vit` has: add vit: {}"),
        ({"class_bias": math.inf}, "class_bias must be finite"),
    ],
)
def test_a_config_that_cannot_be_is_refused(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        SupervisedConfig(**{**SMALL, **change})


def test_published_shapes_have_the_published_number_of_parameters() -> None:
    """Table 2 of arXiv:2106.04560, in millions, with this trunk's own norms and without its biases: within 3 %."""
    for model, millions in (("s", 5.0), ("Ti", 5.5), ("S", 22), ("B", 86), ("L", 303)):
        with torch.device("meta"):
            objective = build_objective(
                SupervisedConfig(kind="supervised", num_classes=2, model=model), image_size=224, seed=0
            )
        assert objective.trunk is not None
        assert sum(p.numel() for p in objective.trunk.parameters()) / 1e6 == pytest.approx(millions, rel=0.03)


@torch.no_grad()
def test_parts_sum_to_the_whole(make_batch: Callable[..., Batch]) -> None:
    objective = small()
    batch = make_batch(7, label=np.array([0, 1, -1, 2, 0, -1, 1]))
    parts = micro_batches(batch, 3)
    assert sum(objective.num_terms(part) for part in parts) == objective.num_terms(batch) == 5
    assert sum(float(objective(part)[0]) for part in parts) == pytest.approx(float(objective(batch)[0]), rel=1e-6)


@pytest.mark.parametrize("vit", [{}, *VITS.values()])
def test_every_parameter_gets_a_gradient_also_where_no_picture_counts(
    make_batch: Callable[..., Batch], vit: dict[str, Any]
) -> None:
    """Ranks reduce gradients together, so each must have all of them."""
    objective = small(**vit)
    objective(make_batch(2, label=np.array([-1, -1])))[0].backward()
    assert [name for name, p in objective.named_parameters() if p.grad is None] == []
    assert all(not p.grad.any() for p in objective.parameters() if p.grad is not None)
    objective(make_batch(2))[0].backward()
    assert [name for name, p in objective.named_parameters() if p.grad is None or not p.grad.any()] == []


def test_a_run_learns_colours_validates_exports_and_is_probed(
    run_file: Callable[..., Path], pictures: str, other_pictures: str
) -> None:
    config = load_run(
        run_file(objective=SMALL, steps=40, optimizer={"lr": 0.01}, validation={"dataset": other_pictures, "every": 40})
    )
    out = train(config).out
    first, last = (line for line in read_metrics(out / "metrics.jsonl") if line["event"] == "validation")
    assert first["loss"] == pytest.approx(math.log(3), rel=1e-5)
    assert last["top1"] > 0.9 > first["top1"]
    assert last["missing_labels"] == 0
    with safe_open(out / "model.safetensors", "pt") as file:
        names = set(file.keys())
    assert {"head.weight", "head.bias", "trunk.blocks.0.attn.qkv.weight", "preprocessor.patchifier.proj.bias"} <= names
    assert not any(name.startswith("encoder.") for name in names)
    found = probe(
        out, ProbeConfig(train=pictures, test=other_pictures, epochs=6, lrs=(0.02,), images_per_batch=16), device="cpu"
    )
    assert found["accuracy"] > 0.9


def test_ten_shots_are_read_from_what_the_head_reads_while_it_trains_and_after(
    run_file: Callable[..., Path], pictures: str, other_pictures: str
) -> None:
    looks = {"train": pictures, "test": other_pictures, "every": 40, "layers": "end"}
    squashed = {"crop": "squash", "center_fraction": 0.875}
    monitors = [{"kind": "few_shot", **looks}, {"kind": "few_shot", "name": "study", **looks, **squashed}]
    path = run_file(objective=SMALL | VITS["map"], steps=40, optimizer={"lr": 0.01}, validation=None, monitors=monitors)
    out = train(load_run(path)).out
    lines = read_metrics(out / "metrics.jsonl")
    last = {line["event"]: line["accuracy"] for line in lines if line["event"].startswith("monitor") and line["step"]}
    found = probe(out, ProbeConfig(train=pictures, test=other_pictures, **protocol("big_vision")), device="cpu")
    assert last["monitor/study"] == pytest.approx(found["accuracy"], abs=0.03)  # of a probe fp16 features
    assert min(*last.values(), found["accuracy"]) > 0.8
    assert found["by_shots"][0]["shots"] == 1
    assert found["protocol"]["crop"] == "squash"


@pytest.mark.parametrize("vit", [{}, VITS["map"]])
def test_a_resumed_run_goes_on_to_the_last_bit(run_file: Callable[..., Path], vit: dict[str, Any]) -> None:
    import shutil

    config = load_run(run_file(objective={**SMALL, **vit, "loss": "sigmoid"}))
    out = train(config).out
    whole = [line["loss"] for line in read_metrics(out / "metrics.jsonl")]
    last = (out / "checkpoints" / "00000012" / "model.safetensors").read_bytes()
    for step in ("00000006", "00000009", "00000012"):
        shutil.rmtree(out / "checkpoints" / step)
    train(config)
    assert [line["loss"] for line in read_metrics(out / "metrics.jsonl")] == whole
    assert (out / "checkpoints" / "00000012" / "model.safetensors").read_bytes() == last


def test_what_a_run_records_reads_back_as_itself(run_file: Callable[..., Path]) -> None:
    config = load_run(run_file(objective={**SMALL, **VITS["map"], "loss": "sigmoid"}))
    assert build_config(SupervisedConfig, config_to_dict(config.objective)) == config.objective


def test_a_run_from_before_the_options_came_goes_on(run_file: Callable[..., Path]) -> None:
    """What is not used is not part of what a run is, alone or fine-tuned; what is used, is."""
    tuned = {"kind": "finetune", "of": SMALL, "num_classes": 3}
    digests = {}
    for name, objective in (("plain", SMALL), ("tuned", tuned), ("map", SMALL | VITS["map"])):
        digests[name] = run_digest(load_run(run_file(name, out="runs/x", objective=objective, mixture=MIXTURE)))
    assert digests["plain"] == "c0fe980ff18ef47f5703f25f8b50ad363a889ad225eec64037fa111326363187"
    assert digests["tuned"] == "d9e2271afa121bffa56c6f1d4a748eb93cf85912d29bc09612823c404fc25ca9"
    assert digests["map"] != digests["plain"]


@torch.no_grad()
def test_a_map_is_what_reads_the_tokens_of_levels_from_minus_one_to_one(make_batch: Callable[..., Batch]) -> None:
    objective, batch = small(**VITS["map"], class_bias=-10.0), make_batch(4)
    assert objective.head.bias.tolist() == [-10.0] * 3
    levels = torch.from_numpy(batch.images).permute(0, 3, 1, 2) / 127.5 - 1
    torch.testing.assert_close(objective.normalise(batch.images), levels, atol=1e-6, rtol=0)
    logits_BC = objective.head(objective.encoder.attn_pool(objective.encoder(levels)))
    expected = torch.nn.functional.cross_entropy(logits_BC, torch.from_numpy(batch.columns["label"]), reduction="sum")
    torch.testing.assert_close(objective(batch)[0], expected, atol=1e-5, rtol=1e-5)
