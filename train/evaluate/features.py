"""Features of a labelled dataset, a batch at a time or all of them in memory.

A pass gives every sample once, in the order of the index. Rows carry their place in it, so features of two trunks over
one dataset stand row by row beside each other, and a part of the pass can be done alone. Damaged samples are left out,
counted and named.
"""

# B batch, L patches, D width, N samples

import contextlib
import logging
import math
from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from headrace.pipeline import Batch, Stream, open_stream
from headrace.pipeline.augment.config import Interpolation
from headrace.pipeline.collate import Column
from headrace.shards.dataset import FAST_COLUMNS, Dataset
from headrace.text import shown
from headrace.train.evaluate.labels import classes_of
from headrace.train.evaluate.passes import Crop, plain_mixture
from headrace.train.evaluate.trunk import END, FrozenTrunk
from headrace.train.models.encoder import EncoderShape
from headrace.train.parallel.ranks import ALONE, Ranks

IMAGES_PER_BATCH = 256
NAMED_DAMAGED = 5
"""So many damaged samples are named in the log."""

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True, slots=True)
class FeaturesConfig:
    """Which features of how many samples."""

    layers: tuple[int, ...]
    """Blocks (0-based) whose outputs are averaged."""
    more_layers: tuple[tuple[int, ...], ...] = ()
    """Further sets of blocks, each a mean of its own from the same pass of the trunk."""
    pooled: bool = False
    """One row an image: the average over its tokens, or the class token of a trunk that is read by one."""
    samples: int = 0
    """The first of the dataset; 0 = all."""
    memory_bytes: int = 8 << 30
    """Most that they may take where they are held in memory."""
    crop: Crop = "center"
    """What is seen of a picture."""
    center_fraction: float = 1.0
    """Side of the centre crop as a share of the short side."""
    interpolation: Interpolation = "bilinear"
    """How a picture is resized."""
    images_per_batch: int = IMAGES_PER_BATCH
    """Images that go through the trunk at once, of one process."""
    columns: tuple[str, ...] = ("label",)
    """Columns of the index that come with the rows."""

    def __post_init__(self) -> None:
        if END in self.layer_sets and not self.pooled:
            raise ValueError("layers end is one row an image, and here its tokens are read: take blocks, such as last1")

    @property
    def layer_sets(self) -> tuple[tuple[int, ...], ...]:
        """All sets of blocks."""
        return (self.layers, *self.more_layers)

    def row_shape(self, trunk: EncoderShape) -> tuple[int, ...]:
        """Return the shape of one image's features under one set of blocks: [L, D], or [D] pooled."""
        return (trunk.width,) if self.pooled else (trunk.num_patches, trunk.width)

    def num_bytes(self, trunk: EncoderShape, samples: int) -> int:
        """Return what the float16 features of so many samples take."""
        return 2 * samples * len(self.layer_sets) * math.prod(self.row_shape(trunk))


@dataclass(frozen=True, slots=True)
class FeatureRows:
    """One batch of a pass, without padding and damaged samples."""

    place_B: NDArray[np.int64]
    """Place of each row in the dataset, ascending."""
    sets: tuple[Tensor, ...]
    """For each set of blocks [B, L, D], or pooled [B, D]; float32 on the trunk's device."""
    key: list[str]
    columns: dict[str, Column]
    """Columns that were asked for."""
    url: str

    @property
    def tokens(self) -> Tensor:
        """The features of the first set of blocks."""
        return self.sets[0]

    @property
    def label_B(self) -> Tensor:
        """The column label as classes, int64 on the CPU. Raises ValueError for what is none."""
        return torch.from_numpy(classes_of(self.columns["label"], self.url))


@dataclass(frozen=True, kw_only=True, slots=True)
class Features:
    """One dataset seen by one trunk."""

    sets: tuple[Tensor, ...]
    """For each set of blocks float16 [N, L, D] on the CPU, the mean of their outputs; [N, D] if pooled."""
    label_N: Tensor
    """int64."""
    place_N: NDArray[np.int64] = field(default_factory=lambda: np.empty(0, np.int64))
    """Place of each row in the dataset."""

    @property
    def tokens_NLD(self) -> Tensor:
        """The features of the first set of blocks."""
        return self.sets[0]


def iterate_features(
    trunk: FrozenTrunk,
    url: str,
    config: FeaturesConfig,
    ranks: Ranks = ALONE,
    *,
    part: range | None = None,
    only: NDArray[np.bool_] | None = None,
) -> Iterator[FeatureRows]:
    """Yield this process's share of a dataset's features; one batch is held, and what the stream has ready.

    Each rank gets consecutive places, so all together every one once. `part` are places to do instead of a share:
    it begins at a multiple of `images_per_batch`. Only places where `only` [N] is true go
    through the trunk. Damaged samples are left out with a warning. Raises ValueError for
    features that are not finite, and where every sample is damaged.
    """
    stream = open_pass(url, trunk.encoder.shape, config)
    with contextlib.closing(stream):
        todo = part if part is not None else share_of(num_wanted(stream, config), config.images_per_batch, ranks)
        if not todo:
            return
        wanted = np.arange(todo.start, todo.stop)
        wanted = wanted if only is None else wanted[only[wanted]]
        if todo.start:
            stream.load_state_dict(stream.state_at(todo.start))
        damaged: list[int] = []
        for batch in stream:
            inside = np.isin(batch.position, wanted, assume_unique=True)
            chosen = batch.valid & inside
            damaged += batch.position[inside & ~batch.valid].tolist()
            if chosen.any():
                yield _rows(trunk, batch, chosen, config=config, url=url)
            if int(batch.position[-1]) + 1 >= todo.stop:
                break
        if damaged:
            _say_damaged(stream.sources[0].dataset, damaged, len(wanted))


def share_of(total: int, images_per_batch: int, ranks: Ranks) -> range:
    """Return the places of one rank: whole batches, the last ones' fewer."""
    batches = -(-total // images_per_batch)
    first, last = (batches * rank // ranks.size * images_per_batch for rank in (ranks.rank, ranks.rank + 1))
    return range(min(first, total), min(last, total))


def open_pass(url: str, trunk: EncoderShape, config: FeaturesConfig) -> Stream:
    """Open the finite pass over all of a dataset; nothing is read yet. Raises ValueError if a column is missing."""
    mixture = plain_mixture(
        url,
        trunk.image_size,
        crop=config.crop,
        center_fraction=config.center_fraction,
        interpolation=config.interpolation,
    )
    return open_stream(mixture, global_batch=config.images_per_batch, columns=config.columns, once=True)


def num_wanted(stream: Stream, config: FeaturesConfig) -> int:
    """Return how many places a pass is asked for."""
    total = stream.sources[0].num_samples
    return min(config.samples, total) if config.samples else total


def _rows(
    trunk: FrozenTrunk, batch: Batch, chosen: NDArray[np.bool_], *, config: FeaturesConfig, url: str
) -> FeatureRows:
    rows = np.flatnonzero(chosen)
    sets = tuple(trunk.means(batch.images[chosen], config.layer_sets, pooled=config.pooled))
    if not all(bool(torch.isfinite(x).all()) for x in sets):
        raise ValueError(f"{url}: features are not finite; the checkpoint {trunk.path} has diverged")
    return FeatureRows(
        place_B=batch.position[chosen],
        sets=sets,
        key=[batch.key[row] for row in rows],
        columns={
            name: column[chosen] if isinstance(column, np.ndarray) else [column[row] for row in rows]
            for name, column in batch.columns.items()
        },
        url=url,
    )


def _say_damaged(dataset: Dataset, damaged: list[int], wanted: int) -> None:
    named = ", ".join(map(shown, keys_at(dataset, np.array(damaged[:NAMED_DAMAGED]))))
    more = ", ..." if len(damaged) > NAMED_DAMAGED else ""
    if len(damaged) == wanted:
        raise ValueError(f"{dataset.url}: every one of its {wanted} samples is damaged: {named}{more}")
    log.warning("%s: %d damaged samples of %d are left out: %s%s", dataset.url, len(damaged), wanted, named, more)


def keys_at(dataset: Dataset, place_B: NDArray[np.int64]) -> list[str]:
    """Return the keys of some places of the dataset, '' for -1."""
    ends = np.cumsum(dataset.shards.num_samples)
    shard_B = np.searchsorted(ends, place_B, side="right")
    keys = [""] * len(place_B)
    for shard in np.unique(shard_B[place_B >= 0]).tolist():
        column = dataset.index_part(shard, FAST_COLUMNS)[0].column("key")
        start = int(ends[shard]) - int(dataset.shards.num_samples[shard])
        for row in np.flatnonzero((shard_B == shard) & (place_B >= 0)):
            keys[row] = column[int(place_B[row]) - start].as_py()
    return keys


def dataset_features(trunk: FrozenTrunk, url: str, *, config: FeaturesConfig, ranks: Ranks = ALONE) -> Features:
    """Return the features of this process's share of a labelled dataset, in memory.

    Raises ValueError for a sample without label, and where the features would not fit into `memory_bytes`.
    """
    shape = trunk.encoder.shape
    with contextlib.closing(open_pass(url, shape, config)) as stream:
        check_memory(shape, url, num_wanted(stream, config), config)
        todo = share_of(num_wanted(stream, config), config.images_per_batch, ranks)
    row_shape = config.row_shape(shape)
    sets = [torch.empty((len(todo), *row_shape), dtype=torch.float16) for _ in config.layer_sets]
    label_N = torch.full((len(todo),), -1)
    for rows in iterate_features(trunk, url, config, part=todo):
        place = torch.from_numpy(rows.place_B - todo.start)
        label_N[place] = rows.label_B
        for held, x in zip(sets, rows.sets, strict=True):
            held[place] = as_half(x, url).cpu()
    whole_N = label_N >= 0
    place_N = np.arange(todo.start, todo.stop)
    if not bool(whole_N.all()):
        # Their rows were never written: memory that was not set must not be taken for features.
        sets, label_N, place_N = [x[whole_N] for x in sets], label_N[whole_N], place_N[whole_N.numpy()]
    return Features(sets=tuple(sets), label_N=label_N, place_N=place_N)


def as_half(x: Tensor, url: str) -> Tensor:
    """Return features in float16. Raises ValueError where they are too large for it."""
    half = x.half()
    if not bool(torch.isfinite(half).all()):
        raise ValueError(f"{url}: features are not finite in float16; the checkpoint has diverged")
    return half


def check_features(trunk: EncoderShape, url: str, config: FeaturesConfig) -> tuple[int, ...]:
    """Return [N, L, D] (pooled [N, D]) of a dataset's features, from its manifest and one index.

    Raises ValueError if it is not there, has no column of labels, or its features would not fit into `memory_bytes`.
    """
    with contextlib.closing(open_pass(url, trunk, config)) as stream:
        wanted = num_wanted(stream, config)
    check_memory(trunk, url, wanted, config)
    return (wanted, *config.row_shape(trunk))


def check_memory(trunk: EncoderShape, url: str, wanted: int, config: FeaturesConfig) -> None:
    """Raise ValueError if so many features would not fit into `memory_bytes`."""
    need = config.num_bytes(trunk, wanted)
    if need > config.memory_bytes:
        raise ValueError(
            f"{url}: features of {wanted} samples take {need} bytes, over memory_bytes {config.memory_bytes}; use fewer"
        )


def read_labels(column: Column, chosen: NDArray[np.bool_], url: str) -> Tensor:
    """Return the labels of the chosen rows as classes. Raises ValueError for what is none."""
    return torch.from_numpy(classes_of(column[chosen] if isinstance(column, np.ndarray) else column, url))
