"""The numbers of many positions at once: those of `crop.position_draws`, to the bit, without a generator for each.

Setting numpy's generator takes 4 microseconds a position, in one thread, whatever is drawn; a batch that goes to a GPU
has thousands.
"""

import numpy as np
from numpy.typing import NDArray

from headrace.pipeline.augment.crop import BLOCKS_PER_POSITION

Words = NDArray[np.uint64]

# Philox4x64-10 (Salmon et al., 2011, table 2 and section 3.1): multipliers, and the constants that raise the key.
MULTIPLIERS = (0xD2E7470EE14C6C93, 0xCA5A826395121157)
WEYL = (0x9E3779B97F4A7C15, 0xBB67AE8584CAA73B)
ROUNDS = 10

_LOW, _HALF = np.uint64(0xFFFFFFFF), np.uint64(32)


def draws_at(key: int, position: NDArray[np.int64], number: int) -> NDArray[np.float64]:
    """Return [B, number] numbers in [0, 1), at most 64 for each position."""
    blocks = -(-number // 4)
    at = position.astype(np.uint64)[:, None]
    # numpy counts up before it draws, so the first block is 1. 16 * position may need more than 64 bits.
    low = np.add(at * np.uint64(BLOCKS_PER_POSITION), np.arange(1, blocks + 1, dtype=np.uint64), dtype=np.uint64)
    high = np.broadcast_to(at >> np.uint64(60), low.shape)
    words = philox(key, low, high).reshape(len(position), 4 * blocks)[:, :number]
    return (words >> np.uint64(11)).astype(np.float64) * 2.0**-53


def philox(key: int, low: Words, high: Words) -> Words:
    """Return the block of four words of each counter, [..., 4]; `low` and `high` are a counter's first two words."""
    first, second, third, fourth = low, high, np.zeros_like(low), np.zeros_like(low)
    keys = [key, 0]
    for _ in range(ROUNDS):
        (high_1, low_1), (high_3, low_3) = _product(first, MULTIPLIERS[0]), _product(third, MULTIPLIERS[1])
        first, second = high_3 ^ second ^ np.uint64(keys[0]), low_3
        third, fourth = high_1 ^ fourth ^ np.uint64(keys[1]), low_1
        keys = [(word + weyl) % 2**64 for word, weyl in zip(keys, WEYL, strict=True)]
    return np.stack([first, second, third, fourth], axis=-1)


def _product(words: Words, multiplier: int) -> tuple[Words, Words]:
    """Return the high and the low half of a product of 128 bits, from its four products of 32-bit halves."""
    top, bottom = np.uint64(multiplier >> 32), np.uint64(multiplier & 0xFFFFFFFF)
    over, under = words >> _HALF, words & _LOW
    lowest, middle = under * bottom, over * bottom
    carried = middle + (lowest >> _HALF)
    crossed = under * top + (carried & _LOW)
    return over * top + (carried >> _HALF) + (crossed >> _HALF), (crossed << _HALF) | (lowest & _LOW)
