"""The indexes of all sources while a stream runs: few rows in memory, the rest in the cache on disk.

Each index is loaded once, however many threads want it at that moment. Without a cache on disk the rows of the indexes
used last are held in memory, up to `HELD_BYTES`; with it, some kilobytes of each.
"""

import threading
from collections import OrderedDict
from collections.abc import Sequence
from concurrent.futures import Future

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from headrace.shards.dataset import Dataset, ReadBytes
from headrace.shards.index_cache import IndexCache
from headrace.shards.index_rows import ROW_COLUMNS, DamagedRowsError, IndexRows, encode_rows, rows_in_memory

HELD_BYTES = 128 << 20
"""Most memory for indexes, of all sources together."""

IntArray = NDArray[np.int64]


class Indexes:
    """Rows of indexes by shard and number; safe from any thread."""

    def __init__(self, cache: IndexCache | None, *, held_bytes: int = HELD_BYTES) -> None:
        self._cache = cache
        self._most_bytes = held_bytes
        self._lock = threading.Lock()
        self._held: OrderedDict[str, IndexRows] = OrderedDict()
        self._loading: dict[str, Future[IndexRows]] = {}
        self.held_bytes = 0
        """Memory of what is held now."""
        self.num_loaded = 0
        """Parquet indexes that were read."""

    def rows(
        self, dataset: Dataset, shard: int, numbers: IntArray, columns: Sequence[str], read: ReadBytes
    ) -> tuple[pa.Table, tuple[str, ...]]:
        """Return rows of a shard's index, and the names of all columns that the index has.

        The table has ROW_COLUMNS and those of `columns` that the index has. Raises ShardError, OSError.
        """
        digest = dataset.shards.index_sha256(shard)
        for look in range(3):
            index = self._index(dataset, shard, digest, columns, read, again=look == 2)
            try:
                return index.take(numbers), index.index_columns
            except (DamagedRowsError, OSError) as error:
                self._forget(digest, index)
                if look == 2 or self._cache is None:
                    raise
                # At first it may be another process's file, with more columns, in the place of the one whose head
                # is held: that is opened anew. One that was removed made room.
                if look == 1 and not isinstance(error, FileNotFoundError):
                    self._cache.complain(digest, error)
        raise AssertionError("the third look returns or raises")

    def _index(
        self, dataset: Dataset, shard: int, digest: str, columns: Sequence[str], read: ReadBytes, *, again: bool
    ) -> IndexRows:
        """Return an index that has `columns`: one that is held, or that another thread loads, or loaded now.

        With `again` it is made anew, whatever is held: other threads may hold or load what was found damaged.
        """
        while not again:
            with self._lock:
                held = self._held.get(digest)
                if held is not None and not held.lacks(columns):
                    self._held.move_to_end(digest)
                    return held
                loading = self._loading.get(digest)
                if loading is None:
                    mine = self._loading[digest] = Future()
            if loading is not None:
                index = loading.result()
                if not index.lacks(columns):
                    return index
                continue
            try:
                index = self._load(dataset, shard, digest, columns, read)
                self._hold(digest, index)
                mine.set_result(index)
                return index
            except BaseException as error:
                mine.set_exception(error)
                raise
            finally:
                with self._lock:
                    del self._loading[digest]
        index = self._load(dataset, shard, digest, columns, read, again=True)
        self._hold(digest, index)
        return index

    def _load(
        self, dataset: Dataset, shard: int, digest: str, columns: Sequence[str], read: ReadBytes, *, again: bool = False
    ) -> IndexRows:
        kept = self._cache.get(digest) if self._cache is not None and not again else None
        if kept is not None and kept.num_rows == int(dataset.shards.num_samples[shard]) and not kept.lacks(columns):
            return kept
        more = [name for name in (kept.schema.names if kept is not None else ()) if name not in columns]
        data = make_rows(dataset, shard, [*columns, *more], read)
        with self._lock:
            self.num_loaded += 1
        return (self._cache and self._cache.put(digest, data)) or rows_in_memory(data, digest)

    def _hold(self, digest: str, index: IndexRows) -> None:
        with self._lock:
            before = self._held.pop(digest, None)
            self._held[digest] = index
            self.held_bytes += index.held_bytes - (before.held_bytes if before is not None else 0)
            while self.held_bytes > self._most_bytes and len(self._held) > 1:
                self.held_bytes -= self._held.popitem(last=False)[1].held_bytes

    def _forget(self, digest: str, index: IndexRows) -> None:
        with self._lock:
            if self._held.get(digest) is index:
                self.held_bytes -= self._held.pop(digest).held_bytes


def make_rows(dataset: Dataset, shard: int, columns: Sequence[str], read: ReadBytes) -> bytes:
    """Return the rows of a shard's index with `columns`, those that it has, for a cache. Raises ShardError, OSError."""
    table, held = dataset.index_part(shard, (*ROW_COLUMNS, *columns), read=read)
    return encode_rows(table, dataset.shards.index_sha256(shard), held)
