"""The blur is as wide as it says, covers the box, and touches nothing else."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from headrace.curation.blur import blur_boxes, gaussian


@pytest.mark.parametrize("sigma", [0.5, 3.0, 12.0, 15.9, 16.1, 30.0, 77.7])
def test_gaussian_has_the_sigma_it_was_asked_for(sigma: float) -> None:
    side = 2 * math.ceil(6 * sigma) + 41
    impulse = np.zeros((side, side, 3), np.float32)
    impulse[side // 2, side // 2] = 1
    profile = gaussian(impulse, sigma)[:, :, 0].astype(np.float64)
    for axis in (0, 1):
        weights = profile.sum(axis)
        where = np.arange(weights.size)
        mean = (weights * where).sum() / weights.sum()
        assert mean == pytest.approx(side // 2, abs=0.01)
        # Below one pixel, sampling the bell on whole pixels narrows it.
        tolerance = 0.1 if sigma < 1 else 0.003
        assert math.sqrt((weights * (where - mean) ** 2).sum() / weights.sum()) == pytest.approx(sigma, rel=tolerance)


@pytest.mark.parametrize("side", [60, 200, 320])
def test_an_edge_through_a_face_spreads_by_a_tenth_of_the_longer_side(side: int) -> None:
    image = np.zeros((500, 700, 3), np.uint8)
    image[:, 350:] = 255
    box = ((350 - side / 2) / 700, (250 - side / 4) / 500, (350 + side / 2) / 700, (250 + side / 4) / 500)
    row = blur_boxes(image, [box])[250, :, 0].astype(np.float64) / 255
    # Around the middle the mask is full there, so the edge is the integral of the Gaussian: 16 % to 84 % is 2 sigma.
    middle = slice(350 - side // 2, 350 + side // 2)
    low, high = (np.interp(level, row[middle], np.arange(700)[middle]) for level in (0.1587, 0.8413))
    assert (high - low) / 2 == pytest.approx(0.1 * side, rel=0.05)


@given(
    box=st.tuples(*[st.floats(-0.3, 1.3)] * 4),
    size=st.tuples(st.integers(1, 90), st.integers(1, 90)),
    seed=st.integers(0, 99),
)
def test_pixels_outside_the_soft_box_stay(box: tuple[float, ...], size: tuple[int, int], seed: int) -> None:
    height, width = size
    image = np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)
    blurred = blur_boxes(image, [box])
    x0, x1 = sorted(min(max(value, 0), 1) * width for value in (box[0], box[2]))
    y0, y1 = sorted(min(max(value, 0), 1) * height for value in (box[1], box[3]))
    side = max(x1 - x0, y1 - y0)
    reach = math.ceil(4 * max(0.1 * side, 0.5)) + 0.1 * side + 1
    ys, xs = np.mgrid[:height, :width]
    outside = (xs + 1 < x0 - reach) | (xs > x1 + reach) | (ys + 1 < y0 - reach) | (ys > y1 + reach)
    assert (blurred[outside] == image[outside]).all()
    assert blurred.shape == image.shape


def test_a_large_face_leaves_far_pixels_alone_too() -> None:
    image = np.random.default_rng(0).integers(0, 256, (900, 1200, 3), np.uint8)
    blurred = blur_boxes(image, [(0.1, 0.1, 0.35, 0.5)])
    reach = math.ceil(4 * 36) + 36 + 1
    assert (blurred[450 + reach :] == image[450 + reach :]).all()
    assert (blurred[:, 420 + reach :] == image[:, 420 + reach :]).all()


def test_detail_inside_the_box_is_gone() -> None:
    ys, xs = np.mgrid[:400, :400]
    checkers = np.repeat((((xs // 4 + ys // 4) % 2) * 255).astype(np.uint8)[:, :, None], 3, 2)
    blurred = blur_boxes(checkers, [(0.25, 0.25, 0.75, 0.75)])
    assert checkers[100:300, 100:300].std() > 120
    # At the box's own border the mask is already 84 % (growth of one sigma).
    assert blurred[100:300, 100:300].std() < 12
    assert blurred[140:260, 140:260].std() < 1


def test_a_face_at_the_border_of_the_image_is_blurred_up_to_it() -> None:
    image = np.random.default_rng(1).integers(0, 256, (200, 200, 3), np.uint8)
    blurred = blur_boxes(image, [(0.0, 0.0, 0.5, 0.5)])
    assert blurred[:60, :60].astype(float).std() < 12


def test_each_box_has_its_own_sigma() -> None:
    image = np.random.default_rng(2).integers(0, 256, (300, 900, 3), np.uint8)
    small, large = (0.02, 0.1, 0.06, 0.22), (0.6, 0.1, 0.85, 0.85)
    both = blur_boxes(image, [small, large])
    assert (both[:, :200] == blur_boxes(image, [small])[:, :200]).all()
    assert (both[:, 400:] == blur_boxes(image, [large])[:, 400:]).all()


@pytest.mark.parametrize("box", [(0.1, 0.1, float("nan"), 0.4), (0.1, 0.1, 0.4), (0, 0, float("inf"), 1)])
def test_a_box_that_is_no_box_is_refused(box: tuple[float, ...]) -> None:
    with pytest.raises(ValueError, match="not four finite numbers"):
        blur_boxes(np.zeros((10, 10, 3), np.uint8), [box])
