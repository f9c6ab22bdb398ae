"""Windows as torchvision draws them, as functions of the position."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from headrace.pipeline.augment.crop import TRIES, Window, choose_window, position_draws
from headrace.pipeline.mixture import Augment
from headrace.shards.permutation import make_key

sides = st.integers(1, 3000)
KEY = make_key(1, "augment", 0)


def slow_window(augment: Augment, draws: list[float], height: int, width: int) -> tuple[int, int, int, int]:
    """RandomResizedCrop.get_params of torchvision, line by line, with our numbers for its generator."""
    numbers = iter(draws[1:])
    area = height * width
    log_ratio = [math.log(ratio) for ratio in augment.ratio]
    for _ in range(TRIES):
        target = area * (augment.scale[0] + next(numbers) * (augment.scale[1] - augment.scale[0]))
        aspect = math.exp(log_ratio[0] + next(numbers) * (log_ratio[1] - log_ratio[0]))
        w, h = round(math.sqrt(target * aspect)), round(math.sqrt(target / aspect))
        down, across = next(numbers), next(numbers)
        if 0 < w <= width and 0 < h <= height:
            return math.floor(down * (height - h + 1)), math.floor(across * (width - w + 1)), h, w
    in_ratio = float(width) / float(height)
    if in_ratio < min(augment.ratio):
        w, h = width, round(width / min(augment.ratio))
    elif in_ratio > max(augment.ratio):
        h, w = height, round(height * max(augment.ratio))
    else:
        w, h = width, height
    return (height - h) // 2, (width - w) // 2, h, w


@given(st.integers(0, 10**15), sides, sides)
def test_windows_are_those_of_random_resized_crop(position: int, height: int, width: int) -> None:
    augment, draws = Augment(), position_draws(KEY, position)
    assert tuple(choose_window(augment, draws, height, width)[:4]) == slow_window(augment, draws, height, width)


@given(st.integers(0, 10**15), sides, sides, st.floats(0.01, 1.0), st.floats(0.05, 1.0))
def test_every_window_lies_inside_the_picture(
    position: int, height: int, width: int, scale: float, ratio: float
) -> None:
    augment = Augment(scale=(scale, 1.0), ratio=(ratio, 1 / ratio))
    window = choose_window(augment, position_draws(KEY, position), height, width)
    assert window.top >= 0
    assert window.left >= 0
    assert window.height >= 1
    assert window.width >= 1
    assert window.top + window.height <= height
    assert window.left + window.width <= width


def test_draws_depend_on_position_and_key_alone() -> None:
    assert position_draws(KEY, 7) == position_draws(KEY, 7)
    assert position_draws(KEY, 7) != position_draws(KEY, 8)
    assert position_draws(KEY, 7) != position_draws(make_key(2, "augment", 0), 7)
    assert position_draws(KEY, 7) != position_draws(make_key(1, "augment", 1), 7)
    # Neighbours share no number: a later parameter of one is not the first of the next.
    together = [draw for position in range(50) for draw in position_draws(KEY, position)]
    assert len(set(together)) == len(together)


def test_draws_are_even_and_half_the_pictures_are_mirrored() -> None:
    draws = np.array([position_draws(KEY, position) for position in range(4000)])
    assert draws.min() >= 0
    assert draws.max() < 1
    assert abs(draws.mean() - 0.5) < 0.005
    windows = [choose_window(Augment(), row, 300, 400) for row in draws.tolist()]
    assert abs(np.mean([window.flipped for window in windows]) - 0.5) < 0.03
    area = np.array([window.height * window.width / 120_000 for window in windows])
    # Of areas drawn evenly from 0.08..1, those that fit: the mean torchvision's own draws give is 0.48 at this shape.
    assert 0.42 < area.mean() < 0.54
    ratio = np.log([window.width / window.height for window in windows])
    assert np.abs(ratio).max() < math.log(4 / 3) + 0.1
    assert not any(choose_window(Augment(flip=False), row, 300, 400).flipped for row in draws[:50].tolist())


def test_a_centre_window_is_the_middle_square() -> None:
    augment = Augment(crop="center", flip=False)
    assert choose_window(augment, [0.0], 300, 400) == Window(0, 50, 300, 300, False)
    assert choose_window(augment, [0.0], 401, 300) == Window(50, 0, 300, 300, False)


@pytest.mark.parametrize(("height", "width"), [(300, 400), (401, 300), (256, 256), (3, 2), (1, 1)])
def test_a_smaller_centre_window_is_what_resizing_and_cropping_the_middle_shows(height: int, width: int) -> None:
    """Resize(256) then CenterCrop(224) shows, in pixels of the source, the middle 224/256 of the short side."""
    window = choose_window(Augment(crop="center", flip=False, center_fraction=0.875), [0.0], height, width)
    scale = min(height, width) / 256
    assert window.height == window.width == max(1, round(224 * scale))
    for start, side in ((window.top, height), (window.left, width)):
        assert abs(start - (side / scale - 224) / 2 * scale) <= 1


@pytest.mark.parametrize("fraction", [0.0, -0.5, 1.1, float("nan")])
def test_a_centre_fraction_outside_its_range_is_refused(fraction: float) -> None:
    with pytest.raises(ValueError, match=r"center_fraction must be within 0\.\.1"):
        Augment(center_fraction=fraction)


@given(height=sides, width=sides, fraction=st.floats(0.01, 1.0))
def test_a_squashed_picture_is_its_middle_whatever_its_ratio(height: int, width: int, fraction: float) -> None:
    """Resize((256, 256)) then CenterCrop(224): of each side the middle 224 / 256, stretched over the square."""
    augment = Augment(crop="squash", flip=False, center_fraction=fraction)
    window = choose_window(augment, [0.0], height, width)
    for start, length, side in ((window.top, window.height, height), (window.left, window.width, width)):
        assert length == max(1, round(side * fraction))
        assert abs((start + length / 2) - side / 2) <= 0.5
    assert window.inside(224) == (0, 0, 224, 224)
    assert "center_fraction" not in augment.idle or fraction == 1


@given(height=sides, width=sides, side=st.integers(1, 512))
def test_a_padded_picture_is_whole_and_lies_in_the_middle(height: int, width: int, side: int) -> None:
    window = choose_window(Augment(crop="pad", flip=False, pad_value=7), [0.0], height, width)
    assert window == Window(0, 0, height, width, False, "bilinear", 7)
    top, left, high, wide = window.inside(side)
    assert max(high, wide) == side
    assert min(high, wide) >= 1
    assert abs(min(high, wide) - side * min(height, width) / max(height, width)) <= 1
    assert 0 <= side - high - 2 * top <= 1
    assert 0 <= side - wide - 2 * left <= 1


@given(
    height=sides,
    width=sides,
    side=st.integers(8, 512),
    draws=st.lists(st.floats(0, 1, exclude_max=True), min_size=4, max_size=4),
)
def test_a_scale_jitter_keeps_the_ratio_at_the_drawn_scale(
    height: int, width: int, side: int, draws: list[float]
) -> None:
    augment = Augment(crop="scale_jitter", flip=False, jitter=(0.5, 2.0), pad_value=7)
    window = choose_window(augment, draws, height, width)
    span = max(1, round(min(height, width) / (0.5 + 1.5 * draws[1])))
    assert (window.height, window.width, window.fill) == (min(span, height), min(span, width), 7)
    assert 0 <= window.top <= height - window.height
    assert 0 <= window.left <= width - window.width
    top, left, high, wide = window.inside(side)
    # Both sides are resized alike, and where the picture is large enough the square is full of it.
    assert abs(high - side * window.height / span) <= 1
    assert abs(wide - side * window.width / span) <= 1
    assert (high, wide) == (side, side) or span > min(height, width)
    assert 0 <= top <= side - high
    assert 0 <= left <= side - wide


def test_every_kind_of_window_says_how_it_is_resized() -> None:
    draws = position_draws(KEY, 3)
    for crop in ("random", "center", "pad", "squash", "scale_jitter"):
        plain, cubic = (
            choose_window(Augment(crop=crop, interpolation=kind), draws, 300, 400)  # type: ignore[arg-type]
            for kind in ("bilinear", "bicubic")
        )
        assert plain.interpolation == "bilinear"
        assert cubic == plain._replace(interpolation="bicubic")


def test_a_level_that_is_none_is_refused() -> None:
    with pytest.raises(ValueError, match=r"pad_value must be 0..255, got 256"):
        Augment(crop="pad", pad_value=256)


@pytest.mark.parametrize("key", [0, 5, 2**64 - 1, 2**100 + 3])
@pytest.mark.parametrize("position", [0, 1, 77, 2**61])
def test_draws_are_those_of_a_new_generator_whatever_was_drawn_before(key: int, position: int) -> None:
    raw = np.random.Philox(key=key, counter=16 * position).random_raw(41)
    position_draws(key + 1, position + 3, 5)
    assert position_draws(key, position) == ((raw >> np.uint64(11)) * 2.0**-53).tolist()
