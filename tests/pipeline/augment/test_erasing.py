"""Random erasing: rectangles as timm's, noise of the right levels, the same on the host and in a batch."""

import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from headrace.pipeline import RandomErasing
from headrace.pipeline.augment import erasing_pixels
from headrace.pipeline.augment.config import ErasingMode
from headrace.pipeline.augment.erasing import ErasingDraw, Erasure, erase_picture
from headrace.pipeline.augment.erasing_pixels import erase_batch

MODES: tuple[ErasingMode, ...] = ("pixel", "rand", "const")


def by_host(images: torch.Tensor, erasures: list[Erasure], config: RandomErasing) -> torch.Tensor:
    copies = images.numpy().copy()
    for picture, erasure in zip(copies, erasures, strict=True):
        erase_picture(picture, erasure, config)
    return torch.from_numpy(copies)


@given(position=st.integers(0, 2**60), count=st.integers(1, 4), side=st.integers(1, 300), least=st.floats(0.01, 0.5))
@settings(max_examples=25, deadline=None)
def test_rectangles_are_functions_of_the_position_and_lie_in_their_range(
    position: int, count: int, side: int, least: float
) -> None:
    config = RandomErasing(probability=0.8, count=count, min_area=least, max_area=least + 0.3)
    draw = ErasingDraw(tuple(range(5, 5 + count)), config, side)
    at = np.array([position, position + 1])
    assert draw.of_rows(at) == [draw(one) for one in at.tolist()]
    assert draw.of_rows(at, np.array([True, False])) == [draw(position), Erasure()]
    erasure = draw(position)
    erase_picture(np.zeros((side, side, 3), np.uint8), erasure, config)
    rectangles = erasure.rectangles
    assert len(rectangles) <= count
    for top, left, height, width in rectangles:
        assert 0 <= top < top + height <= side
        assert 0 <= left < left + width <= side
        slack = height + width + 1  # both sides are rounded
        assert height * width <= (least + 0.3) * side * side + slack
        assert height * width >= least * side * side / count - slack


def test_areas_and_shares_are_timms() -> None:
    from timm.data.random_erasing import RandomErasing as Theirs

    draw = ErasingDraw((1,), RandomErasing(), 224)
    found = [one for one in draw.of_rows(np.arange(4000)) if one.rectangles]
    assert abs(len(found) / 4000 - 0.25) < 0.02
    ours = [(one.height * one.width / 224**2, math.log(one.height / one.width)) for (one,), _ in found]
    theirs = []
    erasing = Theirs(probability=1.0, mode="const", device="cpu")
    for _ in range(len(found)):
        (rows, columns) = erasing(torch.ones(1, 224, 224))[0].eq(0).nonzero(as_tuple=True)
        height, width = (int(at.max() - at.min()) + 1 for at in (rows, columns))
        theirs.append((height * width / 224**2, math.log(height / width)))
    assert np.allclose(np.mean(ours, axis=0), np.mean(theirs, axis=0), atol=0.06)
    assert np.allclose(np.std(ours, axis=0), np.std(theirs, axis=0), rtol=0.1)


def test_noise_is_normal_in_every_channel_and_differs_everywhere() -> None:
    config, side = RandomErasing(probability=1.0, min_area=0.7, max_area=0.7, min_aspect=0.9), 256
    draws = ErasingDraw((1,), config, side)
    first, second = draws(1), draws(2)
    assert first.seed != second.seed
    (top, left, height, width), noise = first.rectangles[0], np.zeros((side, side, 3), np.uint8)
    erase_picture(noise, first, config)
    part = noise[top : top + height, left : left + width].astype(float)
    mean, std = 255 * np.array(config.mean), 255 * np.array(config.std)
    assert np.allclose(part.mean(axis=(0, 1)), mean, atol=1.5)
    assert np.allclose(part.std(axis=(0, 1)), std, rtol=0.05)  # cut off at both ends
    red, green = (part[..., channel].ravel() - part[..., channel].mean() for channel in (0, 1))
    for one, other in ((red, green), (red[:-1], red[1:]), (red[:-width], red[width:])):
        assert abs(np.mean(one * other)) / std[0] ** 2 < 0.02  # neither channels nor neighbours go together
    assert not noise[:top].any()
    assert not noise[:, left + width :].any()


@pytest.mark.parametrize("count", [1, 3])
@pytest.mark.parametrize("mode", MODES)
def test_a_batch_has_the_levels_of_the_host(
    pictures: Any, mode: ErasingMode, count: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = RandomErasing(probability=0.7, mode=mode, count=count)
    images, erasures = pictures(16, 40), ErasingDraw(tuple(range(count)), config, 40).of_rows(np.arange(16))
    ours = erase_batch(images, erasures, config)
    assert torch.equal(ours, by_host(images, erasures, config))
    assert not torch.equal(ours, images)
    assert torch.equal(erase_batch(images[5:8], erasures[5:8], config), ours[5:8])
    monkeypatch.setattr(erasing_pixels, "CHUNK_PIXELS", 2 * 40 * 40)
    assert torch.equal(erase_batch(images, erasures, config), ours)
    assert erase_batch(images, [Erasure()] * 16, config) is images
    changed = (ours != images).any(dim=3)
    if mode == "const":
        assert set(ours[changed].unique(dim=0).flatten().tolist()) == {124, 116, 104}


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("mode", MODES)
def test_a_device_has_the_levels_of_the_host(pictures: Any, mode: ErasingMode) -> None:
    config = RandomErasing(probability=0.7, mode=mode)
    images, erasures = pictures(16, 40), ErasingDraw((1,), config, 40).of_rows(np.arange(16))
    assert torch.equal(erase_batch(images.cuda(), erasures, config).cpu(), by_host(images, erasures, config))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"probability": 0.0}, "probability must be over 0 to 1, got 0.0"),
        ({"min_area": 0.5, "max_area": 0.4}, "min_area and max_area must be a range within 0..1, got 0.5 and 0.4"),
        ({"min_aspect": 2.0}, "min_aspect must be 0.01..1, got 2.0"),
        ({"count": 0}, "count must be 1..8, got 0"),
        ({"mean": (124.0, 0.5, 0.5)}, "mean must be 0..1"),
    ],
)
def test_what_cannot_be_erased_is_refused(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        RandomErasing(**change)
