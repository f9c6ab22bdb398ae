"""Pairs just beyond the distance are found where they are planted, and nothing within it is among them."""

import numpy as np
import pytest

from headrace.curation.report.shown.beyond import WORDS, Words, just_beyond

DISTANCE = 20


def with_flips(hashes: Words, flips: int, seed: int) -> Words:
    rng = np.random.default_rng(seed)
    bits = np.unpackbits(hashes.view(np.uint8), axis=1)
    for row in bits:
        row[rng.choice(256, flips, replace=False)] ^= 1
    return np.packbits(bits, axis=1).view(np.uint64)


@pytest.mark.parametrize("outside", [False, True])
def test_planted_pairs_just_beyond_the_distance_are_found(outside: bool) -> None:
    rng = np.random.default_rng(3)
    base = rng.integers(0, 2**64, (4000, WORDS), np.uint64)
    near, far = with_flips(base[:50], 24, 1), with_flips(base[50:100], 16, 2)
    words = np.concatenate([base, near, far])
    owners = np.arange(len(words))
    found = just_beyond(words, owners, DISTANCE, first_right=len(base) if outside else None)
    planted = {(number, len(base) + number) for number in range(50)}
    assert all(pair.distance == 24 for pair in found if (pair.left, pair.right) in planted)
    assert len(planted & {(pair.left, pair.right) for pair in found}) >= 45
    assert all(pair.distance > DISTANCE for pair in found)


def test_a_pair_that_is_near_by_one_of_its_hashes_is_not_beyond() -> None:
    rng = np.random.default_rng(5)
    one = rng.integers(0, 2**64, (1, WORDS), np.uint64)
    words = np.concatenate([one, with_flips(one, 24, 1), with_flips(one, 4, 2)])
    assert just_beyond(words, np.array([0, 1, 1]), DISTANCE) == []
    assert len(just_beyond(words[:2], np.array([0, 1]), DISTANCE)) == 1
