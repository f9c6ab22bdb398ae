"""Promises of the middle of a group: what was done to one copy alone is seen."""

import numpy as np
import pytest

from headrace.curation.select import centre
from headrace.curation.select.centre import bits_apart


def test_the_row_that_the_others_were_made_of_is_nearest(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    originals = rng.integers(0, 256, (3, 32), np.uint8)
    groups = []
    for original in originals:
        copies = np.unpackbits(np.repeat(original[None], 4, axis=0), axis=1)
        for number, copy in enumerate(copies[1:], start=1):
            copy[rng.choice(256, 5 * number, replace=False)] ^= 1
        groups.append(np.packbits(copies, axis=1))
    labels = np.repeat([3, 5, 9], 4)
    whole = bits_apart(np.concatenate(groups), labels)
    apart = whole.reshape(3, 4)
    assert (apart.argmin(axis=1) == 0).all()
    assert (apart[:, 3] > apart[:, 0] + 8).all()
    # Read in pieces that cut groups it is the same.
    monkeypatch.setattr(centre, "ROWS_AT_A_TIME", 3)
    assert (bits_apart(np.concatenate(groups), labels) == whole).all()
    assert bits_apart(np.zeros((0, 32), np.uint8), labels[:0]).size == 0
