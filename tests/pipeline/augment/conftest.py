"""Pictures with every hue, and torchvision's functional as the reference of what is done to them."""

from collections.abc import Callable

import numpy as np
import pytest
import torch
import torchvision.transforms.v2.functional as tv

from headrace.pipeline.augment.colour import JITTERS, Colour


def _pictures(number: int, side: int = 64) -> torch.Tensor:
    """Return uint8 [number, side, side, 3]: patches with noise, greys and both ends of the range among them."""
    rng = np.random.default_rng(number)
    coarse = rng.integers(-60, 316, (number, 5, 5, 3)).repeat(-(-side // 5), 1).repeat(-(-side // 5), 2)
    noisy = coarse[:, :side, :side] + rng.normal(0, 6, (number, side, side, 3))
    noisy[:, :8] = noisy[:, :8, :, :1]  # grey: the hue is undefined there
    return torch.from_numpy(noisy.clip(0, 255).astype(np.uint8))


def _by_torchvision(image_HWC: torch.Tensor, colour: Colour) -> torch.Tensor:
    """Do to one picture what `colour` says, by torchvision."""
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


def _one_each(name: str, number: int) -> list[Colour]:
    """Return colours of one operation, with parameters all over their range."""
    rng = np.random.default_rng(1)
    if name in JITTERS:
        low, high = (-0.5, 0.5) if name == "hue" else (0.0, 2.0)
        drawn = rng.uniform(low, high, number)
        drawn[::2] = drawn[::2].round(1)  # sums are whole numbers there, and fall to either side
        return [Colour(jitter=((name, float(factor)),)) for factor in drawn]  # type: ignore[arg-type]
    if name == "blur":
        return [Colour(blur_sigma=float(sigma), blur_kernel=7) for sigma in rng.uniform(0.1, 2.0, number)]
    if name == "grayscale":
        return [Colour(grayscale=True)] * number
    return [Colour(solarize_threshold=int(threshold)) for threshold in rng.integers(0, 256, number)]


@pytest.fixture(scope="session")
def pictures() -> Callable[..., torch.Tensor]:
    """`pictures(number, side=64)`: uint8 [number, side, side, 3]."""
    return _pictures


@pytest.fixture(scope="session")
def by_torchvision() -> Callable[[torch.Tensor, Colour], torch.Tensor]:
    """`by_torchvision(image_HWC, colour)`: torchvision's answer."""
    return _by_torchvision


@pytest.fixture(scope="session")
def one_each() -> Callable[[str, int], list[Colour]]:
    """`one_each(operation, number)`: colours of that operation alone."""
    return _one_each


@pytest.fixture(scope="session")
def apart() -> Callable[[torch.Tensor, torch.Tensor], tuple[float, int]]:
    """`apart(ours, theirs)`: the mean and the largest difference, in levels."""

    def measure(ours: torch.Tensor, theirs: torch.Tensor) -> tuple[float, int]:
        levels = (ours.int() - theirs.int()).abs()
        return levels.double().mean().item(), int(levels.max())

    return measure
