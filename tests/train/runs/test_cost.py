"""A plan says what a run takes, and refuses what cannot be had."""

from collections import namedtuple
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from headrace.train.config import RunConfig, load_run
from headrace.train.objectives.build import build_objective
from headrace.train.objectives.objective import Objective
from headrace.train.runs import cost
from headrace.train.runs.cost import PEAK_FLOPS, STATED_MFU, cost_lines
from headrace.train.runs.plan import plan_run

Usage = namedtuple("Usage", "total used free")


def sketch(config: RunConfig) -> Objective:
    with torch.device("meta"):
        return build_objective(config.objective, image_size=config.mixture.image_size, seed=config.seed)


@pytest.fixture
def big(run_file: Callable[..., Path]) -> RunConfig:
    """AIM-0.6B as the paper trains it; its data is never opened here."""
    path = run_file(objective={"kind": "aim", "model": "0.6B"}, steps=500_000, device="auto", validation=None)
    return load_run(path, ["mixture.image_size=224", "global_batch=4096"])


def test_the_published_model_costs_what_its_paper_gives(big: RunConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    """1,087,594,572 parameters of 4 bytes; 1.70 TFLOP an image."""
    monkeypatch.setattr(cost.torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(cost.shutil, "disk_usage", lambda _: Usage(0, 0, 10**12))
    memory, disk, time = cost_lines(big, sketch(big))
    assert memory.startswith(
        "memory: weights 4.35 GB, gradients 4.35 GB, moments 8.70 GB, "
        "together 17.40 GB a process (fsdp over 8: 2.18 GB)"
    )
    assert "13.05 GB each, 147.91 GB at most with the exported weights; 1000.00 GB are free" in disk
    flops = sketch(big).train_flops_per_image * 500_000 * 4096
    assert f"{flops / PEAK_FLOPS / STATED_MFU / 86400:,.3g} GPU-days" in time
    assert "102 GPU-days" in time


def test_what_is_kept_for_good_counts(run_file: Callable[..., Path], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cost.shutil, "disk_usage", lambda _: Usage(0, 0, 10**6))
    checkpoint = {"every": 1, "keep": 1, "keep_every": 2}
    with_more = load_run(run_file(validation=None, checkpoint=checkpoint))
    few = load_run(run_file(validation=None, checkpoint={**checkpoint, "keep_every": 0}))
    lines = [cost_lines(config, sketch(config))[1] for config in (with_more, few)]
    sizes = [float(line.split(" at most")[0].split()[-2]) for line in lines]
    assert sizes[0] > 3 * sizes[1]
    assert "too few, lower checkpoint.keep" in lines[0] or sizes[0] < 1


def test_what_cannot_fit_is_refused_with_the_number_to_change(
    run_file: Callable[..., Path], big: RunConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cost.os, "sysconf", lambda _: 65_536)  # 4.3 GB
    on_cpu = load_run(run_file(objective={"kind": "aim", "model": "0.6B"}, validation=None), ["mixture.image_size=224"])
    with pytest.raises(ValueError, match=r"take 17\.40 GB a process, this machine has 4\.29 GB; .*strategy=fsdp"):
        plan_run(on_cpu)
    monkeypatch.setattr(cost.torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(cost.shutil, "disk_usage", lambda _: Usage(0, 0, 10**9))
    with pytest.raises(ValueError, match=r"a checkpoint takes 13\.05 GB, 1\.00 GB are free at .*another `out`"):
        cost_lines(big, sketch(big))
