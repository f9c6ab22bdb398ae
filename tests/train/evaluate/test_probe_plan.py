"""What a probe takes is said without weights, without data and without a GPU."""

import dataclasses
from collections.abc import Callable
from pathlib import Path

import pytest

from headrace.train.evaluate.probe_config import ProbeConfig, protocol
from headrace.train.evaluate.probe_plan import PlanFacts, plan_probe, planned_model

IMAGENET = PlanFacts(train_images=1_281_167, test_images=50_000)
AIM = ProbeConfig(train="", test="", **protocol("aim"))


def line_of(lines: list[str], begin: str) -> str:
    return next(line for line in lines if line.startswith(begin))


def test_imagenet_with_the_7b_trunk_on_a_laptop() -> None:
    lines = plan_probe("aim-7B", AIM, IMAGENET)
    assert "features: the trunk runs in every epoch, as each has its own crops (augment aim)" in lines
    # 0.9 x 1,281,167 x 100 + 0.1 x 1,281,167 + 50,000 images at 0.4 x 989.5 TFLOP/s / 3.33 TFLOP.
    time = line_of(lines, "time: ")
    assert "270 hours for 115,483,117 images" in time
    assert "at 40% of an H100's bf16 peak, assumed" in time
    assert "a batch of features 2.15 GB, features held none" in line_of(lines, "host memory: 3.68 GB")
    assert "14 heads with gradients and moments 8.43 GB" in line_of(lines, "device memory: ")
    assert line_of(lines, "disk: ") == "disk: state of the fit 6.33 GB, saved every epoch, gone at the end"


def test_a_cache_says_its_size_and_what_is_read_of_it(tmp_path: Path) -> None:
    config = dataclasses.replace(AIM, augment="none")
    facts = dataclasses.replace(IMAGENET, images_per_second=100.0, processes=8)
    lines = plan_probe("aim-7B", config, facts, cache=tmp_path)
    assert f"features: 2,686,801,936,384 bytes in the cache {tmp_path}" in lines
    assert "0.462 hours for 1,331,167 images through the trunk at 800 images/s of 8 processes (given)" in "".join(lines)
    assert "cache 2,791.66 GB in 5,200 pieces, 268,680.19 GB read in 100 epochs" in line_of(lines, "disk: ")


def test_the_operations_of_a_trunk_are_those_of_its_weights_and_attention() -> None:
    encoder = planned_model("aim-7B", AIM).encoder
    # 12 L D^2 a block and token, twice; the patches' product; attention 4 L^2 D a block.
    expected = 2 * 256 * (32 * 12 * 4096**2 + 588 * 4096) + 4 * 32 * 256**2 * 4096
    assert encoder.forward_flops == pytest.approx(expected, rel=1e-3)
    facts = dataclasses.replace(IMAGENET, tflops=500.0)
    assert f"at {500e12 / expected:.4g} images/s" in "".join(plan_probe("aim-7B", AIM, facts))


def test_a_run_file_is_enough(run_file: Callable[..., Path], pictures: str, other_pictures: str) -> None:
    config = ProbeConfig(train=pictures, test=other_pictures, head="linear")
    lines = plan_probe(run_file(), config)
    assert "without weights: mean of blocks 0, 1 of width 16" in lines[0]
    assert lines[1] == f"fit on {pictures}: 96 samples, 3,072 bytes of features"


def test_weights_at_hand_are_measured(trained: Path, pictures: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("headrace.train.evaluate.probe_plan.MEASURED_SECONDS", 0.01)
    config = ProbeConfig(train=pictures, test=pictures, images_per_forward=4)
    assert "(measured here, on cpu)" in line_of(plan_probe(trained, config, device="cpu"), "time: ")


def test_the_end_of_an_encoder_is_measured_and_named(
    trained: Path, pictures: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("headrace.train.evaluate.probe_plan.MEASURED_SECONDS", 0.01)
    config = ProbeConfig(train=pictures, test=pictures, images_per_forward=4, **protocol("moco_v3"))
    lines = plan_probe(trained, config, device="cpu")
    assert lines[0].endswith(": the end of the encoder of width 16")
    assert "(measured here, on cpu)" in line_of(lines, "time: ")


def test_what_is_not_named_is_asked_for() -> None:
    with pytest.raises(ValueError, match="or say --train-images and --test-images"):
        plan_probe("aim-7B", AIM)
    with pytest.raises(ValueError, match="neither a run folder with checkpoints"):
        plan_probe("aim-9B", AIM, IMAGENET)
