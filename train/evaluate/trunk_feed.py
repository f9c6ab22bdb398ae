"""Batches of a shuffled stream that go through the trunk in every epoch: nothing is kept, and crops may differ.

A batch is what the stream gives at some consecutive positions, without held-out samples. So batches hold the images
asked for on average, and the same ones for any number of processes.
"""

# B rows of this process, N places of the dataset

import contextlib
import logging
import math
from collections.abc import Iterator

import numpy as np
import torch
from numpy.typing import NDArray

from headrace.pipeline import Batch, Mixture, Source, Stream, open_stream
from headrace.train.evaluate.features import FeaturesConfig, as_half, iterate_features, keys_at
from headrace.train.evaluate.feeds import Rows, split_rows
from headrace.train.evaluate.fit import FitBatch
from headrace.train.evaluate.labels import Labels
from headrace.train.evaluate.passes import plain_mixture
from headrace.train.evaluate.probe_config import AUGMENTS, ProbeConfig
from headrace.train.evaluate.trunk import FrozenTrunk
from headrace.train.parallel.ranks import Ranks

LANES = 16
# Small, so that a window of a dataset that is sorted by class holds many of them.
CHUNK_SAMPLES = 8
SHUFFLE_WINDOW = 8192
WINDOW_BYTES = 1 << 30
"""Compressed bytes that the shuffle windows of all processes may take together."""
NOWHERE = -1

log = logging.getLogger(__name__)


class TrunkFeed:
    """Fit batches of a stream through a trunk."""

    def __init__(
        self, trunk: FrozenTrunk, labels: Labels, config: ProbeConfig, *, features: FeaturesConfig, ranks: Ranks
    ) -> None:
        self._trunk, self._labels, self._config, self._ranks = trunk, labels, config, ranks
        self._features = features
        self._mixture, self._total = shuffled_mixture(labels.url, trunk.image_size, config)
        usable_N = labels.label_N >= 0
        self.num_samples = int(usable_N.sum())
        self._fit_N, self._held_N = (
            _mask(rows, len(labels)) & usable_N for rows in split_rows(len(labels), config.seed)
        )
        self._positions, self._batches = positions_per_step(
            config.images_per_batch, used=int(self._fit_N.sum()), total=self._total, lanes=self._mixture.lanes
        )
        self.steps_per_epoch = max(1, round(self._total / (self._positions * self._batches)))
        if len(labels) < self._total / 2 and ranks.is_first:
            used = f"{len(labels):,} of {self._total:,}"
            log.warning("%s: all samples are decoded in every epoch to use %s of them", labels.url, used)

    def batches(self, first: int, steps: int) -> Iterator[FitBatch]:
        """Yield this process's part of each step."""
        stream = open_stream(
            self._mixture,
            global_batch=self._positions,
            rank=self._ranks.rank,
            world_size=self._ranks.size,
            columns=("label",),
        )
        with contextlib.closing(stream):
            if first:
                stream.load_state_dict(stream.state_at(first * self._batches * self._positions))
            for step in range(first, steps):
                parts = [self._part(stream, step * self._batches + number) for number in range(self._batches)]
                sets = zip(*(part.sets for part in parts), strict=True)
                yield FitBatch([torch.cat(of_set) for of_set in sets], torch.cat([part.label_B for part in parts]))

    def _part(self, stream: Stream, number: int) -> FitBatch:
        """Return the rows of the stream's next batch that are fitted on; it is number `number`."""
        batch = next(stream)
        place_B = places_of(stream, number, batch)
        inside = np.flatnonzero((place_B >= 0) & (place_B < len(self._fit_N)))
        chosen = inside[self._fit_N[place_B[inside]]]
        size, shape = self._config.images_per_forward, self._trunk.encoder.shape
        nothing = torch.empty((0, *self._features.row_shape(shape)), dtype=torch.float16, device=self._ranks.device)
        parts = [[nothing] for _ in self._features.layer_sets]
        for start in range(0, len(chosen), size):
            images = batch.images[chosen[start : start + size]]
            means = self._trunk.means(images, self._features.layer_sets, pooled=self._features.pooled)
            for part, x in zip(parts, means, strict=True):
                part.append(as_half(x, self._labels.url))
        label_B = torch.from_numpy(self._labels.label_N[place_B[chosen]]).to(self._ranks.device)
        return FitBatch([torch.cat(part) for part in parts], label_B)

    def held(self) -> Iterator[Rows]:
        """Yield this process's part of the held-out samples, as they are judged: without augmentation."""
        yield from streamed_rows(self._trunk, self._labels, self._features, self._ranks, only=self._held_N)


def streamed_rows(
    trunk: FrozenTrunk,
    labels: Labels,
    features: FeaturesConfig,
    ranks: Ranks,
    *,
    only: NDArray[np.bool_] | None = None,
) -> Iterator[Rows]:
    """Yield this process's part of a dataset's features, through the trunk; those places that have a label."""
    usable_N = labels.label_N >= 0
    wanted_N = usable_N if only is None else usable_N & only
    for rows in iterate_features(trunk, labels.url, features, ranks, only=wanted_N):
        yield [as_half(x, labels.url) for x in rows.sets], rows.place_B


def shuffled_mixture(url: str, image_size: int, config: ProbeConfig) -> tuple[Mixture, int]:
    """Return the stream of a fit, augmented as the config says, and the number of samples of its dataset.

    The window holds compressed pictures, at most `WINDOW_BYTES`.
    """
    with contextlib.closing(open_stream(plain_mixture(url, image_size), global_batch=1, once=True)) as stream:
        total, mean_bytes = stream.sources[0].num_samples, stream.sources[0].mean_bytes
    lanes = 1 << (min(LANES, total).bit_length() - 1)
    window = max(lanes * CHUNK_SAMPLES, min(SHUFFLE_WINDOW, WINDOW_BYTES // mean_bytes))
    source = Source(name="data", url=url, shuffle_window=window, chunk_samples=CHUNK_SAMPLES)
    plain = plain_mixture(
        url,
        image_size,
        crop=config.crop,
        center_fraction=config.center_fraction,
        interpolation=config.interpolation,
    )
    mixture = Mixture(
        seed=config.seed,
        image_size=image_size,
        lanes=lanes,
        sources=(source,),
        augment=AUGMENTS[config.augment] or plain.augment,
    )
    return mixture, total


def positions_per_step(images: int, *, used: int, total: int, lanes: int) -> tuple[int, int]:
    """Return (positions, batches) of the stream that together hold `images` samples that are used.

    Positions are whole rows of lanes, and in one batch at most twice as many as images: of 5,000 samples among a
    million a step goes through many batches, and holds one.
    """
    wanted = min(images * total / max(1, used), total)
    batches = math.ceil(wanted / (2 * images))
    return max(1, round(wanted / batches / lanes)) * lanes, batches


def places_of(stream: Stream, number: int, batch: Batch) -> NDArray[np.int64]:
    """Return the place in the dataset of each row of the stream's batch `number`, -1 where another stands in for it."""
    place_B: NDArray[np.int64] = np.where(batch.valid, stream.plan.batch(number).placed.sample, NOWHERE)
    if batch.num_replaced:  # by which, the batch does not say; it may be a held-out sample
        dataset = stream.sources[0].dataset
        keys = keys_at(dataset, place_B)
        place_B[[key != mine for key, mine in zip(keys, batch.key, strict=True)]] = NOWHERE
    return place_B


def _mask(rows: NDArray[np.int64], size: int) -> NDArray[np.bool_]:
    mask_N = np.zeros(size, np.bool_)
    mask_N[rows] = True
    return mask_N
