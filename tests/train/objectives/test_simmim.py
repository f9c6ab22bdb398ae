"""SimMIM: what is hidden, what is predicted of it, and its loss are the papers', for every encoder that hides."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional

from headrace.config import build_config
from headrace.pipeline import Batch
from headrace.train.objectives.build import build_objective
from headrace.train.objectives.image_targets import patch_normalised, sliding_normalised
from headrace.train.objectives.patch_choice import first_of, over_tokens
from headrace.train.objectives.simmim import Simmim, SimmimConfig

SWIN = {"model": "swinv2-mini", "width": 16, "heads": 2, "depths": [1, 2], "window": 2}
VIT = {"model": "tiny", "patch": 8, "width": 16, "depth": 2, "heads": 2}


def simmim(backbone: dict[str, Any], *, side: int = 16, **changes: Any) -> Simmim:
    data = {"kind": "simmim", "backbone": backbone, "mask_patch": 8, "target_window": 5, **changes}
    objective = build_objective(build_config(SimmimConfig, data), image_size=side, seed=7)
    assert isinstance(objective, Simmim)
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in objective.parameters():
            parameter.normal_(std=0.2)  # as they are drawn, blocks of a SwinV2 are nothing
    return objective


def test_what_is_hidden_is_what_the_published_generator_hides() -> None:
    """192 pixels in cells of 32, over tokens of 4, ratio 0.6: for the same permutation the same mask."""
    for seed in range(5):
        np.random.seed(seed)  # noqa: NPY002  the reference draws so
        order = np.random.permutation(36)  # noqa: NPY002
        hidden = np.zeros(36, int)
        hidden[order[: int(np.ceil(36 * 0.6))]] = 1
        expected = hidden.reshape(6, 6).repeat(8, axis=0).repeat(8, axis=1)
        own = over_tokens(first_of(order[None], 22), tokens_per_side=8)
        assert np.array_equal(own.reshape(48, 48), expected)
    config = SimmimConfig(kind="simmim")
    with torch.device("meta"):
        assert (config.build(image_size=192, seed=0).num_cells, config.build(image_size=192, seed=0).num_hidden) == (
            36,
            22,
        )


def test_what_is_hidden_and_dropped_is_a_function_of_the_position(make_batch: Callable[..., Batch]) -> None:
    objective, batch = simmim(SWIN, drop_path=0.5), make_batch(6)
    whole, _ = objective(batch)
    parts = [objective(part)[0] for part in batch.split(2)]
    torch.testing.assert_close(sum(parts), whole)
    assert not torch.equal(objective.eval()(batch)[0], whole), "nothing is dropped at validation"
    many = replace(batch, position=np.arange(4000))
    hidden = objective.hidden(many)
    assert (hidden.sum(axis=1) == objective.num_hidden).all()
    assert abs(hidden.mean(axis=0) - objective.num_hidden / 4).max() < 0.03


@pytest.mark.parametrize("window", [3, 47])
def test_sliding_targets_are_those_of_a_depthwise_convolution(window: int) -> None:
    """In fp32 against float64; pictures smaller than the window too, and a flat one, whose variance is nothing."""
    images = torch.randn(2, 3, 40, 40, generator=torch.Generator().manual_seed(3)) * 2 + 1
    images[1, 0] = 0.7
    x = images.double()
    kernel = torch.ones(3, 1, window, window, dtype=torch.float64)

    def around(values: Tensor) -> Tensor:
        return functional.conv2d(values, kernel, padding=window // 2, groups=3)

    count = around(torch.ones_like(x))
    mean = around(x) / count
    variance = (around(x.square()) - count * mean.square()) / (count - 1)
    expected = (x - mean) / (variance.clamp(min=0) + 1e-6).sqrt()
    found = sliding_normalised(images, window)
    flat = torch.zeros(2, 3, dtype=torch.bool)
    flat[1, 0] = True
    # Where neighbours are close the variance is a difference of nearly equal numbers: an error of 1e-6 at worst.
    torch.testing.assert_close(found[~flat].double(), expected[~flat], atol=2e-5, rtol=1e-4)
    assert float(found[flat].abs().max()) < 1e-2
    torch.testing.assert_close(sliding_normalised(x, window), expected, atol=1e-9, rtol=1e-9)


def test_patches_are_normalised_as_mae_has_it() -> None:
    images = torch.randn(2, 3, 16, 16, dtype=torch.float64)
    found = patch_normalised(images, 8)
    for row, column in ((0, 0), (0, 8), (8, 0), (8, 8)):
        part = images[:, :, row : row + 8, column : column + 8]
        mean, deviation = part.mean(dim=(1, 2, 3), keepdim=True), (part.var(dim=(1, 2, 3), keepdim=True) + 1e-6).sqrt()
        torch.testing.assert_close(found[:, :, row : row + 8, column : column + 8], (part - mean) / deviation)


@pytest.mark.parametrize("backbone", [SWIN, VIT, VIT | {"pool": "mean"}], ids=["swin", "class token", "mean"])
@pytest.mark.parametrize("targets", ["pixels", "sliding", "normalised"])
def test_the_loss_is_the_papers_and_hidden_pixels_are_not_seen(
    make_batch: Callable[..., Batch], backbone: dict[str, Any], targets: str
) -> None:
    """The sum of |x - x_rec| under the mask, over its pixels and 3 channels; a row that does not count has no part."""
    window = {} if targets == "sliding" else {"target_window": 47}
    objective = simmim(backbone, targets=targets, **window).double()
    batch = make_batch(4, valid=[True, True, False, True])
    loss, _ = objective(batch)
    hidden_BC = objective.hidden(batch)
    mask = torch.from_numpy(over_tokens(hidden_BC, tokens_per_side=8).reshape(4, 1, 16, 16)).double()
    mask[2] = 0
    images = objective.normalise(batch.images).double()
    where_BL = torch.from_numpy(over_tokens(hidden_BC, tokens_per_side=objective.tokens_per_cell))
    predicted = objective.predicted(images, where_BL)
    slow = ((objective.target(images) - predicted).abs() * mask).sum() / mask.sum() / 3
    assert float(loss.detach()) / objective.num_terms(batch) == pytest.approx(float(slow.detach()), rel=1e-12)
    other = torch.where(mask.bool(), torch.randn_like(images), images)
    rows = [0, 1, 3]
    assert torch.equal(objective.predicted(other, where_BL)[rows], predicted[rows])
    loss.backward()
    assert all(parameter.grad is not None for parameter in objective.parameters())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"backbone": {"model": "resnet18"}}, "backbone resnet18: it has no tokens to hide; simmim takes a SwinV2"),
        ({"backbone": VIT | {"pool": "map"}}, "backbone tiny: pool map reads a picture; simmim takes a SwinV2"),
        ({"mask_patch": 6}, "mask_patch, 6, does not divide image_size 16"),
        ({"mask_patch": 2}, "mask_patch 2 is not whole tokens of the first layer, which are 4 pixels"),
        ({"backbone": {"model": "swinv2-mini"}}, "the stride of swinv2-mini, 32, does not divide image_size 16"),
        ({"mask_ratio": 0.8}, "mask_ratio 0.8 hides all 4 cells of 8 pixels; lower it, or mask_patch"),
        ({"mask_ratio": 1.0}, "mask_patch must be at least 1 and mask_ratio within 0..1"),
        ({"target_window": 4}, "target_window must be odd and at least 3, got 4"),
        ({"targets": "pixels"}, "target_window is for targets sliding, not pixels"),
        ({"targets": "tokens"}, "targets: input should be 'pixels', 'sliding' or 'normalised'"),
    ],
)
def test_what_does_not_fit_is_one_line(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        simmim(**{"backbone": SWIN} | changes)
    assert "\n" not in str(caught.value)
