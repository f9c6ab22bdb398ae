"""Normalisation: the same floats from an array and from a tensor, wherever it lies."""

import numpy as np
import pytest
import torch

from headrace.train.pixels import IMAGENET_MEAN, IMAGENET_STD, Normalise

IMAGES = np.random.default_rng(0).integers(0, 256, (3, 8, 8, 3), np.uint8)


def test_a_tensor_is_normalised_as_an_array_is() -> None:
    normalise = Normalise(IMAGENET_MEAN, IMAGENET_STD)
    floats = normalise(IMAGES)
    assert floats.shape == (3, 3, 8, 8)
    assert torch.equal(normalise(torch.from_numpy(IMAGES)), floats)
    wanted = (IMAGES / 255 - np.array(IMAGENET_MEAN)) / np.array(IMAGENET_STD)
    assert np.abs(floats.permute(0, 2, 3, 1).numpy() - wanted).max() < 1e-5


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_normalising_on_a_device_gives_the_floats_of_the_cpu() -> None:
    floats = Normalise(IMAGENET_MEAN, IMAGENET_STD)(IMAGES)
    normalise = Normalise(IMAGENET_MEAN, IMAGENET_STD).cuda()
    host = torch.from_numpy(IMAGES)
    for images in (IMAGES, host, host.pin_memory(), host.cuda()):
        assert normalise(images).is_cuda
        assert torch.allclose(normalise(images).cpu(), floats, atol=1e-6)
