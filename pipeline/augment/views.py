"""The views of a picture: how large each is, and where it is cut, as a function of (seed, position, view).

View 0 of a mixture is what a mixture without `views` delivers, to the byte. The number of a view is part of its
generator's key, so another view added behind changes none before it.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from headrace.pipeline.augment.config import Augment
from headrace.pipeline.augment.crop import EARLY_DRAWS, Window, choose_window, early_window, position_draws
from headrace.pipeline.augment.philox import draws_at
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


@dataclass(frozen=True, slots=True)
class WindowDraw:
    """Draws the windows of one view; `windows_of` those of many positions at once."""

    key: int
    augment: Augment

    def __call__(self, position: int, height: int, width: int) -> Window:
        """Return the window of one upright picture."""
        return choose_window(self.augment, position_draws(self.key, position), height, width)


def view_windows(mixture: Mixture) -> tuple[ChooseWindow, ...]:
    """Return the function that places the window of each view."""
    return tuple(
        WindowDraw(make_key(mixture.seed, "augment", number), view.augment)
        for number, view in enumerate(planned_views(mixture))
    )


def windows_of(choose: ChooseWindow, positions: Sequence[int], sizes: Sequence[tuple[int, int]]) -> list[Window]:
    """Return `choose(position, height, width)` of every picture; `sizes` are (width, height), upright.

    Drawn for all at once, as a generator for each takes longer than all else that Python does for a picture.
    """
    if not isinstance(choose, WindowDraw):
        return [choose(at, height, width) for at, (width, height) in zip(positions, sizes, strict=True)]
    few = draws_at(choose.key, np.array(positions, np.int64), EARLY_DRAWS).tolist()
    return [
        early_window(choose.augment, draws, height, width) or choose(at, height, width)
        for draws, at, (width, height) in zip(few, positions, sizes, strict=True)
    ]
