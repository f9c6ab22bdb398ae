"""Windows over a picture: each pixel is seen, and where they overlap the logits are averaged."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from headrace.train.evaluate.begun import as_begun
from headrace.train.tasks.judge_segments import judge_segments
from headrace.train.tasks.sliding import count_windows, resized_size, sliding_logits, stride_of, window_corners
from tests.train.tasks.drawn import SEGMENT, finetune

SIDE = 12


@given(height=st.integers(1, 90), width=st.integers(1, 90), side=st.integers(1, 32))
def test_every_pixel_is_in_a_window_and_no_window_leaves_the_picture(height: int, width: int, side: int) -> None:
    height, width = max(height, side), max(width, side)
    seen = np.zeros((height, width), int)
    corners = window_corners(height, width, side)
    for top, left in corners:
        assert top + side <= height
        assert left + side <= width
        seen[top : top + side, left : left + side] += 1
    assert seen.min() >= 1
    assert len(set(corners)) == len(corners)
    assert all(
        b - a <= stride_of(side)
        for a, b in zip(sorted({c[0] for c in corners})[:-1], sorted({c[0] for c in corners})[1:], strict=True)
    )


def test_logits_are_the_means_of_a_slow_loop() -> None:
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (19, 31, 3), dtype=np.uint8)
    place = torch.from_numpy(rng.standard_normal((2, SIDE, SIDE))).float()

    def logits_of(windows: np.ndarray) -> Tensor:
        """Of what is seen, and of where in the window."""
        return torch.from_numpy(windows[..., :2]).permute(0, 3, 1, 2).float() * (1 + place)

    got = sliding_logits(logits_of, pixels, SIDE).numpy()
    expected = np.zeros((2, 19, 31))
    for row in range(19):
        for column in range(31):
            found = []
            for top in (0, 7):
                for left in (0, 8, 16, 19):
                    if top <= row < top + SIDE and left <= column < left + SIDE:
                        weight = 1 + place[:, row - top, column - left].double().numpy()
                        found.append(pixels[row, column, :2] * weight)
            expected[:, row, column] = np.mean(found, axis=0)
    assert got == pytest.approx(expected, rel=1e-5)


@given(height=st.integers(1, 3000), width=st.integers(1, 3000))
def test_a_picture_keeps_its_ratio_within_what_windows_go_over(height: int, width: int) -> None:
    high, wide = resized_size(height, width, 64)
    assert max(high, wide) <= 4 * 64
    assert min(high, wide) <= 64
    assert min(high, wide) == 64 or max(height, width) > 4 * min(height, width)
    assert abs(high - wide * height / width) <= max(1, height / width)


def test_a_segmentation_begun_before_its_recipe_jittered_goes_on_without(tmp_path: Path) -> None:
    jittered = {"interpolation": "bicubic", "crop": "scale_jitter", "jitter": [0.5, 2.0], "pad_value": 116}
    run = {"out": str(tmp_path), "mixture": {"image_size": 512, "augment": jittered}}
    assert as_begun(run) == run
    (tmp_path / "run.yaml").write_text("mixture: {augment: {crop: random, scale: [0.25, 1.0]}}")
    before = {"interpolation": "bicubic", "scale": [0.25, 1.0], "ratio": [1.0, 1.0]}
    assert as_begun(run)["mixture"] == {"image_size": 512, "augment": before}
    (tmp_path / "run.yaml").write_text("mixture: {augment: {crop: random, jitter: [0.5, 2.0], rand_augment: null}}")
    assert as_begun(run) == run, "which is refused there, as any other command"


def test_the_judgement_slides_where_the_config_says_so_and_the_dry_run_counts_it(
    young: Path, masked: Path, tmp_path: Path
) -> None:
    words = [young, *SEGMENT, "--train", masked / "few", "--test", masked / "test", "--epochs", 1]
    words += ["--packed", tmp_path / "data", "--out", tmp_path / "a"]
    finetune(*words, "objective.judged=slide")
    told = json.loads((tmp_path / "a" / "finetune.json").read_text())
    assert (told["judged"], told["test_samples"]) == ("slide", 24)
    windows, pictures = count_windows(str(tmp_path / "data" / "test"), 64)
    assert pictures == 24 <= windows
    said = finetune(*words[:-1], tmp_path / "b", "objective.judged=slide", "--dry-run")
    assert f"sliding windows of 64 pixels at a stride of 42: {windows} for 24 pictures" in said
    with pytest.raises(ValueError, match=r"objective\.judged: "):
        finetune(*words[:-1], tmp_path / "b", "objective.judged=tiles", "--dry-run")
    assert judge_segments(tmp_path / "a" / "model.safetensors", str(tmp_path / "data" / "test"))["miou"] > 0
