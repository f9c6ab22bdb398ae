"""Where the features of a fit come from: held in memory, read from a cache on disk, or made anew in every epoch.

All three give the same rows of the same held-out tenth; features are rounded to float16 in each.
"""

# B rows of this process, L tokens, D width, N places of the dataset

import json
from collections.abc import Iterator
from typing import Protocol, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from headrace.shards.permutation import make_key, permute
from headrace.train.evaluate.features import Features
from headrace.train.evaluate.fit import FitBatch
from headrace.train.evaluate.labels import Labels
from headrace.train.evaluate.probe_config import ProbeConfig
from headrace.train.parallel.ranks import Ranks

HOLDOUT = 0.1

Rows: TypeAlias = tuple[list[Tensor], NDArray[np.int64]]
"""Features of each set of blocks, and the places of the rows."""


class Feed(Protocol):
    """What a fit reads."""

    @property
    def steps_per_epoch(self) -> int:
        """Steps after which every sample has come once, about."""
        ...

    @property
    def num_samples(self) -> int:
        """Training samples that are used, with the held-out ones, without those that are known to be damaged."""
        ...

    def batches(self, first: int, steps: int) -> Iterator[FitBatch]:
        """Yield this process's part of the steps `first` .. `steps` - 1."""
        ...

    def held(self) -> Iterator[Rows]:
        """Yield this process's part of the held-out samples."""
        ...


class Store(Protocol):
    """Features that lie somewhere, by place."""

    @property
    def has_N(self) -> NDArray[np.bool_]:
        """Which places have features: the damaged ones have none. The same on all processes."""
        ...

    def own(self, place_B: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return those of the places that this process reads; each is one process's."""
        ...

    def read(self, place_B: NDArray[np.int64]) -> list[Tensor]:
        """Return float16 features of each set of blocks, on the CPU."""
        ...


def split_rows(samples: int, seed: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return the rows to fit on and the held-out rows, a tenth, both ascending.

    Raises ValueError for under ten samples.
    """
    if samples < 10:
        raise ValueError(f"a probe needs at least 10 training samples, got {samples}")
    order = permute(np.arange(samples), samples, make_key(seed, "probe holdout"))
    held = round(HOLDOUT * samples)
    return np.sort(order[held:]), np.sort(order[:held])


class MemoryStore:
    """Features of this process's share of a dataset, held."""

    def __init__(self, features: Features, samples: int, ranks: Ranks) -> None:
        self._features = features
        self._row_N = np.full(samples, -1, np.int64)
        self._row_N[features.place_N] = np.arange(len(features.place_N))
        self.has_N = np.zeros(samples, np.bool_)
        for text in ranks.gathered(json.dumps(_runs(features.place_N)), "features"):
            for start, stop in json.loads(text):
                self.has_N[start:stop] = True

    def own(self, place_B: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return the places of this process's share."""
        return place_B[self._row_N[place_B] >= 0]

    def read(self, place_B: NDArray[np.int64]) -> list[Tensor]:
        """Return float16 features of each set of blocks."""
        rows = torch.from_numpy(self._row_N[place_B])
        return [x[rows] for x in self._features.sets]


def _runs(place_N: NDArray[np.int64]) -> list[tuple[int, int]]:
    """Return ascending numbers as ranges: a share is one, but for its damaged samples."""
    if not len(place_N):
        return []
    cuts = np.flatnonzero(np.diff(place_N) != 1) + 1
    return [(int(run[0]), int(run[-1]) + 1) for run in np.split(place_N, cuts)]


class StoredFeed:
    """Batches out of a store: each epoch every row once, in an order of its own."""

    def __init__(self, store: Store, labels: Labels, config: ProbeConfig, ranks: Ranks) -> None:
        self._store, self._labels, self._config, self._ranks = store, labels, config, ranks
        usable_N = store.has_N & (labels.label_N >= 0)
        self._fit, self._held = (rows[usable_N[rows]] for rows in split_rows(len(labels), config.seed))
        self.num_samples = int(usable_N.sum())
        self.steps_per_epoch = max(1, len(self._fit) // config.images_per_batch)

    def batches(self, first: int, steps: int) -> Iterator[FitBatch]:
        """Yield this process's part of each step."""
        device, label_N = self._ranks.device, torch.from_numpy(self._labels.label_N)
        order, of_epoch = self._fit, -1
        for step in range(first, steps):
            epoch, number = divmod(step, self.steps_per_epoch)
            if epoch != of_epoch:
                key = make_key(self._config.seed, "probe order", epoch)
                order, of_epoch = self._fit[permute(np.arange(len(self._fit)), len(self._fit), key)], epoch
            place_B = self._store.own(order[number :: self.steps_per_epoch])
            sets = [x.to(device) for x in self._store.read(place_B)]
            yield FitBatch(sets, label_N[torch.from_numpy(place_B)].to(device))

    def held(self) -> Iterator[Rows]:
        """Yield this process's part of the held-out rows."""
        yield from stored_rows(self._store, self._held, self._config.images_per_forward)


def stored_rows(store: Store, place_N: NDArray[np.int64], images_per_batch: int) -> Iterator[Rows]:
    """Yield this process's part of some places, a batch at a time."""
    own = store.own(place_N)
    for start in range(0, len(own), images_per_batch):
        place_B = own[start : start + images_per_batch]
        yield store.read(place_B), place_B
