"""Some patches of each picture, chosen at random as a function of (key, global position)."""

# B batch, L patches, C cells

import math

import numpy as np
from numpy.typing import NDArray

from headrace.pipeline.augment.philox import philox


def chosen_patches(positions: NDArray[np.int64], num_patches: int, number: int, *, key: int) -> NDArray[np.bool_]:
    """Return [B, L], True for `number` patches of each global position; every choice of so many is as likely."""
    return first_of(drawn_orders(positions, num_patches, key=key), number)


def drawn_orders(positions: NDArray[np.int64], num_patches: int, *, key: int) -> NDArray[np.int64]:
    """Return [B, L], a permutation of the patches for each global position.

    They stand in the order of `num_patches` random words, the lower place first where two are equal. Word w of a
    position is number w % 4 of Philox 4x64-10's block with the counter (w // 4, position, 0, 0).
    """
    block = np.arange(-(-num_patches // 4), dtype=np.uint64)
    low, high = np.broadcast_arrays(block, positions.astype(np.uint64)[:, None])
    words = philox(key, low, high).reshape(len(positions), 4 * len(block))
    return np.argsort(words[:, :num_patches], axis=1, kind="stable")


def first_of(order_BL: NDArray[np.int64], number: int) -> NDArray[np.bool_]:
    """Return [B, L], True for the first `number` of each permutation."""
    chosen_BL = np.zeros(order_BL.shape, np.bool_)
    np.put_along_axis(chosen_BL, order_BL[:, :number], values=True, axis=1)
    return chosen_BL


def over_tokens(chosen_BC: NDArray[np.bool_], *, tokens_per_side: int) -> NDArray[np.bool_]:
    """Return [B, L] for cells [B, C] of a square grid, each of `tokens_per_side` x `tokens_per_side` tokens."""
    side = math.isqrt(chosen_BC.shape[1])
    grid = chosen_BC.reshape(-1, side, side).repeat(tokens_per_side, axis=1).repeat(tokens_per_side, axis=2)
    return grid.reshape(len(grid), -1)
