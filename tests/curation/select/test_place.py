"""Places with a target in bytes: no shard over it but for one image alone."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from headrace.curation.select.place import Placement, PlacementConfig, cut_by_bytes, place_rows
from headrace.curation.select.write import Placed


def placed(sizes: list[int | None], **settings: Any) -> tuple[list[tuple[int, int]], int]:
    """Return (shard, index) of each row in its order, and the number of shards."""
    placement = Placement(seed=3, shuffle_window=2, **settings)
    rows = np.arange(len(sizes))
    places = place_rows(rows, rows[::5], placement)
    if placement.bytes_per_shard:
        places = cut_by_bytes(places, np.array([size or 0 for size in sizes], np.int64), placement)
    found = Placed(rows=rows, places=places, samples_per_shard=placement.samples_per_shard)
    return [divmod(value, placement.samples_per_shard) for value in places.tolist()], found.num_shards


@given(st.lists(st.one_of(st.none(), st.integers(0, 60)), min_size=1, max_size=80), st.integers(1, 9))
def test_a_shard_ends_before_the_image_that_would_be_too_much(sizes: list[int | None], most: int) -> None:
    plain, _ = placed(sizes, samples_per_shard=1000)
    order = sorted(range(len(sizes)), key=lambda row: plain[row])
    expected: dict[int, tuple[int, int]] = {}
    shard, index, held = 0, 0, 0
    for row in order:
        size = sizes[row] or 0
        if index and (index == most or held + size > 100):
            shard, index, held = shard + 1, 0, 0
        expected[row] = (shard, index)
        index, held = index + 1, held + size
    got, shards = placed(sizes, samples_per_shard=most, bytes_per_shard=100)
    assert got == [expected[row] for row in range(len(sizes))]
    assert shards == shard + 1


def test_a_target_that_is_off_leaves_the_digests_of_ledgers_as_they_were() -> None:
    assert PlacementConfig().settings() == {"samples_per_shard": 10_000, "shuffle_window": 16}
    assert PlacementConfig(bytes_per_shard=1 << 30).settings()["bytes_per_shard"] == 1 << 30
    with pytest.raises(ValueError, match="bytes_per_shard must be 0"):
        PlacementConfig(bytes_per_shard=7)
