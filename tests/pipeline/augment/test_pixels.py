"""Colours on a batch: those of torchvision with the same parameters, however the batch is cut."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from headrace.pipeline.augment import pixels
from headrace.pipeline.augment.colour import JITTERS, PLAIN, Colour, choose_colour
from headrace.pipeline.augment.config import Augment
from headrace.pipeline.augment.crop import position_draws
from headrace.pipeline.augment.pixels import recolour

ALL = Augment(
    colour_jitter=(0.4, 0.4, 0.2, 0.1),
    colour_jitter_probability=0.8,
    grayscale_probability=0.2,
    blur_probability=0.5,
    solarize_probability=0.2,
)


def drawn(number: int) -> list[Colour]:
    return [choose_colour(ALL, position_draws(3, position, 10), 7) for position in range(number)]


@pytest.mark.parametrize("name", [*JITTERS, "grayscale", "blur", "solarize"])
def test_each_operation_is_that_of_torchvision(
    name: str, pictures: Any, by_torchvision: Any, one_each: Any, apart: Any
) -> None:
    images, colours = pictures(12), one_each(name, 12)
    theirs = torch.stack([by_torchvision(image, colour) for image, colour in zip(images, colours, strict=True)])
    mean, largest = apart(recolour(images, colours), theirs)
    assert largest <= 1
    assert mean < 5e-4


def test_all_operations_in_their_drawn_orders_are_those_of_torchvision(
    pictures: Any, by_torchvision: Any, apart: Any
) -> None:
    images, colours = pictures(48), drawn(48)
    assert len({tuple(name for name, _ in colour.jitter) for colour in colours}) > 15
    theirs = torch.stack([by_torchvision(image, colour) for image, colour in zip(images, colours, strict=True)])
    mean, _ = apart(recolour(images, colours), theirs)
    assert mean < 5e-3  # a level that is solarised, or whose hue is turned behind a contrast, may become many


@given(cuts=st.lists(st.integers(1, 23), max_size=4, unique=True))
@settings(max_examples=10, deadline=None)
def test_a_row_does_not_depend_on_how_the_batch_is_cut(pictures: Callable[..., torch.Tensor], cuts: list[int]) -> None:
    images, colours = pictures(24, 32), drawn(24)
    whole = recolour(images, colours)
    ends = sorted([*cuts, 24])
    parts = [recolour(images[begin:end], colours[begin:end]) for begin, end in zip([0, *ends[:-1]], ends, strict=True)]
    assert torch.equal(torch.cat(parts), whole)


def test_a_row_does_not_depend_on_what_is_worked_on_at_once(monkeypatch: pytest.MonkeyPatch, pictures: Any) -> None:
    images, colours = pictures(7, 32), drawn(7)
    whole = recolour(images, colours)
    monkeypatch.setattr(pixels, "CHUNK_PIXELS", 2 * 32 * 32)
    assert torch.equal(recolour(images, colours), whole)


def test_what_has_no_colour_is_handed_on(pictures: Any) -> None:
    images = pictures(3)
    assert recolour(images, [PLAIN] * 3) is images
    mixed = recolour(images, [PLAIN, Colour(grayscale=True), PLAIN])
    assert torch.equal(mixed[0], images[0])
    assert torch.equal(mixed[2], images[2])
    assert not torch.equal(mixed[1], images[1])
    assert torch.equal(images, pictures(3))  # nothing is written in place


@pytest.mark.parametrize(
    ("images", "colours", "message"),
    [
        (torch.zeros(2, 4, 4, 3), [PLAIN] * 2, r"uint8 \[B, S, S, 3\], got torch.float32 \[2, 4, 4, 3\]"),
        (torch.zeros(2, 3, 4, 4, dtype=torch.uint8), [PLAIN] * 2, r"got torch.uint8 \[2, 3, 4, 4\]"),
        (torch.zeros(2, 4, 4, 3, dtype=torch.uint8), [PLAIN], "2 images and 1 colours"),
    ],
)
def test_what_cannot_be_recoloured_is_refused(images: torch.Tensor, colours: list[Colour], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        recolour(images, colours)


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("side", [32, 224])
def test_colours_on_a_device_are_those_of_the_cpu(side: int, pictures: Any, apart: Any) -> None:
    images, colours = pictures(48, side), drawn(48)
    ours = recolour(images.cuda(), colours)
    assert ours.is_cuda
    assert torch.equal(recolour(images.cuda(), colours), ours)
    assert torch.equal(recolour(images[5:9].cuda(), colours[5:9]), ours[5:9])
    mean, _ = apart(ours.cpu(), recolour(images, colours))
    assert mean < 5e-3
