"""All that is done to a view behind its crop and flip, in its order: RandAugment, colours, random erasing.

RandAugment comes behind the flip, which a decoder does: what it moves does not commute with a mirror.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from headrace.pipeline.augment.colour import ColourDraw, view_colours
from headrace.pipeline.augment.config import Augment
from headrace.pipeline.augment.erasing import ErasingDraw, erase_picture
from headrace.pipeline.augment.picture import recolour_picture
from headrace.pipeline.augment.rand_augment import RandDraw
from headrace.pipeline.augment.rand_picture import rand_picture
from headrace.pipeline.augment.views import PlannedView, planned_views
from headrace.pipeline.mixture import Mixture
from headrace.shards.permutation import make_key


@dataclass(frozen=True, slots=True)
class ViewChanges:
    """Draws what is done to one view; None for what never is."""

    rand: RandDraw | None = None
    colour: ColourDraw | None = None
    erasing: ErasingDraw | None = None


def view_changes(mixture: Mixture) -> tuple[ViewChanges | None, ...]:
    """Return what is done to each view behind its crop and flip; None where nothing ever is."""
    return tuple(
        ViewChanges(
            _rand(mixture.seed, number, view.augment),
            colour,
            _erasing(mixture.seed, number, view),
        )
        if view.augment.changes
        else None
        for number, (view, colour) in enumerate(zip(planned_views(mixture), view_colours(mixture), strict=True))
    )


def change_picture(pixels_HWC: NDArray[np.uint8], changes: ViewChanges, position: int) -> None:
    """Do to a uint8 [S, S, 3], in place, what is drawn for a position."""
    if changes.rand is not None:
        rand = changes.rand
        rand_picture(pixels_HWC, rand(position), interpolation=rand.interpolation, fill=rand.config.fill)
    if changes.colour is not None:
        recolour_picture(pixels_HWC, changes.colour(position))
    if changes.erasing is not None:
        erase_picture(pixels_HWC, changes.erasing(position), changes.erasing.config)


def _rand(seed: int, number: int, augment: Augment) -> RandDraw | None:
    if augment.rand_augment is None:
        return None
    return RandDraw(make_key(seed, "rand_augment", number), augment.rand_augment, augment.interpolation)


def _erasing(seed: int, number: int, view: PlannedView) -> ErasingDraw | None:
    config = view.augment.random_erasing
    if config is None:
        return None
    keys = tuple(make_key(seed, "random_erasing", number, rectangle) for rectangle in range(config.count))
    return ErasingDraw(keys, config, view.image_size)
