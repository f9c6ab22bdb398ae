"""Operations of RandAugment that are one table of levels, whatever the picture: the same on the host and a device."""

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from headrace.pipeline.augment.rand_augment import ADDED_UNDER, Operation

Table = NDArray[np.uint8]

LEVELS = np.arange(256)


def level_table(operation: Operation) -> Table | None:
    """Return the level that each of 256 becomes; None where it depends on the picture, or on where a value stands."""
    make = TABLES.get(operation.name)
    return None if make is None else make(operation.value)


def _bytes(levels: NDArray[Any]) -> Table:
    return levels.astype(np.uint8)


def _invert(_: float) -> Table:
    return _bytes(255 - LEVELS)


def _posterize(bits: float) -> Table:
    # Pillow refuses 0 bits, which timm asks for at the full magnitude: black, as in Google's code.
    return _bytes(np.bitwise_and(LEVELS, 256 - 2 ** (8 - int(bits))))


def _solarize(threshold: float) -> Table:
    return _bytes(np.where(threshold <= LEVELS, 255 - LEVELS, LEVELS))


def _solarize_add(added: float) -> Table:
    return _bytes(np.where(LEVELS < ADDED_UNDER, np.minimum(LEVELS + int(added), 255), LEVELS))


def _brightness(factor: float) -> Table:
    levels = LEVELS.astype(np.float32) * np.float32(factor)
    return _bytes(np.minimum(levels, np.float32(255)))


TABLES: dict[str, Callable[[float], Table]] = {
    "Invert": _invert,
    "Posterize": _posterize,
    "Solarize": _solarize,
    "SolarizeAdd": _solarize_add,
    "Brightness": _brightness,
}
