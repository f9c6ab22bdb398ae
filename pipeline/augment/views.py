"""The views of a picture: how large each is, and where it is cut, as a function of (seed, position, view).

View 0 of a mixture is what a mixture without `views` delivers, to the byte. The number of a view is part of its
generator's key, so another view added behind changes none before it.
"""

from collections.abc import Callable
from dataclasses import dataclass

from headrace.pipeline.augment.config import Augment
from headrace.pipeline.augment.crop import Window, choose_window, position_draws
from headrace.pipeline.mixture import NO_DECODER, Mixture
from headrace.shards.permutation import make_key

ChooseWindow = Callable[[int, int, int], Window]
"""(position, height, width) of an upright picture -> the window of one view."""


@dataclass(frozen=True, slots=True)
class PlannedView:
    """One view of every picture, its defaults filled in."""

    image_size: int
    augment: Augment


def planned_views(mixture: Mixture) -> tuple[PlannedView, ...]:
    """Return the views in the order of `Batch.views`; a mixture that names none has one, bytes without pixels none."""
    if mixture.decoder == NO_DECODER:
        return ()
    return tuple(
        PlannedView(view.image_size or mixture.image_size, view.augment or mixture.augment)
        for view in mixture.views
        for _ in range(view.count)
    ) or (PlannedView(mixture.image_size, mixture.augment),)


def view_windows(mixture: Mixture) -> tuple[ChooseWindow, ...]:
    """Return the function that places the window of each view."""
    return tuple(
        _placed_by(make_key(mixture.seed, "augment", number), view.augment)
        for number, view in enumerate(planned_views(mixture))
    )


def _placed_by(key: int, augment: Augment) -> ChooseWindow:
    def choose(position: int, height: int, width: int) -> Window:
        return choose_window(augment, position_draws(key, position), height, width)

    return choose
