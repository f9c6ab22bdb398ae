"""In which order the patches of a square picture are predicted.

An order is a permutation: its entry t is the patch, counted row by row, that stands at place t. Source: AIM,
arXiv:2401.08541, section 4 ("autoregressive pattern"); directions as Apple's training code has them.
"""

from collections.abc import Callable
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from headrace.shards.permutation import make_key

Order = Literal["raster", "spiral", "checkerboard", "random"]
Permutation = NDArray[np.int64]


def patch_order(order: Order, side: int, seed: int = 0) -> Permutation:
    """Return the patches of a grid of `side` x `side` in the order in which they stand; `seed` is for `random`."""
    return ORDERS[order](side, seed)


def _raster(side: int, _seed: int) -> Permutation:
    return np.arange(side * side)


def _spiral(side: int, _seed: int) -> Permutation:
    """From the middle outwards, clockwise, ending in the corner at the top left."""
    inwards, left = [], np.arange(side * side).reshape(side, side)
    while left.size:
        # Down the left edge; then what is left is turned, so that the next edge of the way inwards is the left one.
        inwards.append(left[:, 0])
        left = np.rot90(left[:, 1:], -1)
    return np.concatenate(inwards)[::-1].copy()


def _checkerboard(side: int, _seed: int) -> Permutation:
    """Every second patch row by row, that at the top left among them; then the others."""
    row, column = np.divmod(np.arange(side * side), side)
    return np.argsort((row + column) % 2, kind="stable")


def _random(side: int, seed: int) -> Permutation:
    """The same for every picture: patches by the size of the first words of Philox under the key of the seed."""
    words = np.random.Philox(key=make_key(seed, "order")).random_raw(side * side)
    return np.argsort(words, kind="stable")


ORDERS: dict[Order, Callable[[int, int], Permutation]] = {
    "raster": _raster,
    "spiral": _spiral,
    "checkerboard": _checkerboard,
    "random": _random,
}
