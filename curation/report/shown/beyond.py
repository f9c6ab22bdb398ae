"""Pairs of kept pictures that lie just beyond a step's distance: what one more bit would have linked.

The hashes are cut into bands; those that are equal in a band are compared with their neighbours in it. Not every pair
is found, nor looked for: the job may have more kept rows than are compared (`MAX_HASHES`), and a page shows few.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

WORDS = 4
BITS = 256
MAX_HASHES = 1 << 20
MARGIN = 16
"""Bits beyond the distance in which pairs are looked for."""
MIN_BAND_BITS = 16
WINDOW = 24
"""Neighbours in a bucket that each hash is compared with: a bucket of one template costs no more."""
HELD = 4096
"""Pairs that are remembered, the nearest."""

Words = NDArray[np.uint64]
Indices = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Near:
    """Two rows, by the numbers they were given, and their distance."""

    left: int
    right: int
    distance: int


def just_beyond(words: Words, owners: Indices, distance: int, *, first_right: int | None = None) -> list[Near]:
    """Return pairs of owners more than `distance` bits apart, at most `MARGIN` more, nearest first.

    `words` is [n, 4], `owners` [n] whose hash each is. With `first_right`, pairs of an owner under it and one at or
    over it; without, of any two. A pair that is nearer by some of its hashes is not among them.
    """
    best: dict[tuple[int, int], int] = {}
    for left, right, apart in _candidates(words, owners, distance + MARGIN, first_right):
        low, high = np.minimum(left, right), np.maximum(left, right)
        order = np.lexsort((high, low, apart))[: 8 * HELD]
        for a, b, bits in zip(low[order].tolist(), high[order].tolist(), apart[order].tolist(), strict=True):
            best[a, b] = min(bits, best.get((a, b), BITS))
        if len(best) > HELD:
            # Those within the distance stay, so that another band cannot bring them back as farther.
            best = dict(sorted(best.items(), key=lambda item: (item[1], item[0]))[:HELD])
    order = np.argsort(owners, kind="stable")
    measured = [_measured(words, owners, order, pair) for pair, bits in best.items() if bits > distance]
    return sorted((pair for pair in measured if pair.distance > distance), key=_nearest_first)


def _nearest_first(pair: Near) -> tuple[int, int, int]:
    return pair.distance, pair.left, pair.right


def _measured(words: Words, owners: Indices, order: Indices, pair: tuple[int, int]) -> Near:
    """Return a pair with the least distance of any hash of one to any of the other."""
    mine, others = (
        words[order[np.searchsorted(owners, who, "left", order) : np.searchsorted(owners, who, "right", order)]]
        for who in pair
    )
    apart = np.bitwise_count(mine[:, None, :] ^ others[None, :, :]).sum(axis=2)
    return Near(*pair, int(apart.min()))


def _candidates(
    words: Words, owners: Indices, limit: int, first_right: int | None
) -> Iterator[tuple[Indices, Indices, Indices]]:
    """Yield (owner, owner, bits) of pairs that are equal in a band and at most `limit` bits apart, band by band."""
    if len(words) < 2:
        return
    size = max(MIN_BAND_BITS, int(np.ceil(np.log2(len(words)))))
    for start in range(0, BITS - size + 1, size):
        keys = _bits(words, start, size)
        order = np.lexsort((owners, keys))
        keys, held, whose = keys[order], words[order], owners[order]
        for shift in range(1, WINDOW + 1):
            same = np.flatnonzero(keys[:-shift] == keys[shift:])
            if not same.size:
                break
            left, right = whose[same], whose[same + shift]
            asked = left != right
            if first_right is not None:
                asked &= (left < first_right) != (right < first_right)
            same, left, right = same[asked], left[asked], right[asked]
            apart = np.bitwise_count(held[same] ^ held[same + shift]).sum(axis=1).astype(np.int64)
            near = apart <= limit
            if near.any():
                yield left[near], right[near], apart[near]


def _bits(words: Words, start: int, size: int) -> NDArray[np.uint64]:
    """Return `size` (at most 32) bits of each hash from bit `start` on, as a number."""
    word, shift = divmod(start, 64)
    found = words[:, word] >> np.uint64(shift)
    if shift + size > 64:
        found = found | (words[:, word + 1] << np.uint64(64 - shift))
    return np.asarray(found & np.uint64((1 << size) - 1), np.uint64)
