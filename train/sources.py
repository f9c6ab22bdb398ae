"""What the datasets of a run must hold, looked at before the first step.

A stream finds a missing caption only when its sample comes; a dataset without any would be trained on for days.
"""

import logging
from collections.abc import Sequence

import numpy as np

from headrace.pipeline import Stream
from headrace.pipeline.catalog import open_source
from headrace.pipeline.collate import collate_column
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
        _check(f"source {source.name!r}", open_source(source), objective)
    if config.validation is not None:
        _check("validation.dataset", open_dataset(config.validation.dataset), objective)


def check_length(stream: Stream, config: RunConfig) -> None:
    """Raise ValueError if every source has come to its end (`repeat`) before the last step."""
    images = config.total_steps * config.global_batch
    given = sum(stream.plan.given(images))
    if given < images:
        raise ValueError(
            f"the mixture ends after step {given // config.global_batch:,} of {config.total_steps:,}: every source "
            "has come to its end (repeat); lower steps, or leave `repeat` out of a source"
        )


def _check(name: str, dataset: Dataset, objective: Objective) -> None:
    shards = [number for number, shard in enumerate(dataset.shards) if shard.num_samples]
    looked_at = _spread(shards)
    found, samples = 0, 0
    for number in looked_at:
        found += _count(dataset, number, objective)
        samples += dataset.shards[number].num_samples
    log.info("%s: %d of %d samples in %d indexes are usable", name, found, samples, len(looked_at))
    if samples and not found:
        part = f" in {len(looked_at)} of its {len(shards)} shards" if len(looked_at) < len(shards) else ""
        raise ValueError(
            f"{name} ({dataset.url}): none of its {samples:,} samples{part} has anything in the column "
            f"{objective.columns[0]!r}, which this objective trains on; the dataset needs it, or another objective"
        )


def _count(dataset: Dataset, shard: int, objective: Objective) -> int:
    """Return how many samples of one shard are usable."""
    table = dataset.index(shard)
    absent = [name for name in objective.columns if name not in table.column_names]
    if absent:
        raise ValueError(f"{dataset.index_url(shard)} has no column {absent[0]!r}; it has {table.column_names}")
    columns = {name: collate_column(table.column(name)) for name in objective.columns}
    try:
        return int(np.count_nonzero(objective.usable(columns)))
    except RowError as error:
        key = table.column("key")[error.row].as_py()
        raise ValueError(f"{dataset.index_url(shard)}: sample {shown(key)}: {error}") from error


def _spread(shards: Sequence[int]) -> list[int]:
    if len(shards) <= MAX_SHARDS:
        return list(shards)
    return [shards[place * len(shards) // MAX_SHARDS] for place in range(MAX_SHARDS)]
