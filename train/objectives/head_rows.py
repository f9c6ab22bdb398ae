"""Which outputs a head that sees single tokens has to look at, in few lengths."""

# B batch, L patches, N rows of a batch's tokens, batch-major

import numpy as np
from numpy.typing import NDArray


def predicting_rows(prefix_B: NDArray[np.int64], valid_B: NDArray[np.bool_], num_patches: int) -> NDArray[np.int64]:
    """Return the rows of all tokens whose output predicts a patch behind its sample's prefix."""
    place_L = np.arange(num_patches)
    counts_BL = (place_L >= prefix_B[:, None] - 1) & (place_L < num_patches - 1) & valid_B[:, None]
    return np.flatnonzero(counts_BL)


def padded(rows_N: NDArray[np.int64], num_tokens: int) -> tuple[NDArray[np.int64], int]:
    """Return the rows followed by zeros up to one of about 32 lengths, and how many rows there were.

    A new length every step makes allocators keep one block for each: a run on a CPU grew by 3 GB in 800 steps.
    """
    step = max(1, num_tokens // 32)
    return np.pad(rows_N, (0, -len(rows_N) % step)), len(rows_N)


def padded_with_others(rows_N: NDArray[np.int64], num_tokens: int) -> tuple[NDArray[np.int64], int]:
    """Return the rows followed by others, distinct, up to one of the lengths of `padded`, and how many rows there were.

    Distinct, as `take_distinct_rows` wants them. A few lengths only, so that memory is used again; one compiled graph
    serves them all.
    """
    others = np.ones(num_tokens, np.bool_)
    others[rows_N] = False
    length = len(padded(rows_N, num_tokens)[0])
    return np.concatenate([rows_N, np.flatnonzero(others)[: length - len(rows_N)]]), len(rows_N)
