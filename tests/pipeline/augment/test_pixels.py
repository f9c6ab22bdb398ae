"""Colours on a batch: those of torchvision with the same parameters, however the batch is cut."""

import numpy as np
import pytest
import torch
import torchvision.transforms.v2.functional as tv

from headrace.pipeline.augment.colour import JITTERS, PLAIN, Colour
from headrace.pipeline.augment.pixels import recolour

SIDE = 64


def pictures(number: int, side: int = SIDE) -> torch.Tensor:
    """Smooth colours with noise over them: greys, both ends of the range and every hue."""
    rng = np.random.default_rng(number)
    coarse = rng.integers(-60, 316, (number, 5, 5, 3)).repeat(-(-side // 5), 1).repeat(-(-side // 5), 2)
    noisy = coarse[:, :side, :side] + rng.normal(0, 6, (number, side, side, 3))
    noisy[:, :8] = noisy[:, :8, :, :1]  # grey: the hue is undefined there
    return torch.from_numpy(noisy.clip(0, 255).astype(np.uint8))


def by_torchvision(image_HWC: torch.Tensor, colour: Colour) -> torch.Tensor:
    image = image_HWC.permute(2, 0, 1)
    for name, factor in colour.jitter:
        image = getattr(tv, f"adjust_{name}")(image, factor)
    if colour.grayscale:
        image = tv.rgb_to_grayscale(image, 3)
    if colour.blur_sigma:
        image = tv.gaussian_blur(image, [colour.blur_kernel] * 2, [colour.blur_sigma] * 2)
    if colour.solarize_threshold < 256:
        image = tv.solarize(image, colour.solarize_threshold)
    return image.permute(1, 2, 0)


def one_each(name: str, number: int) -> list[Colour]:
    rng = np.random.default_rng(1)
    if name in JITTERS:
        low, high = (-0.5, 0.5) if name == "hue" else (0.0, 2.0)
        return [Colour(jitter=((name, float(factor)),)) for factor in rng.uniform(low, high, number)]  # type: ignore[arg-type]
    if name == "blur":
        return [Colour(blur_sigma=float(sigma), blur_kernel=7) for sigma in rng.uniform(0.1, 2.0, number)]
    if name == "grayscale":
        return [Colour(grayscale=True)] * number
    return [Colour(solarize_threshold=int(threshold)) for threshold in rng.integers(0, 256, number)]


def differ(ours: torch.Tensor, theirs: torch.Tensor) -> tuple[float, int]:
    """(mean, largest) difference in levels."""
    apart = (ours.int() - theirs.int()).abs()
    return apart.double().mean().item(), int(apart.max())


@pytest.mark.parametrize("name", [*JITTERS, "grayscale", "blur", "solarize"])
def test_each_operation_is_that_of_torchvision(name: str) -> None:
    images, colours = pictures(12), one_each(name, 12)
    theirs = torch.stack([by_torchvision(image, colour) for image, colour in zip(images, colours, strict=True)])
    mean, largest = differ(recolour(images, colours), theirs)
    assert largest <= 1
    assert mean < 5e-4


def test_what_has_no_colour_is_handed_on() -> None:
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
