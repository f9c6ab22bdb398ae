"""Prefix lengths: for each global position the first draw of a generator of its own, all of a batch at once.

The numbers are those of `Generator(Philox(key=key, counter=position)).integers(1, num_patches)`, which older versions
made one by one: a run that goes on sees the prefixes it would have seen. Sources: Philox 4x64-10, Salmon et al.,
"Parallel random numbers: as easy as 1, 2, 3" (SC 2011); bounded draws, Lemire, arXiv:1805.10941; numpy's order of both.
"""

# B batch

import numpy as np
from numpy.typing import NDArray

from headrace.pipeline.augment.philox import philox
from headrace.shards.permutation import make_key

LOW, HALF = np.uint64(0xFFFFFFFF), np.uint64(32)


def prefix_lengths(positions: NDArray[np.int64], num_patches: int, seed: int) -> NDArray[np.int64]:
    """Return for each global position its prefix length, uniform on 1..num_patches-1 inclusive."""
    key = make_key(seed, "prefix")
    values = np.uint64(num_patches - 1)
    if values == 1:
        return np.ones(len(positions), np.int64)
    # A draw takes 32 bits, times the number of values; below `threshold` the low half would favour some values.
    threshold = (1 << 32) % int(values)
    drawn = np.zeros(len(positions), np.int64)
    pending = np.arange(len(positions))
    for bits in _words(positions, key):
        scaled = bits[pending] * values
        good = (scaled & LOW) >= threshold
        drawn[pending[good]] = 1 + (scaled[good] >> HALF).astype(np.int64)
        pending = pending[~good]
        if not pending.size:
            return drawn
    # Eight words that are all refused: once in 2 ** 190 positions at 256 patches.
    for place in pending:
        generator = np.random.Generator(np.random.Philox(key=key, counter=int(positions[place])))
        drawn[place] = generator.integers(1, num_patches)
    return drawn


def _words(positions: NDArray[np.int64], key: int) -> list[NDArray[np.uint64]]:
    """Return the first eight 32-bit words of each position's generator; numpy counts once before it draws."""
    first = positions.astype(np.uint64) + np.uint64(1)
    block = philox(key, first, np.zeros_like(first))
    return [half for word in range(4) for half in (block[:, word] & LOW, block[:, word] >> HALF)]
