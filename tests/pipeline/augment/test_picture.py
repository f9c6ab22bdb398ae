"""Colours of one picture on the host: those of torchvision, and of `recolour` on a batch."""

from typing import Any

import numpy as np
import pytest
import torch

from headrace.pipeline.augment.colour import JITTERS, PLAIN, Colour
from headrace.pipeline.augment.picture import recolour_picture
from headrace.pipeline.augment.pixels import recolour


def by_host(images: torch.Tensor, colours: list[Colour]) -> torch.Tensor:
    copies = images.numpy().copy()
    for picture, colour in zip(copies, colours, strict=True):
        recolour_picture(picture, colour)
    return torch.from_numpy(copies)


@pytest.mark.parametrize("name", [*JITTERS, "grayscale", "blur", "solarize"])
def test_each_operation_is_that_of_torchvision_and_of_batches(
    name: str, pictures: Any, by_torchvision: Any, one_each: Any, apart: Any
) -> None:
    images, colours = pictures(12), one_each(name, 12)
    theirs = torch.stack([by_torchvision(image, colour) for image, colour in zip(images, colours, strict=True)])
    for other in (theirs, recolour(images, colours)):
        mean, largest = apart(by_host(images, colours), other)
        assert largest <= 1
        assert mean < 1e-3


@pytest.mark.parametrize("side", [1, 2, 3, 17])
def test_small_pictures_are_blurred_too(side: int, pictures: Any, by_torchvision: Any, apart: Any) -> None:
    images, colours = pictures(2, side), [Colour(blur_sigma=1.0, blur_kernel=2 * side - 1)] * 2
    theirs = torch.stack([by_torchvision(image, colour) for image, colour in zip(images, colours, strict=True)])
    assert apart(by_host(images, colours), theirs)[1] <= 1
    assert apart(recolour(images, colours), theirs)[1] <= 1


def test_what_is_plain_is_left_as_it_is() -> None:
    picture = np.full((4, 4, 3), 7, np.uint8)
    recolour_picture(picture, PLAIN)
    assert (picture == 7).all()
