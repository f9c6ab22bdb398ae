"""Some patches of each picture, chosen at random as a function of (key, global position)."""

# B batch, L patches

import numpy as np
from numpy.typing import NDArray

from headrace.pipeline.augment.philox import philox


def chosen_patches(positions: NDArray[np.int64], num_patches: int, number: int, *, key: int) -> NDArray[np.bool_]:
    """Return [B, L], True for `number` patches of each global position; every choice of so many is as likely.

    They are those with the smallest of `num_patches` random words, the lower place first where two are equal. Word w
    of a position is number w % 4 of Philox 4x64-10's block with the counter (w // 4, position, 0, 0).
    """
    block = np.arange(-(-num_patches // 4), dtype=np.uint64)
    low, high = np.broadcast_arrays(block, positions.astype(np.uint64)[:, None])
    words = philox(key, low, high).reshape(len(positions), 4 * len(block))
    chosen = np.argsort(words[:, :num_patches], axis=1, kind="stable")[:, :number]
    chosen_BL = np.zeros((len(positions), num_patches), np.bool_)
    np.put_along_axis(chosen_BL, chosen, values=True, axis=1)
    return chosen_BL
