"""RandAugment on a batch: the host's answer, however the batch is cut."""

from typing import Any

import numpy as np
import pytest
import torch

from headrace.pipeline import RandAugment
from headrace.pipeline.augment import rand_pixels
from headrace.pipeline.augment.config import INTERPOLATIONS, Interpolation
from headrace.pipeline.augment.rand_augment import NAMES, Operation, RandDraw, argument
from headrace.pipeline.augment.rand_picture import rand_picture
from headrace.pipeline.augment.rand_pixels import rand_batch

FILL = (124, 116, 104)


def by_host(images: torch.Tensor, operations: Any, interpolation: Interpolation = "bicubic") -> torch.Tensor:
    copies = images.numpy().copy()
    for picture, done in zip(copies, operations, strict=True):
        rand_picture(picture, done, interpolation=interpolation, fill=FILL)
    return torch.from_numpy(copies)


def drawn(number: int) -> list[tuple[Operation, ...]]:
    return RandDraw(1, RandAugment(num_ops=3, probability=0.8), "bicubic").of_rows(np.arange(number))


@pytest.mark.parametrize("interpolation", INTERPOLATIONS)
@pytest.mark.parametrize("name", NAMES)
def test_each_operation_is_the_hosts_to_the_bit(pictures: Any, name: str, interpolation: Interpolation) -> None:
    for side in (33, 2):
        operations = [
            (Operation(name, argument(RandAugment(increasing=increasing), name, magnitude, sign)),)
            for magnitude in (0.0, 3.3, 9.0, 10.0)
            for sign in (-1, 1)
            for increasing in (True, False)
        ]
        images = pictures(len(operations), side)
        ours = rand_batch(images, operations, interpolation=interpolation, fill=FILL)
        assert torch.equal(ours, by_host(images, operations, interpolation))


def test_a_row_does_not_depend_on_the_others(pictures: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    images, operations = pictures(24, 32), drawn(24)
    whole = rand_batch(images, operations, interpolation="bicubic", fill=FILL)
    assert torch.equal(whole, by_host(images, operations))
    assert torch.equal(rand_batch(images[3:9], operations[3:9], interpolation="bicubic", fill=FILL), whole[3:9])
    monkeypatch.setattr(rand_pixels, "CHUNK_PIXELS", 2 * 32 * 32)
    assert torch.equal(rand_batch(images, operations, interpolation="bicubic", fill=FILL), whole)
    assert torch.equal(images, pictures(24, 32))  # nothing is written in place
    assert rand_batch(images, [()] * 24, interpolation="bicubic", fill=FILL) is images


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_operations_on_a_device_are_those_of_the_host(pictures: Any, apart: Any) -> None:
    images, operations = pictures(48), drawn(48)
    ours = rand_batch(images.cuda(), operations, interpolation="bicubic", fill=FILL)
    assert ours.is_cuda
    assert torch.equal(rand_batch(images.cuda(), operations, interpolation="bicubic", fill=FILL), ours)
    assert apart(ours.cpu(), by_host(images, operations))[0] < 5e-3  # a level off may become many when solarised
