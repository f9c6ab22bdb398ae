"""RandAugment (Cubuk et al., arXiv:1909.13719): which operations a view goes through, as a function of the position.

The operations, their ranges and the spread of the magnitude are those of timm, whose `rand-m9-mstd0.5-inc1` the recipes
of MAE, SimMIM, BEiT and Swin name. The draws have a key of their own, so that no window and no colour depends on them.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from statistics import NormalDist
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from headrace.pipeline.augment.config import Interpolation, RandAugment
from headrace.pipeline.augment.crop import position_draws
from headrace.pipeline.augment.philox import draws_at

FULL_MAGNITUDE = 10.0
DRAWS_EACH = 4
"""Numbers an operation takes: which, whether, how strong, which way."""
MOST_DEGREES = 30.0
MOST_SHEAR = 0.3
MOST_ADDED = 110
ADDED_UNDER = 128
"""SolarizeAdd leaves values from this one on as they are."""
LEAST_FACTOR = 0.1
_NORMAL = NormalDist()
_LEAST_DRAW = 2.0**-54  # the inverse of the normal distribution has no value at 0

Affine = tuple[float, float, float, float, float, float]
"""Where the value of (x, y) is taken from: (a x + b y + c, d x + e y + f), as Pillow has it."""


class Operation(NamedTuple):
    """One operation of RandAugment on one picture."""

    name: str
    value: float
    """Its argument: degrees, bits, a threshold, levels, a factor, or a share of the side; 0 where it has none."""


def _degrees(part: float, sign: int) -> float:
    """Return the degrees of a rotation."""
    return sign * part * MOST_DEGREES


def _shear(part: float, sign: int) -> float:
    """Return how far a row or a column is moved for each beside it."""
    return sign * part * MOST_SHEAR


def _factor(part: float, _: int) -> float:
    """Return the factor of an enhancement: the more, the stronger; 0.5 of the magnitude is none."""
    return part * 1.8 + LEAST_FACTOR


def _increasing_factor(part: float, sign: int) -> float:
    """Return the factor of an enhancement that goes from 1 either way."""
    return max(LEAST_FACTOR, 1.0 + sign * part * 0.9)


def _bits(part: float, _: int) -> float:
    """Return how many bits of a level are kept."""
    return int(part * 4)


def _increasing_bits(part: float, _: int) -> float:
    """Return how many bits are kept where more magnitude keeps fewer."""
    return 4 - int(part * 4)


def _threshold(part: float, _: int) -> float:
    """Return the level from which on values are inverted."""
    return int(part * 256)


def _increasing_threshold(part: float, _: int) -> float:
    """Return the same where more magnitude inverts more."""
    return 256 - int(part * 256)


def _added(part: float, _: int) -> float:
    """Return the levels that dark values gain."""
    return int(part * MOST_ADDED)


def _nothing(_: float, __: int) -> float:
    """Return the argument of what takes none."""
    return 0.0


OPERATIONS: dict[str, tuple[Callable[[float, int], float], Callable[[float, int], float] | None]] = {
    "AutoContrast": (_nothing, None),
    "Equalize": (_nothing, None),
    "Invert": (_nothing, None),
    "Rotate": (_degrees, None),
    "Posterize": (_bits, _increasing_bits),
    "Solarize": (_threshold, _increasing_threshold),
    "SolarizeAdd": (_added, None),
    "Color": (_factor, _increasing_factor),
    "Contrast": (_factor, _increasing_factor),
    "Brightness": (_factor, _increasing_factor),
    "Sharpness": (_factor, _increasing_factor),
    "ShearX": (_shear, None),
    "ShearY": (_shear, None),
    "TranslateXRel": (_nothing, None),  # its range is a field
    "TranslateYRel": (_nothing, None),
}
"""By timm's names: the argument of a part (0 to 1) of the full magnitude and of a sign, and that of `increasing`."""
NAMES = tuple(OPERATIONS)
MOVES = ("Rotate", "ShearX", "ShearY", "TranslateXRel", "TranslateYRel")
"""Operations that move pixels; the others change values where they are."""


@dataclass(frozen=True, slots=True)
class RandDraw:
    """Draws the operations of one view."""

    key: int
    config: RandAugment
    interpolation: Interpolation
    """Of what moves pixels: that of the crop."""

    def __call__(self, position: int) -> tuple[Operation, ...]:
        """Return what is done at one position, in its order."""
        return choose_operations(self.config, position_draws(self.key, position, DRAWS_EACH * self.config.num_ops))

    def of_rows(
        self, position: NDArray[np.int64], valid: NDArray[np.bool_] | None = None
    ) -> list[tuple[Operation, ...]]:
        """Return what is done at each position; nothing in rows that are not valid."""
        draws = draws_at(self.key, position, DRAWS_EACH * self.config.num_ops).tolist()
        is_valid = [True] * len(draws) if valid is None else valid.tolist()
        return [choose_operations(self.config, row) if good else () for row, good in zip(draws, is_valid, strict=True)]


def choose_operations(config: RandAugment, draws: Sequence[float]) -> tuple[Operation, ...]:
    """Return the operations of one picture from its `draws`: each drawn from all, and left out or not."""
    return tuple(_operations(config, draws))


def _operations(config: RandAugment, draws: Sequence[float]) -> Iterator[Operation]:
    for first in range(0, len(draws), DRAWS_EACH):
        which, applied, strength, side = draws[first : first + DRAWS_EACH]
        if applied < config.probability:
            name = NAMES[int(which * len(NAMES))]
            yield Operation(name, argument(config, name, _magnitude(config, strength), -1 if side < 0.5 else 1))


def argument(config: RandAugment, name: str, magnitude: float, sign: int) -> float:
    """Return an operation's argument at a magnitude of 0 to 10; `sign` decides which way, where there are two."""
    part = magnitude / FULL_MAGNITUDE
    if name.startswith("Translate"):
        return sign * part * config.translate
    plain, increasing = OPERATIONS[name]
    return (increasing if config.increasing and increasing else plain)(part, sign)


def _magnitude(config: RandAugment, draw: float) -> float:
    if not config.magnitude_std:
        return config.magnitude
    drawn = config.magnitude + config.magnitude_std * _NORMAL.inv_cdf(max(draw, _LEAST_DRAW))
    return min(max(drawn, 0.0), FULL_MAGNITUDE)


def affine_of(operation: Operation, side: int) -> Affine | None:
    """Return where the pixels of a square come from; None where they stay.

    A rotation is rounded as Pillow's: to 15 digits, about the middle.
    """
    name, value = operation
    if name == "ShearX":
        return 1.0, value, 0.0, 0.0, 1.0, 0.0
    if name == "ShearY":
        return 1.0, 0.0, 0.0, value, 1.0, 0.0
    if name == "TranslateXRel":
        return 1.0, 0.0, value * side, 0.0, 1.0, 0.0
    if name == "TranslateYRel":
        return 1.0, 0.0, 0.0, 0.0, 1.0, value * side
    if value % 360.0 == 0:
        return None
    angle, middle = -math.radians(value % 360.0), side / 2
    cos, sin, back = round(math.cos(angle), 15), round(math.sin(angle), 15), round(-math.sin(angle), 15)
    across = cos * -middle + sin * -middle + 0.0 + middle
    down = back * -middle + cos * -middle + 0.0 + middle
    return cos, sin, across, back, cos, down
