"""The opened sources: their datasets, and rows of their indexes as arrays, looked up when they are needed.

Opening reads the manifest only. What is looked up is a copy of the rows that were asked for: holding it holds nothing
else of the index.
"""

import contextlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from headrace import files
from headrace.pipeline.captions import CAPTION, CAPTIONS, Rotation
from headrace.pipeline.collate import Kind, kind_of, value_of
from headrace.pipeline.errors import SampleError
from headrace.pipeline.indexes import Indexes
from headrace.pipeline.labels import LABEL, LabelMap
from headrace.pipeline.mixture import Source
from headrace.pipeline.order.subset import Subset
from headrace.shards.columns import plain_numbers
from headrace.shards.dataset import Dataset, ReadBytes, open_dataset
from headrace.shards.foreign.unindexed import names_tars, open_tars

IntArray = NDArray[np.int64]
LABELS = kind_of(pa.int64())
"""A column of labels, which are whole numbers."""
TEXTS = kind_of(pa.list_(pa.string()))
"""A column of lists of texts."""
NOTHING = kind_of(pa.null())
"""A column without a value."""


IN_THE_INDEX = {
    "txt": "; what a .txt says is the column caption",
    "cls": "; what a .cls says is the column label, or label_text where it is a name",
    "json": "; each entry of a .json that is text, a number or a truth value is a column of its own",
}
"""What a stream of another loader calls a member of the tar, and where it is here."""


@dataclass(frozen=True, slots=True)
class ShardRows:
    """Rows of one shard's index, as far as a stream needs them; arrays side by side, in the order asked for."""

    url: str
    key: pa.ChunkedArray
    offset: IntArray
    size: IntArray
    crc32: IntArray
    """-1 where the index has none (`--fast`)."""
    orientation: IntArray
    """0 where the index has none (`--fast`): the image's own counts."""
    columns: dict[str, pa.ChunkedArray]
    kinds: dict[str, Kind] = field(default_factory=dict)
    """How each of `columns` is delivered."""
    captions: pa.ChunkedArray | None = None
    """All captions of each row, where the source takes one after the other."""

    def values(self, row: int) -> dict[str, Any]:
        """Return `columns` of one row as `collate` takes them."""
        return {name: value_of(column[row], self.kinds[name]) for name, column in self.columns.items()}


class OpenedSource:
    """One source of a mixture, its dataset opened. Raises ValueError for an empty dataset."""

    def __init__(
        self,
        source: Source,
        columns: Sequence[str],
        indexes: Indexes,
        read: ReadBytes = files.read_bytes,
        *,
        dataset: Dataset | None = None,
    ) -> None:
        """`dataset` is that of the source where it is opened already, say as it was before."""
        self.config = source
        self._indexes = indexes
        self.dataset: Dataset = open_source(source, read) if dataset is None else dataset
        self.starts: IntArray = np.concatenate([[0], np.cumsum(self.dataset.shards.num_samples)])
        self.labels = (
            None
            if source.labels is None
            else LabelMap(source.labels, source.name, classes=self.dataset.classes, read=read)
        )
        """How its labels become those of the mixture."""
        self._columns = tuple(columns)
        self._rotates = source.captions == "rotate" and CAPTION in columns
        self._reads = tuple(dict.fromkeys([*map(self._in_index, columns), *([CAPTIONS] if self._rotates else [])]))
        self.dataset.require_columns(self._reads)
        size = int(self.starts[-1])
        if not size:
            raise ValueError(f"source {source.name!r}: {source.url} holds no samples")
        self.subset = None if source.fraction == 1 else Subset(size, source.fraction)
        """Which of them are used; None = all."""
        if not self.num_samples:
            raise ValueError(f"source {source.name!r}: fraction {source.fraction} of {size} samples is none; raise it")
        self.lacks = frozenset(columns)
        """Columns that this source may be without, as another source has them: null here. Opening decides which."""
        self.kinds: dict[str, Kind] = {}
        """How each column is delivered, from all sources; opening fills it in, and every shard must agree."""

    @property
    def num_samples(self) -> int:
        """Samples that are used: those of the dataset, or its `fraction`."""
        return self.subset.size if self.subset else int(self.starts[-1])

    @property
    def first_shard(self) -> int:
        """Number of the first shard that is not empty."""
        return int(np.flatnonzero(self.dataset.shards.num_samples)[0])

    @property
    def mean_bytes(self) -> int:
        """Bytes of the shards per sample."""
        return max(1, int(self.dataset.shards.num_bytes.sum()) // int(self.starts[-1]))

    def digest(self) -> str:
        """Return what must be equal for the order to mean the same samples: shard names, counts and sums."""
        return self.dataset.shards.digest()

    def locate(self, sample: IntArray) -> tuple[IntArray, IntArray]:
        """Return (shard, row) of numbers in the concatenated index."""
        shard = np.searchsorted(self.starts, sample, side="right").astype(np.int64) - 1
        return shard, sample - self.starts[shard]

    def rows(self, shard: int, numbers: IntArray, read: ReadBytes = files.read_bytes) -> ShardRows:
        """Return rows of a shard's index by number, from a cache or by `read`; safe from any thread."""
        table, names = self._indexes.rows(self.dataset, shard, numbers, self._reads, read)
        missing = [name for name in self._columns if self._in_index(name) not in names]
        if not self.lacks.issuperset(missing):
            raise ValueError(self.no_column([name for name in missing if name not in self.lacks], shard, names))
        columns = {
            name: pa.chunked_array([pa.nulls(table.num_rows)])
            if name in missing
            else table.column(self._in_index(name))
            for name in self._columns
        }
        kinds = {name: kind_of(column.type) for name, column in columns.items()}
        self._refuse_other(self.delivered(kinds), shard)
        return ShardRows(
            url=self.dataset.tar_url(shard),
            key=table.column("key"),
            offset=_integers(table, "offset", -1),
            size=_integers(table, "size", -1),
            crc32=_integers(table, "crc32", -1),
            orientation=_integers(table, "orientation", 0),
            columns=columns,
            kinds=kinds,
            captions=self._all_captions(table, shard, names) if self._rotates else None,
        )

    def first_rows(self, read: ReadBytes = files.read_bytes) -> ShardRows:
        """Return all rows of the first shard that is not empty."""
        first = self.first_shard
        return self.rows(first, np.arange(self.dataset.shards.num_samples[first], dtype=np.int64), read)

    def delivered(self, kinds: dict[str, Kind]) -> dict[str, Kind]:
        """Return how columns of these kinds are delivered, labels as those of the mixture.

        Raises ValueError for a column that cannot be labels.
        """
        if self.labels is None or LABEL not in kinds or kinds[LABEL] == NOTHING:
            return kinds
        self.labels.check_type(kinds[LABEL].name)
        return {**kinds, LABEL: LABELS}

    def values(self, rows: ShardRows, row: int, rotation: Rotation | None = None, *, epoch: int = 0) -> dict[str, Any]:
        """Return the columns of one row as `collate` takes them; without `rotation` the caption is the first.

        Raises what `LabelMap.new` raises.
        """
        values = rows.values(row)
        if rotation is not None and rows.captions is not None:
            held, key = rows.captions[row].as_py(), str(rows.key[row].as_py())
            values[CAPTION] = rotation.of_epoch(held, key=key, epoch=epoch) or values[CAPTION]
        if self.labels is not None and LABEL in values:
            values[LABEL] = self.labels.new(values[LABEL], key=str(rows.key[row].as_py()), shard=rows.url)
        return values

    def check_labels(self, rows: ShardRows) -> None:
        """Raise ValueError for a label among these rows that the map lacks, or if the source has not such a column."""
        if self.labels is None or LABEL not in rows.columns:
            return
        if rows.kinds[LABEL] == NOTHING:
            raise ValueError(self.no_column([LABEL], self.first_shard))
        with contextlib.suppress(SampleError):
            for row in range(len(rows.offset)) if self.subset is None else ():
                self.values(rows, row)

    def _all_captions(self, table: pa.Table, shard: int, names: Sequence[str]) -> pa.ChunkedArray:
        if CAPTIONS not in names:
            raise ValueError(f"{self.no_column([CAPTIONS], shard, names)}: set `captions: first`, or merge captions")
        kind = kind_of(table.column(CAPTIONS).type)
        if kind not in (TEXTS, NOTHING):
            raise ValueError(
                f"source {self.config.name!r}: captions: rotate needs lists of texts in the column {CAPTIONS}, "
                f"{self.dataset.index_url(shard)} has {kind.name}: set `captions: first`"
            )
        return table.column(CAPTIONS)

    def _in_index(self, column: str) -> str:
        """Return what the index of this source calls a column that was asked for."""
        return self.labels.column if self.labels is not None and column == LABEL else column

    def _refuse_other(self, kinds: dict[str, Kind], shard: int) -> None:
        """Raise ValueError for a column that is delivered otherwise than in the shards looked at when opening."""
        for name, expected in self.kinds.items():
            if kinds[name] not in (expected, NOTHING):
                raise ValueError(
                    f"source {self.config.name!r}: column {name} is {kinds[name].name} in "
                    f"{self.dataset.index_url(shard)} and {expected.name} in the first shards of the mixture; "
                    "index that shard again, or leave the column out"
                )

    def no_column(self, names: Sequence[str], shard: int, held: Sequence[str] = ()) -> str:
        """Return what to say of columns that the index of a shard, which has those of `held`, should have."""
        held = held or self.dataset.index(shard).column_names
        return (
            f"source {self.config.name!r}: {self.dataset.index_url(shard)} has no column "
            f"{', '.join(map(self._in_index, names))}; "
            f"it has {', '.join(held)}{''.join(IN_THE_INDEX.get(name, '') for name in names)}"
        )


def open_source(source: Source, read: ReadBytes = files.read_bytes) -> Dataset:
    """Return the dataset of a source; tars that nobody has indexed are indexed first."""
    if names_tars(source.url):
        return open_tars(source.url, index_dir=source.index_dir, fast=source.index_fast, read=read)
    return open_dataset(source.url, index_dir=source.index_dir or None, read=read)


def _integers(table: pa.Table, name: str, missing: int) -> IntArray:
    column = table.column(name)
    if column.null_count:
        column = column.cast(pa.int64()).fill_null(missing)
    return plain_numbers(column).astype(np.int64, copy=False)
