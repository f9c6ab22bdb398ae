"""Views: the first is what there was before there were more, each has its own size and windows, and states say so."""

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from headrace.config import build_config, config_to_dict
from headrace.pipeline import Augment, Batch, Mixture, Source, Stream, View, open_stream
from headrace.pipeline.augment.views import PlannedView, planned_views, view_windows

MULTI_CROP = (View(count=2), View(count=3, image_size=8, augment=Augment(scale=(0.05, 0.3))))


def batches(mixture: Mixture, steps: int = 4) -> list[Batch]:
    with open_stream(mixture, global_batch=8) as stream:
        return [next(stream) for _ in range(steps)]


def test_views_fill_in_what_they_leave_out(mixture: Mixture) -> None:
    assert planned_views(mixture) == (PlannedView(16, mixture.augment),)
    many = planned_views(dataclasses.replace(mixture, views=MULTI_CROP))
    assert many == (PlannedView(16, mixture.augment),) * 2 + (PlannedView(8, Augment(scale=(0.05, 0.3))),) * 3


def test_the_first_view_is_that_of_a_mixture_without_views(mixture: Mixture) -> None:
    for one, many in zip(batches(mixture), batches(dataclasses.replace(mixture, views=MULTI_CROP)), strict=True):
        assert one.views == (one.images,)
        assert one.key == many.key
        assert np.array_equal(one.images, many.images)
        assert [view.shape[1] for view in many.views] == [16, 16, 8, 8, 8]
        assert len({view.tobytes() for view in many.views}) == 5


def test_a_view_does_not_depend_on_those_behind_it(mixture: Mixture) -> None:
    two = batches(dataclasses.replace(mixture, views=MULTI_CROP[:1]))
    five = batches(dataclasses.replace(mixture, views=MULTI_CROP))
    for one, many in zip(two, five, strict=True):
        assert all(np.array_equal(a, b) for a, b in zip(one.views, many.views, strict=False))


def test_windows_are_functions_of_seed_position_and_view(mixture: Mixture) -> None:
    first, second = view_windows(dataclasses.replace(mixture, views=(View(count=2),)))
    assert first(7, 300, 400) == first(7, 300, 400)
    assert first(7, 300, 400) != first(8, 300, 400)
    assert first(7, 300, 400) != second(7, 300, 400)
    (other,) = view_windows(dataclasses.replace(mixture, seed=6))
    assert first(7, 300, 400) != other(7, 300, 400)


def test_resume_with_views_gives_the_same_tail(mixture: Mixture, check_resumes: Callable[..., None]) -> None:
    def open_it() -> Stream:
        return open_stream(dataclasses.replace(mixture, views=MULTI_CROP), global_batch=8)

    check_resumes(open_it, steps=4)
    with open_it() as stream:
        whole = [next(stream) for _ in range(3)]
    with open_it() as stream:
        next(stream)
        state = stream.state_dict()
    with open_it() as stream:
        stream.load_state_dict(state)
        for batch in whole[1:]:
            assert all(np.array_equal(a, b) for a, b in zip(batch.views, next(stream).views, strict=True))


def old_state(mixture: Mixture) -> dict[str, Any]:
    """A state as version 1 wrote it."""
    with open_stream(mixture, global_batch=8) as stream:
        next(stream)
        state = stream.state_dict()
    return {**{name: value for name, value in state.items() if name not in ("decoder", "resizer")}, "version": 1}


def test_a_state_of_version_1_continues_a_mixture_of_one_view(mixture: Mixture) -> None:
    (_, expected) = batches(dataclasses.replace(mixture, resizer="pillow"), 2)  # there was no other
    with open_stream(dataclasses.replace(mixture, views=(View(),)), global_batch=8) as stream:
        stream.load_state_dict(old_state(mixture))
        assert stream.position == 8
        assert np.array_equal(next(stream).images, expected.images)


def test_the_pictures_of_one_view_have_the_digest_they_always_had() -> None:
    """Digest of a state that the version before views wrote for this size and augment."""
    from headrace.pipeline.state import identity_of

    mixture = Mixture(image_size=224, sources=(Source(name="a", url="b"),))
    assert identity_of(mixture, (), global_batch=32, once=False)["pictures"] == "2d4706ef16bfffee"
    unused = dataclasses.replace(mixture, augment=Augment(center_fraction=0.875))
    assert identity_of(unused, (), global_batch=32, once=False)["pictures"] == "2d4706ef16bfffee"
    centre = [
        identity_of(
            dataclasses.replace(mixture, augment=Augment(crop="center", center_fraction=fraction)),
            (),
            global_batch=32,
            once=False,
        )["pictures"]
        for fraction in (0.875, 1.0)
    ]
    assert centre[0] != centre[1]


@pytest.mark.parametrize(
    "views", [(View(count=2),), MULTI_CROP, (View(), View(image_size=8)), (View(augment=Augment(flip=False)),)]
)
def test_a_state_of_other_views_is_refused(mixture: Mixture, views: tuple[View, ...]) -> None:
    with (
        open_stream(dataclasses.replace(mixture, views=views), global_batch=8) as stream,
        pytest.raises(ValueError, match=r"pictures .image_size and augment. was"),
    ):
        stream.load_state_dict(old_state(mixture))


def test_views_are_written_and_read_as_yaml_says() -> None:
    data = {
        "sources": [{"name": "a", "url": "b"}],
        "views": [{"count": 2}, {"count": 8, "image_size": 96, "augment": {"scale": [0.05, 0.4]}}],
    }
    mixture = build_config(Mixture, data)
    assert [view.image_size for view in planned_views(mixture)] == [224] * 2 + [96] * 8
    assert build_config(Mixture, config_to_dict(mixture)) == mixture


@pytest.mark.parametrize(
    ("views", "message"),
    [
        ([{"count": 0}], "views.0: count must be at least 1, got 0"),
        ([{"size": 3}], "unknown key 'views.0.size'; known keys here: count, image_size, augment"),
        ([{"image_size": 96}], r"views.0.image_size is 96, image_size 224: the first view is what `images` holds"),
        ([{"count": 101}], "views must be at most 100"),
        ([{"augment": {"crop": "round"}}], r"views.0.augment.crop"),
    ],
)
def test_views_that_cannot_be_are_refused(views: list[object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build_config(Mixture, {"sources": [{"name": "a", "url": "b"}], "views": views})
