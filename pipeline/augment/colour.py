"""What is done to the colours of each view, as a function of (seed, position, view).

The draws have a key of their own, so that no window depends on whether colours are changed. A flip mirrors what these
operations leave in place (a Gaussian is symmetric), so it commutes with all of them.
"""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from headrace.pipeline.augment.config import Augment
from headrace.pipeline.augment.crop import position_draws
from headrace.pipeline.augment.views import planned_views
from headrace.pipeline.mixture import Mixture
from headrace.shards.permutation import make_key

Jitter = Literal["brightness", "contrast", "saturation", "hue"]

JITTERS: tuple[Jitter, ...] = ("brightness", "contrast", "saturation", "hue")
MIDDLE = (1.0, 1.0, 1.0, 0.0)
"""The factor, or turn, that changes nothing."""
ORDERS = tuple(itertools.permutations(range(len(JITTERS))))
UNTOUCHED = 256  # no uint8 value reaches this threshold
DRAWS = 10


class Colour(NamedTuple):
    """What is done to the colours of one picture, from the first field to the last."""

    jitter: tuple[tuple[Jitter, float], ...] = ()
    """Operations in their order, each with its factor; of the hue with its turn, -0.5 to 0.5."""
    grayscale: bool = False
    blur_sigma: float = 0.0
    """Pixels; 0 = not blurred."""
    blur_kernel: int = 0
    """Side of the Gaussian's kernel, pixels, odd."""
    solarize_threshold: int = UNTOUCHED
    """Values from this one on are inverted."""


PLAIN = Colour()


class Step(NamedTuple):
    """One operation on one picture."""

    place: int
    """Where it stands in the order, the same for every picture: 0 to 3 the jitter, then the others."""
    operation: str
    kernel: int
    """Side of a blur's kernel, else 0."""
    value: float
    """Factor, turn, sigma or threshold."""


def steps_of(colour: Colour) -> list[Step]:
    """Return what is done to one picture, in its order."""
    steps = [Step(place, name, 0, factor) for place, (name, factor) in enumerate(colour.jitter)]
    if colour.grayscale:
        steps.append(Step(4, "grayscale", 0, 0.0))
    if colour.blur_sigma > 0:
        steps.append(Step(5, "blur", colour.blur_kernel, colour.blur_sigma))
    if colour.solarize_threshold < UNTOUCHED:
        steps.append(Step(6, "solarize", 0, float(colour.solarize_threshold)))
    return steps


@dataclass(frozen=True, slots=True)
class ColourDraw:
    """Draws the colours of one view; `colour_table.draw_table` those of many positions at once."""

    key: int
    augment: Augment
    kernel: int
    """Side of a blur's kernel."""

    def __call__(self, position: int) -> Colour:
        """Return the colours of one position."""
        return choose_colour(self.augment, position_draws(self.key, position, DRAWS), self.kernel)


def view_colours(mixture: Mixture) -> tuple[ColourDraw | None, ...]:
    """Return for each view the function that draws its colours; None where they are never changed."""
    return tuple(
        ColourDraw(make_key(mixture.seed, "colour", number), view.augment, blur_kernel(view.augment, view.image_size))
        if view.augment.recolours
        else None
        for number, view in enumerate(planned_views(mixture))
    )


def choose_colour(augment: Augment, draws: Sequence[float], kernel: int) -> Colour:
    """Return the colours of one picture from its `draws`; `kernel` is the blur's side.

    The order is that of MoCo v3, BYOL and SwAV: jitter, greyscale, blur, solarise.
    """
    jittered, *moves, order, grey, blurred, sigma, solarized = draws
    low, high = augment.blur_sigma
    is_blurred = blurred < augment.blur_probability
    return Colour(
        jitter=_jitter(augment.colour_jitter, moves, ORDERS[int(order * len(ORDERS))])
        if jittered < augment.colour_jitter_probability
        else (),
        grayscale=grey < augment.grayscale_probability,
        blur_sigma=low + sigma * (high - low) if is_blurred else 0.0,
        blur_kernel=kernel if is_blurred else 0,
        solarize_threshold=augment.solarize_threshold if solarized < augment.solarize_probability else UNTOUCHED,
    )


def blur_kernel(augment: Augment, side: int) -> int:
    """Return the side of the kernel for a square: SimCLR's tenth (arXiv:2002.05709, appendix A), odd."""
    # Reflection at the edge needs a radius under the side.
    return min(augment.blur_kernel or max(3, side // 20 * 2 + 1), 2 * side - 1)


def taps_of(sigma: NDArray[np.float64], kernel: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return how many taps of a kernel weigh more than a thousandth of a level; the time of a blur goes with them."""
    return np.minimum(2 * np.ceil(5.3 * sigma).astype(np.int64) + 1, kernel)


def _jitter(
    strengths: Sequence[float], moves: Sequence[float], order: Sequence[int]
) -> tuple[tuple[Jitter, float], ...]:
    """Return the operations that have a strength, in their order, each factor drawn evenly as torchvision does."""
    return tuple(
        (JITTERS[which], MIDDLE[which] + (2 * moves[which] - 1) * strengths[which])
        for which in order
        if strengths[which]
    )
