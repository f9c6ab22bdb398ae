"""What is done to colours is a function of (seed, position, view), and is done wherever pictures are made."""

import dataclasses
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from headrace.pipeline import Augment, Batch, Mixture, Source, View, open_stream
from headrace.pipeline.augment.colour import (
    JITTERS,
    PLAIN,
    Colour,
    blur_kernel,
    choose_colour,
    view_colours,
)
from headrace.pipeline.augment.colour_table import draw_table
from headrace.pipeline.augment.crop import position_draws
from headrace.pipeline.augment.picture import recolour_picture
from headrace.shards.permutation import make_key

COLOURED = Augment(
    colour_jitter=(0.4, 0.4, 0.2, 0.1),
    colour_jitter_probability=0.8,
    grayscale_probability=0.2,
    blur_probability=0.5,
    solarize_probability=0.2,
)
KEY = make_key(1, "colour", 0)
PROBABILITIES = [name.name for name in dataclasses.fields(Augment) if name.name.endswith("_probability")]


def of_views(*augments: Augment, seed: int = 0) -> Mixture:
    views = tuple(View(augment=augment) for augment in augments)
    return Mixture(seed=seed, sources=(Source(name="a", url="b"),), views=views)


@given(position=st.integers(0, 2**60))
def test_colours_are_functions_of_seed_position_and_view(position: int) -> None:
    first, second = view_colours(of_views(COLOURED, COLOURED))
    again, alone = view_colours(of_views(COLOURED, Augment()))
    (other,) = view_colours(of_views(COLOURED, seed=1))
    assert alone is None
    assert first is not None
    assert second is not None
    assert again is not None
    assert other is not None
    assert first(position) == first(position) == again(position)
    jittered = [colour for colour in (first(position), second(position), other(position)) if colour.jitter]
    assert len(set(jittered)) == len(jittered)


@given(
    position=st.integers(0, 2**60),
    strengths=st.tuples(*[st.floats(0, 1)] * 3, st.floats(0, 0.5)),
    low=st.floats(0.1, 2),
    wider=st.floats(0, 3),
)
def test_every_parameter_lies_in_its_range(
    position: int, strengths: tuple[float, float, float, float], low: float, wider: float
) -> None:
    augment = dataclasses.replace(COLOURED, colour_jitter=strengths, blur_sigma=(low, low + wider))
    colour = choose_colour(augment, position_draws(KEY, position, 10), 5)
    named = dict(colour.jitter)
    assert len(named) == len(colour.jitter) == (sum(map(bool, strengths)) if named else 0)
    for name, strength in zip(JITTERS, strengths, strict=True):
        middle = 0.0 if name == "hue" else 1.0
        assert abs(named.get(name, middle) - middle) <= strength  # type: ignore[call-overload]
    assert colour.blur_sigma == 0 or low <= colour.blur_sigma <= low + wider
    assert colour.blur_kernel == (5 if colour.blur_sigma else 0)
    assert colour.solarize_threshold in (128, 256)


def test_shares_and_orders_come_as_often_as_they_should() -> None:
    (choose,) = view_colours(of_views(COLOURED))
    assert choose is not None
    colours = [choose(position) for position in range(6000)]
    shares = [
        np.mean([bool(colour.jitter) for colour in colours]),
        np.mean([colour.grayscale for colour in colours]),
        np.mean([colour.blur_sigma > 0 for colour in colours]),
        np.mean([colour.solarize_threshold == 128 for colour in colours]),
    ]
    assert np.allclose(shares, [0.8, 0.2, 0.5, 0.2], atol=0.025)
    orders = [tuple(name for name, _ in colour.jitter) for colour in colours if colour.jitter]
    counts = [orders.count(order) for order in set(orders)]
    assert len(counts) == 24
    assert min(counts) > 0.7 * len(orders) / 24
    factors = [dict(colour.jitter)["brightness"] for colour in colours if colour.jitter]
    assert abs(np.mean(factors) - 1) < 0.01
    assert abs(np.std(factors) - 0.4 / 3**0.5) < 0.01


@pytest.mark.parametrize(("side", "kernel"), [(224, 23), (96, 9), (16, 3), (32, 3), (384, 39), (1, 1), (2, 3)])
def test_the_kernel_is_a_tenth_of_the_side(side: int, kernel: int) -> None:
    assert blur_kernel(Augment(), side) == kernel
    assert blur_kernel(Augment(blur_kernel=9), 224) == 9


def test_rows_that_are_not_valid_stay_plain() -> None:
    (choose,) = view_colours(of_views(COLOURED))
    assert choose is not None
    colours = draw_table(choose, np.array([4, 5, 6]), np.array([True, False, True]))
    assert list(colours) == [choose(4), PLAIN, choose(6)]
    assert list(draw_table(choose, np.array([4, 5]))) == [choose(4), choose(5)]


def batches(mixture: Mixture, **options: Any) -> list[Batch]:
    with open_stream(mixture, global_batch=8, **options) as stream:
        return [next(stream) for _ in range(4)]


def test_a_stream_delivers_finished_pictures(mixture: Mixture) -> None:
    views = (View(augment=dataclasses.replace(COLOURED, scale=(0.3, 1.0))), View(image_size=8))
    coloured = dataclasses.replace(mixture, views=views)
    choose, none = view_colours(coloured)
    assert choose is not None
    assert none is None
    for plain, batch in zip(
        batches(dataclasses.replace(mixture, views=(View(), View(image_size=8)))), batches(coloured), strict=True
    ):
        assert np.array_equal(plain.views[1], batch.views[1])  # the windows are those they always were
        wanted = plain.images.copy()
        for row, position in enumerate(plain.position.tolist()):
            recolour_picture(wanted[row], choose(position))
        assert np.array_equal(batch.images, wanted)
        assert not np.array_equal(batch.images, plain.images)


@given(threads=st.integers(1, 3), world_size=st.sampled_from([1, 2, 4]))
@settings(max_examples=4, deadline=None)
def test_pictures_do_not_depend_on_threads_or_ranks(mixture: Mixture, threads: int, world_size: int) -> None:
    coloured = dataclasses.replace(mixture, augment=COLOURED)
    whole = batches(coloured)
    ranks = [
        batches(dataclasses.replace(coloured, decode_threads=threads), rank=rank, world_size=world_size)
        for rank in range(world_size)
    ]
    for batch, parts in zip(whole, zip(*ranks, strict=True), strict=True):
        position = np.concatenate([part.position for part in parts])
        images = np.concatenate([part.images for part in parts])[np.argsort(position)]
        assert np.array_equal(images, batch.images)


def test_padding_and_damage_stay_black(mixture: Mixture) -> None:
    white = Augment(solarize_probability=1.0, solarize_threshold=0)  # black becomes white
    with open_stream(dataclasses.replace(mixture, augment=white), global_batch=48, once=True) as stream:
        last = list(stream)[-1]
    assert not last.valid.all()
    assert not last.images[~last.valid].any()


def test_the_time_is_counted_as_augmenting(mixture: Mixture, monkeypatch: pytest.MonkeyPatch) -> None:
    import time

    monkeypatch.setattr("headrace.pipeline.augment.changes.recolour_picture", lambda *_: time.sleep(0.002))
    with open_stream(dataclasses.replace(mixture, augment=COLOURED), global_batch=8) as stream:
        next(stream)
        assert stream.stats().stages["augment"].seconds >= 8 * 0.002


def test_resume_with_colours_gives_the_same_tail(mixture: Mixture, check_resumes: Any) -> None:
    check_resumes(lambda: open_stream(dataclasses.replace(mixture, augment=COLOURED), global_batch=8), steps=3)


@pytest.mark.parametrize(
    "change",
    [
        {"colour_jitter": (0.1, 0.0, 0.0, 0.0)},
        {"blur_probability": 0.5},
        {"grayscale_probability": 0.1},
        {"solarize_probability": 0.1},
    ],
)
def test_a_state_of_other_colours_is_refused(mixture: Mixture, change: dict[str, Any]) -> None:
    with open_stream(mixture, global_batch=8) as stream:
        state = stream.state_dict()
    changed = dataclasses.replace(mixture, augment=dataclasses.replace(mixture.augment, **change))
    with (
        open_stream(changed, global_batch=8) as stream,
        pytest.raises(ValueError, match=r"pictures .image_size and augment. was"),
    ):
        stream.load_state_dict(state)


def test_what_plays_no_part_changes_no_state(mixture: Mixture) -> None:
    idle = dataclasses.replace(
        mixture.augment, blur_sigma=(1.0, 1.5), solarize_threshold=7, colour_jitter_probability=0.1
    )
    with open_stream(mixture, global_batch=8) as stream:
        state = stream.state_dict()
    with open_stream(dataclasses.replace(mixture, augment=idle), global_batch=8) as stream:
        stream.load_state_dict(state)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"colour_jitter": (0.4, 0.4, 0.2, 0.6)},
            "colour_jitter must be brightness, contrast and saturation of 0..1 and hue of 0..0.5, got 0.4, 0.4",
        ),
        ({"colour_jitter": (-0.1, 0.0, 0.0, 0.0)}, "colour_jitter must be"),
        *[({name: 1.5}, f"{name} must be 0..1, got 1.5") for name in PROBABILITIES],
        ({"blur_sigma": (0.0, 2.0)}, "blur_sigma must be a range over 0 to 100, got 0.0 and 2.0"),
        ({"blur_sigma": (2.0, 1.0)}, "blur_sigma must be"),
        ({"blur_kernel": 4}, "blur_kernel must be 0 or odd, 3..255, got 4"),
        ({"solarize_threshold": 256}, "solarize_threshold must be 0..255, got 256"),
    ],
)
def test_colours_that_cannot_be_are_refused(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Augment(**change)


def test_a_step_that_does_nothing_is_not_taken() -> None:
    draws = [0.0] * 10
    assert choose_colour(Augment(colour_jitter=(0.0, 0.5, 0.0, 0.0)), draws, 3) == Colour(jitter=(("contrast", 0.5),))
    assert choose_colour(Augment(), draws, 3) == PLAIN
