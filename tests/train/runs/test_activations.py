"""What a plan counts without memory is what a real step takes."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from headrace.train.config import RunConfig, load_run
from headrace.train.execution import Execution
from headrace.train.models.stage import Recompute
from headrace.train.objectives.build import build_objective
from headrace.train.objectives.objective import Objective
from headrace.train.runs import activations, micro_batch
from headrace.train.runs.activations import Activations, count_activations, peak_of_step
from headrace.train.runs.cost import PlanError, static_memory
from headrace.train.runs.micro_batch import activation_lines
from headrace.train.runs.plan import plan_run
from tests.train.objectives.contrastive.test_runs import file_of

MODES: tuple[Recompute, ...] = ("none", "selective", "full")
SIZES_7B = (1.16e9, 0.79e9, 0.11e9)
DEEP = {
    "kind": "aim",
    "model": "tiny",
    "patch": 4,
    "width": 32,
    "depth": 6,
    "heads": 2,
    "head_width": 16,
    "head_depth": 1,
}
STATIC_06B, STATIC_1B = 17.40, 25.88


def built(config: RunConfig) -> Objective:
    return build_objective(config.objective, image_size=config.mixture.image_size, seed=config.seed)


def saved_bytes(objective: Objective, batch: Any, *, bf16: bool) -> int:
    """What autograd itself says that it saves, each memory once, without weights and buffers."""
    known = {tensor.untyped_storage().data_ptr() for tensor in (*objective.parameters(), *objective.buffers())}
    sizes: dict[int, int] = {}
    kept = []

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        kept.append(storage)  # an address must not come again
        if storage.data_ptr() not in known:
            sizes[storage.data_ptr()] = storage.nbytes()
        return tensor

    with (
        torch.autocast("cpu", torch.bfloat16, enabled=bf16),
        torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor),
    ):
        objective(batch)
    return sum(sizes.values())


@pytest.mark.parametrize("bf16", [False, True])
def test_a_step_without_memory_takes_what_a_real_one_takes(run_file: Callable[..., Path], bf16: bool) -> None:
    config = load_run(run_file(objective=DEEP))
    real = built(config)
    batch = activations._batch(config, real, 128)
    counted = count_activations(config, MODES, bf16=bf16)
    for mode in MODES:
        real.run_as(Execution(recompute=mode, residual=torch.bfloat16 if bf16 else None))
        assert counted[mode].at(128) == pytest.approx(peak_of_step(real, batch, bf16=bf16), rel=0.02)
    real.run_as(Execution(residual=torch.bfloat16 if bf16 else None))
    saved = saved_bytes(real, batch, bf16=bf16)
    assert saved < counted["none"].at(128) < 1.15 * saved
    assert counted["full"].per_image < 0.6 * counted["selective"].per_image < 0.6 * counted["none"].per_image


def test_the_count_goes_with_the_number_of_images(run_file: Callable[..., Path]) -> None:
    config = load_run(run_file(objective=DEEP))
    real = built(config)
    counted = count_activations(config, ["none"], bf16=False)["none"]
    for size in (32, 256):
        found = peak_of_step(real, activations._batch(config, real, size), bf16=False)
        assert counted.at(size) == pytest.approx(found, rel=0.06)


def test_aim_on_an_h200_took_what_is_counted(run_file: Callable[..., Path]) -> None:
    """Measured: 64.5 and 113.5 GB, compiled, with weights and moments; gradients come while activations go."""
    config = load_run(run_file(objective={"kind": "aim", "model": "0.6B"}), ["mixture.image_size=224"])
    counted = count_activations(config, ["none"], bf16=True)["none"]
    weights_and_moments = 12 * 1_087_594_572
    for images, measured in ((128, 64.5e9), (256, 113.5e9)):
        assert weights_and_moments + counted.at(images) == pytest.approx(measured, rel=0.02)


@pytest.mark.full
def test_figures_of_the_four_models_with_an_fp32_residual_stream(run_file: Callable[..., Path]) -> None:
    for model, figure in (("0.6B", 0.42), ("1B", 0.53), ("3B", 0.76), ("7B", 1.30)):
        path = run_file(objective={"kind": "aim", "model": model}, residual="fp32")
        counted = count_activations(load_run(path, ["mixture.image_size=224"]), ["none"], bf16=True)["none"]
        assert counted.per_image / 1e9 == pytest.approx(figure, rel=0.04), model


def test_what_fits_is_what_the_room_is_for() -> None:
    counted = Activations(fixed=10.0, per_image=4.0)
    assert [counted.most_images(room) for room in (9, 13.9, 14, 22)] == [0, 0, 1, 3]
    assert counted.at(counted.most_images(100.0)) <= 100 < counted.at(counted.most_images(100.0) + 1)


def test_a_micro_batch_that_cannot_fit_is_refused_with_the_number_that_does(
    run_file: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    path = run_file(objective=DEEP, validation=None, images_per_micro_batch=16)
    objective = built(load_run(path))
    static = 16 * sum(parameter.numel() for parameter in objective.parameters())
    one = count_activations(load_run(path), MODES, bf16=False)
    size = (static + one["none"].at(10)) / micro_batch.USABLE + 1
    monkeypatch.setattr(micro_batch, "memory_here", lambda _: (size, "this machine"))
    with pytest.raises(
        PlanError, match=r"is 16, and at most (10|9) images .*; set images_per_micro_batch=(10|9)$"
    ) as caught:
        plan_run(load_run(path))
    assert any(line.startswith("micro-batch: at most ") for line in caught.value.lines)
    fitting = str(caught.value).rpartition("=")[2]
    plan_run(load_run(path, [f"images_per_micro_batch={fitting}"]))
    plan_run(load_run(path, ["activation_checkpointing=full"]))

    size = (static + one["full"].at(2)) / micro_batch.USABLE
    assert one["none"].at(1) > one["full"].at(2), "one image fits only if its blocks are computed again"
    with pytest.raises(PlanError, match=r"at most 0 images .*; set activation_checkpointing=(selective|full)$"):
        plan_run(load_run(path))
    size = static / micro_batch.USABLE
    with pytest.raises(PlanError, match=r"at most 0 images .*; set parallel.strategy=fsdp, on several GPUs$"):
        plan_run(load_run(path))
    # A share of a batch whose number of processes nobody knows yet is refused where no number of them helps.
    shared = load_run(run_file("shared", objective=DEEP, validation=None))
    with pytest.raises(PlanError, match=r"global_batch / 4 lanes is 4, and at most 0 images"):
        plan_run(shared)


def test_a_batch_that_cannot_be_cut_is_told_other_cures(
    run_file: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    path = file_of(run_file, "moco", validation=None)
    one = count_activations(load_run(path), MODES, bf16=False)
    static = static_memory(load_run(path), built(load_run(path))).together
    size = (static + (one["none"].at(4) + one["full"].at(4)) / 2) / micro_batch.USABLE  # of 16 pictures over 4 lanes
    monkeypatch.setattr(micro_batch, "memory_here", lambda _: (size, "this machine"))
    with pytest.raises(
        PlanError, match=r"4 lanes is 4, and at most \d .*; set activation_checkpointing=\w+$"
    ) as caught:
        plan_run(load_run(path))
    plan_run(load_run(path, [str(caught.value).rpartition("; set ")[2]]))
    size = static / micro_batch.USABLE
    with pytest.raises(PlanError, match=r"at most 0 .*; lower global_batch, or raise mixture.lanes and take as many"):
        plan_run(load_run(path))


def test_another_machine_is_planned_for_and_never_refused(
    run_file: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(micro_batch, "memory_here", lambda _: (float("inf"), ""))
    counted = {mode: Activations(fixed=13.85e9, per_image=size) for mode, size in zip(MODES, SIZES_7B, strict=True)}
    monkeypatch.setattr(micro_batch, "count_activations", lambda *_given, **_bf16: counted)
    path = run_file(objective={"kind": "aim", "model": "7B"}, device="auto", validation=None)
    config = load_run(path, ["mixture.image_size=224", "images_per_micro_batch=4"])
    with torch.device("meta"):
        objective = built(config)
    first, second = activation_lines(config, objective)
    assert first == (
        "activations: 1.16 GB an image in bf16, activation_checkpointing none (selective 0.79 GB, full 0.11 GB), and "
        "13.85 GB however many; 4 at once: 18.49 GB, with weights, gradients and moments 128.21 GB"
    )
    assert second == "micro-batch: at most 0 images at once fit an H100 with 85.00 GB (fsdp over 8: 56)"


@pytest.mark.parametrize("asserts", [False, True])
def test_an_objective_that_reads_values_is_told_of_and_does_not_stop_the_plan(
    run_file: Callable[..., Path], monkeypatch: pytest.MonkeyPatch, asserts: bool
) -> None:
    def reading(self: Objective, batch: Any) -> Any:
        images = self.normalise(batch.images)
        if asserts or float(images.sum()) > 0:
            raise AssertionError
        return images.sum(), {}

    from headrace.train.objectives.aim import Aim

    monkeypatch.setattr(Aim, "forward", reading)
    config = load_run(run_file(validation=None))
    assert any(line.startswith("activations: not counted: objective aim: its step") for line in plan_run(config))


def test_weights_that_cannot_be_drawn_without_memory_do_not_stop_the_plan(
    run_file: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    from headrace.train.objectives import aim

    monkeypatch.setattr(aim.AimConfig, "build", lambda *_, **__: float(torch.ones(1).sum()))
    with pytest.raises(ValueError, match="its weights cannot be drawn without memory"):
        count_activations(load_run(run_file(validation=None)), ["none"], bf16=False)


def test_every_objective_here_is_counted(run_file: Callable[..., Path]) -> None:
    tiny = {"image_size": 16, "layers": 1, "width": 16, "patch_size": 4, "head_width": 8}
    text = {"width": 16, "layers": 1, "heads": 2, "context_length": 8}
    objectives: list[dict[str, Any]] = [
        {"kind": "supervised", "num_classes": 3, "patch": 4, "width": 16, "depth": 1, "heads": 2},
        {"kind": "clip", "model_cfg": {"embed_dim": 16, "vision_cfg": tiny, "text_cfg": text}},
        {
            "kind": "masked",
            "model": "tiny",
            "patch": 4,
            "width": 16,
            "depth": 1,
            "heads": 2,
            "head_width": 16,
            "head_depth": 1,
        },
        {"kind": "clip", "model_cfg": {"embed_dim": 16, "vision_cfg": tiny, "text_cfg": text}, "column": "alt"},
    ]
    tuned = {"kind": "finetune", "of": objectives[0], "num_classes": 3, "drop_path": 0.1, "mix": {"mixup": 0.8}}
    objectives += [tuned, tuned | {"head": "attentive", "lora": {"rank": 2}}]
    for objective in objectives:
        config = load_run(run_file(objective=objective, validation=None))
        assert "an image in fp32" in activation_lines(config, built(config))[0]


def test_views_weights_and_gradients_are_not_counted() -> None:
    class Plain(Objective):
        def __init__(self) -> None:
            super().__init__()
            self.layers = nn.Sequential(*(nn.Linear(256, 256, bias=False) for _ in range(4)))

        def forward(self, batch: Any) -> Any:
            return self.layers(torch.from_numpy(batch.images).float()).sum(), {}

    class Pictures:
        images = np.ones((2, 256), np.uint8)

    one_weight = 256 * 256 * 4  # a gradient counts until it is whole
    assert one_weight < peak_of_step(Plain(), Pictures(), bf16=False) < 1.2 * one_weight  # type: ignore[arg-type]
