"""What the datasets of a run must hold, looked at before the first step.

A stream finds a missing caption only when its sample comes; a dataset without any would be trained on for days.
"""

import logging
from collections.abc import Sequence

import numpy as np
import pyarrow as pa

from headrace.pipeline import Stream
from headrace.pipeline.catalog import LABELS, open_source
from headrace.pipeline.collate import Column, collate, collate_column
from headrace.pipeline.errors import SampleError
from headrace.pipeline.labels import LABEL, LabelMap, Labels
from headrace.shards.dataset import Dataset, open_dataset
from headrace.text import shown
from headrace.train.config import RunConfig
from headrace.train.objectives.objective import Objective, RowError

MAX_SHARDS = 64
"""Indexes of one dataset that are read; of more shards, so many spread evenly."""

log = logging.getLogger(__name__)


def check_sources(objective: Objective, config: RunConfig) -> None:
    """Raise ValueError naming a dataset of the run with nothing to train on, or a sample that can never be right."""
    if not objective.missing:
        return
    for source in config.mixture.sources:
        dataset = open_source(source)
        _check(f"source {source.name!r}", dataset, objective, _remap(source.labels, source.name, dataset))
    if config.validation is not None:
        dataset = open_dataset(config.validation.dataset)
        remap = _remap(config.validation.labels, "validation", dataset)
        _check("validation.dataset", dataset, objective, remap)


def check_length(stream: Stream, config: RunConfig) -> None:
    """Raise ValueError if every source has come to its end (`repeat`) before the last step."""
    images = config.total_steps * config.global_batch
    given = sum(stream.plan.given(images))
    if given < images:
        raise ValueError(
            f"the mixture ends after step {given // config.global_batch:,} of {config.total_steps:,}: every source "
            "has come to its end (repeat); lower steps, or leave `repeat` out of a source"
        )


def check_size(stream: Stream, objective: Objective) -> None:
    """Raise ValueError if the datasets of a stream hold fewer pictures than the objective makes sense with."""
    found = sum(source.num_samples for source in stream.sources)
    if found < objective.least_samples:
        raise ValueError(
            f"the mixture's sources hold {found:,} pictures, and this objective has {objective.least_samples:,} "
            "prototypes to share them out among: fewer prototypes, or more pictures"
        )


def _remap(labels: Labels | None, source: str, dataset: Dataset) -> LabelMap | None:
    return None if labels is None else LabelMap(labels, source, classes=dataset.classes)


def _check(name: str, dataset: Dataset, objective: Objective, remap: LabelMap | None) -> None:
    shards = [number for number, shard in enumerate(dataset.shards) if shard.num_samples]
    looked_at = _spread(shards)
    found, samples = 0, 0
    for number in looked_at:
        found += _count(dataset, number, objective, remap)
        samples += dataset.shards[number].num_samples
    log.info("%s: %d of %d samples in %d indexes are usable", name, found, samples, len(looked_at))
    if samples and not found:
        part = f" in {len(looked_at)} of its {len(shards)} shards" if len(looked_at) < len(shards) else ""
        raise ValueError(
            f"{name} ({dataset.url}): none of its {samples:,} samples{part} has anything in the column "
            f"{objective.columns[0]!r}, which this objective trains on; the dataset needs it, or another objective"
        )


def _count(dataset: Dataset, shard: int, objective: Objective, remap: LabelMap | None) -> int:
    """Return how many samples of one shard are usable."""
    table = dataset.index(shard)
    held = {name: remap.column if remap is not None and name == LABEL else name for name in objective.columns}
    absent = [name for name in held.values() if name not in table.column_names]
    if absent:
        raise ValueError(f"{dataset.index_url(shard)} has no column {absent[0]!r}; it has {table.column_names}")
    columns = {name: collate_column(table.column(column)) for name, column in held.items()}
    if remap is not None and LABEL in held:
        columns[LABEL] = _remapped(remap, table, dataset.tar_url(shard))
    try:
        return int(np.count_nonzero(objective.usable(columns)))
    except RowError as error:
        key = table.column("key")[error.row].as_py()
        raise ValueError(f"{dataset.index_url(shard)}: sample {shown(key)}: {error}") from error


def _remapped(remap: LabelMap, table: pa.Table, shard: str) -> Column:
    """Return the labels of a shard as a stream delivers them; a sample that is damaged by its label has none."""
    new: list[int | None] = []
    for key, value in zip(table.column("key").to_pylist(), table.column(remap.column).to_pylist(), strict=True):
        try:
            new.append(remap.new(value, key=key, shard=shard))
        except SampleError:
            new.append(None)
    return collate(new, LABELS)


def _spread(shards: Sequence[int]) -> list[int]:
    if len(shards) <= MAX_SHARDS:
        return list(shards)
    return [shards[place * len(shards) // MAX_SHARDS] for place in range(MAX_SHARDS)]
