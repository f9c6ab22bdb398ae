"""Where each kept row goes: raw order, shuffled within windows of raw shards, cut into output shards.

A pure function of (seed, windows, which rows are kept). Output shards are cut across the ends of windows, so all but
the last are full, and one output shard may read from the raw shards of two windows. A target in bytes is met here too,
from the sizes of the images as fetched: what build makes of them is known too late for the places to hang on it.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np

from headrace.config import config_to_dict
from headrace.curation.select.hamming import Indices
from headrace.shards.permutation import make_key, permute

MIN_BYTES_PER_SHARD = 1 << 20
SIZE_COLUMN = "file_bytes"
"""Of the annotator `quality`: bytes of the image as fetched."""


@dataclass(frozen=True, kw_only=True, slots=True)
class PlacementConfig:
    """Where kept rows go. Select writes the place of each into the ledger; build only follows it."""

    samples_per_shard: int = 10_000
    """Samples in each output shard; only the last one is shorter."""
    bytes_per_shard: int = 0
    """Bytes of images, as fetched, that an output shard holds at most; it ends at samples_per_shard too. 0: no limit.

    An image that alone is larger has a shard of its own. Needs the annotator `quality`, which measures `file_bytes`.
    """
    shuffle_window: int = 16
    """Raw shards whose kept rows are shuffled together; the raw shards one output shard may read from."""

    def __post_init__(self) -> None:
        if not 1 <= self.samples_per_shard <= 1_000_000:
            raise ValueError(f"samples_per_shard must be 1..1000000, got {self.samples_per_shard}")
        if self.bytes_per_shard and self.bytes_per_shard < MIN_BYTES_PER_SHARD:
            raise ValueError(
                f"bytes_per_shard must be 0 (no limit) or at least {MIN_BYTES_PER_SHARD}, got {self.bytes_per_shard}"
            )
        if self.shuffle_window < 1:
            raise ValueError(f"shuffle_window must be at least 1 raw shard, got {self.shuffle_window}")

    def settings(self) -> dict[str, Any]:
        """Return the settings as digests of ledgers and datasets hold them: without keys that change nothing."""
        return _settings(self)


def _settings(config: Any) -> dict[str, Any]:
    return {name: value for name, value in config_to_dict(config).items() if name != "bytes_per_shard" or value}


@dataclass(frozen=True, kw_only=True, slots=True)
class Placement:
    """A `PlacementConfig` and the seed: raw order, shuffled within windows of raw shards, cut into output shards."""

    seed: int
    """The recipe's seed."""
    shuffle_window: int
    """Raw shards a window."""
    samples_per_shard: int
    """Rows an output shard, at most."""
    bytes_per_shard: int = 0
    """Bytes of images an output shard, at most; 0: no limit."""

    def settings(self) -> dict[str, Any]:
        """Return the settings as digests of ledgers hold them."""
        return _settings(self)

    @property
    def columns(self) -> tuple[str, ...]:
        """The columns of `rows` that the places follow from."""
        return (SIZE_COLUMN,) if self.bytes_per_shard else ()


def place_rows(kept: Indices, firsts: Indices, placement: Placement) -> Indices:
    """Return the place of each kept row (`kept` is sorted); `firsts`: the first row of each raw shard."""
    places = np.empty(kept.size, np.int64)
    windows = firsts[:: placement.shuffle_window]
    edges = np.r_[np.searchsorted(kept, windows), kept.size]
    for number, (start, stop) in enumerate(zip(edges[:-1].tolist(), edges[1:].tolist(), strict=True)):
        if stop > start:
            key = make_key(placement.seed, "build", number)
            places[start:stop] = permute(np.arange(stop - start, dtype=np.int64), stop - start, key) + start
    return places


def cut_by_bytes(places: Indices, sizes: Indices, placement: Placement) -> Indices:
    """Return the places of shards that end at a number of bytes, or of samples; `sizes`: bytes of each row.

    Such a place is (shard * samples_per_shard + index), so that it is taken apart as any other.
    """
    order = np.argsort(places)
    ends = np.cumsum(sizes[order])
    cut = np.empty(places.size, np.int64)
    shard, start, before = 0, 0, 0
    while start < places.size:
        fits = int(np.searchsorted(ends, before + placement.bytes_per_shard, side="right"))
        stop = min(max(fits, start + 1), start + placement.samples_per_shard)
        cut[order[start:stop]] = shard * placement.samples_per_shard + np.arange(stop - start)
        shard, start, before = shard + 1, stop, int(ends[stop - 1])
    return cut
