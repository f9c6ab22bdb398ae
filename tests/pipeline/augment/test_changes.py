"""RandAugment and random erasing in a stream: the same pictures for any threads, ranks and restarts."""

import dataclasses
from typing import Any

import numpy as np
import pytest

from headrace.pipeline import Augment, Batch, Mixture, RandAugment, RandomErasing, View, open_stream
from headrace.pipeline.augment.changes import change_picture, view_changes
from headrace.pipeline.augment.describe import describe_augment

STRONG = Augment(
    scale=(0.3, 1.0),
    interpolation="bicubic",
    grayscale_probability=0.2,
    rand_augment=RandAugment(probability=0.9),
    random_erasing=RandomErasing(probability=0.6),
)


def batches(mixture: Mixture, **options: Any) -> list[Batch]:
    with open_stream(mixture, global_batch=8, **options) as stream:
        return [next(stream) for _ in range(3)]


def test_a_stream_delivers_finished_pictures_and_windows_stay(mixture: Mixture) -> None:
    plain_augment = dataclasses.replace(STRONG, rand_augment=None, random_erasing=None, grayscale_probability=0.0)
    strong = dataclasses.replace(mixture, views=(View(augment=STRONG), View(augment=plain_augment)))
    changes, none = view_changes(strong)
    assert changes is not None
    assert none is None
    unlike = 0
    for plain, batch in zip(batches(dataclasses.replace(mixture, augment=plain_augment)), batches(strong), strict=True):
        wanted = plain.images.copy()
        for row, position in enumerate(plain.position.tolist()):
            change_picture(wanted[row], changes, position)
            unlike += not np.array_equal(wanted[row], plain.images[row])
        assert np.array_equal(batch.images, wanted)
    assert unlike > 18


@pytest.mark.parametrize(("threads", "world_size"), [(1, 4), (3, 2)])
def test_pictures_do_not_depend_on_threads_or_ranks(mixture: Mixture, threads: int, world_size: int) -> None:
    strong = dataclasses.replace(mixture, augment=STRONG)
    whole = batches(strong)
    ranks = [
        batches(dataclasses.replace(strong, decode_threads=threads), rank=rank, world_size=world_size)
        for rank in range(world_size)
    ]
    for batch, parts in zip(whole, zip(*ranks, strict=True), strict=True):
        position = np.concatenate([part.position for part in parts])
        images = np.concatenate([part.images for part in parts])[np.argsort(position)]
        assert np.array_equal(images, batch.images)


def test_resume_gives_the_same_tail(mixture: Mixture, check_resumes: Any) -> None:
    check_resumes(lambda: open_stream(dataclasses.replace(mixture, augment=STRONG), global_batch=8), steps=3)


@pytest.mark.parametrize(
    "change",
    [
        {"rand_augment": None},
        {"rand_augment": RandAugment(probability=0.9, magnitude=8.0)},
        {"random_erasing": None},
        {"random_erasing": RandomErasing(probability=0.6, mode="const")},
    ],
)
def test_a_state_of_other_changes_is_refused(mixture: Mixture, change: dict[str, Any]) -> None:
    with open_stream(dataclasses.replace(mixture, augment=STRONG), global_batch=8) as stream:
        state = stream.state_dict()
    changed = dataclasses.replace(mixture, augment=dataclasses.replace(STRONG, **change))
    with (
        open_stream(changed, global_batch=8) as stream,
        pytest.raises(ValueError, match=r"pictures .image_size and augment. was"),
    ):
        stream.load_state_dict(state)


def test_a_state_from_before_they_were_there_is_continued(mixture: Mixture) -> None:
    """The digest of the pictures is that of the release before; without either key it stays."""
    with open_stream(mixture, global_batch=8) as stream:
        assert stream.state_dict()["pictures"] == "8afb4800bac8aafc"


def test_padding_stays_black(mixture: Mixture) -> None:
    always = Augment(random_erasing=RandomErasing(probability=1.0))
    with open_stream(dataclasses.replace(mixture, augment=always), global_batch=48, once=True) as stream:
        last = list(stream)[-1]
    assert not last.valid.all()
    assert not last.images[~last.valid].any()


def test_people_are_told() -> None:
    assert describe_augment(STRONG) == (
        "random crop of 0.3-1 bicubic, flip, RandAugment of 2 at 9 +- 0.5 (each in 90%), greyscale in 20%, "
        "random erasing of 0.02-0.33 (pixel) in 60%"
    )
