"""Fill the cache of indexes ahead of a stream, so that its first batches find every index there."""

import itertools
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from headrace.pipeline.catalog import OpenedSource
from headrace.pipeline.decode.cores import own_cores
from headrace.pipeline.indexes import Indexes
from headrace.pipeline.mixture import Mixture
from headrace.shards.index_cache import IndexCache, cache_folder
from headrace.shards.progress import OnProgress, Progress, no_progress
from headrace.shards.ranges import RangeReader

AT_ONCE = 256
"""Indexes between two reports of progress; the dataset may have 200,000."""


@dataclass(frozen=True, kw_only=True, slots=True)
class FilledCache:
    """What the cache has of the sources of a mixture."""

    folder: str
    num_indexes: int
    num_made: int
    """Those that were not there before."""
    num_bytes: int
    """Of all these indexes."""
    max_bytes: int
    """`index_cache_bytes`; if it is less, the cache keeps only a part."""


def fill_index_cache(
    mixture: Mixture, columns: Sequence[str] = (), *, threads: int = 0, on_progress: OnProgress = no_progress
) -> FilledCache:
    """Keep the rows of every index of a mixture's sources, with `columns`, where its streams look for them.

    `threads` 0 = one a core. Raises ValueError if `index_cache` is none or no index has a column, and what reading an
    index raises.
    """
    folder = cache_folder(mixture.index_cache)
    if folder is None:
        raise ValueError(f"index_cache is {mixture.index_cache}: there is nothing to fill")
    cache = IndexCache(folder, max_bytes=mixture.index_cache_bytes)
    indexes, num_bytes, done = Indexes(cache), 0, 0

    def keep(source: OpenedSource, shard: int) -> int:
        source.rows(shard, np.zeros(0, np.int64), reader.read_bytes)
        return cache.size(source.dataset.shards.index_sha256(shard))

    # In this order: after a fault or Ctrl-C the reader ends first, and with it what the pool would wait for.
    with ThreadPoolExecutor(threads or own_cores()) as pool, RangeReader(mixture.patience) as reader:
        sources = [OpenedSource(source, columns, indexes, reader.read_bytes) for source in mixture.sources]
        _refuse_unknown(sources, columns, reader)
        total = sum(len(source.dataset.shards) for source in sources)
        every = _shards(sources)
        while part := list(itertools.islice(every, AT_ONCE)):
            num_bytes += sum(pool.map(keep, *zip(*part, strict=True)))
            done += len(part)
            on_progress(Progress(done=done, total=total, noun="indexes"))
    return FilledCache(
        folder=str(folder),
        num_indexes=total,
        num_made=indexes.num_loaded,
        num_bytes=num_bytes,
        max_bytes=mixture.index_cache_bytes,
    )


def _refuse_unknown(sources: Sequence[OpenedSource], columns: Sequence[str], reader: RangeReader) -> None:
    held = [source.first_rows(reader.read_bytes).columns for source in sources if columns]
    nowhere = [name for name in columns if all(pa.types.is_null(found[name].type) for found in held)]
    if nowhere:
        raise ValueError(sources[0].no_column(nowhere, sources[0].first_shard))


def _shards(sources: Sequence[OpenedSource]) -> Iterator[tuple[OpenedSource, int]]:
    for source in sources:
        for shard in range(len(source.dataset.shards)):
            yield source, shard
