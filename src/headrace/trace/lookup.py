"""The opened sources of a history: its plan, and rows of indexes by the number of a sample.

Opened for reading about, not for reading from: the memory of shuffle windows plays no part, and nothing is kept on
disk. Only tars of others that have no index, or were changed since, get one, as in a stream.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from headrace import files
from headrace.pipeline.augment.views import PlannedView, planned_views
from headrace.pipeline.catalog import OpenedSource, open_source
from headrace.pipeline.decode import dali_fault
from headrace.pipeline.decode.resize import fast_fault
from headrace.pipeline.indexes import Indexes
from headrace.pipeline.mixture import Mixture, Source
from headrace.pipeline.opening import endless_plan
from headrace.pipeline.order.order import Placements
from headrace.pipeline.order.plan import EndlessPlan
from headrace.pipeline.state import check_state, continuing, identity_of
from headrace.pipeline.taken_down import digests_in
from headrace.shards.dataset import FAST_COLUMNS, Dataset
from headrace.shards.forgotten import as_of
from headrace.shards.manifest import OWN_LAYOUT
from headrace.trace.history import History

IntArray = NDArray[np.int64]

TEXTS = ("uid", "url", "caption", "label")
"""Columns of an index that a page shows, where it has them."""
PICTURES = ("pictures", "decoder", "resizer", "jpeg_scaling")
"""What of a stream's state says nothing of which samples it has."""
READS_AT_ONCE = 8


@dataclass(frozen=True, slots=True, eq=False)
class Opened:
    """A history with its sources opened."""

    history: History
    sources: tuple[OpenedSource, ...]
    plan: EndlessPlan
    identity: dict[str, Any]
    """Of the stream: what decides its pictures."""
    indexes: Indexes
    note: str = ""
    """How pictures made here may differ from those of the run; empty: they do not."""

    @property
    def views(self) -> tuple[PlannedView, ...]:
        """The views in which every sample was delivered."""
        return planned_views(self.history.mixture)

    def placed(self, position: IntArray) -> Placements:
        """Return what the order has at positions. Raises ValueError behind the end of every source."""
        parts = self.plan.timeline.parts
        which = np.array([self.plan.timeline.part_at(one) for one in position.tolist()], np.int64)
        columns = {field.name: np.zeros_like(position) for field in dataclasses.fields(Placements)}
        for number in np.unique(which).tolist():
            here = np.flatnonzero(which == number)
            order = parts[number].order
            if order is None:
                raise ValueError(
                    f"the mixture ends at position {parts[number].start}: every source has come to its end"
                )
            found = order.sample_at(position[here])
            for name, column in columns.items():
                column[here] = getattr(found, name)
        return Placements(**columns)

    def replacement(self, position: int, steps: int) -> tuple[int, int]:
        """Return (source, sample) of what stands `steps` after a position in the same lane share."""
        placed = self.placed(np.array([position], np.int64))
        order = self.plan.timeline.parts[self.plan.timeline.part_at(position)].order
        assert order is not None
        source = int(placed.source[0])
        return source, order.replacement(source, int(placed.lane[0]), int(placed.number[0]), steps)

    def rows(self, source: int, sample: IntArray, columns: Sequence[str] = TEXTS) -> list[dict[str, Any]]:
        """Return the rows of samples of one source: key, offset, size, those of `columns` there are, and `shard`."""
        opened = self.sources[source]
        shard, row = opened.locate(sample)
        result: list[dict[str, Any]] = [{} for _ in range(len(sample))]

        def read(number: int) -> None:
            here = np.flatnonzero(shard == number)
            table, _ = self.indexes.rows(opened.dataset, number, row[here], columns, files.read_bytes)
            name = opened.dataset.shards.name(number)
            for place, found in zip(here.tolist(), table.to_pylist(), strict=True):
                result[place] = {**found, "shard": name, "shard_number": number, "row": int(row[place])}

        with ThreadPoolExecutor(READS_AT_ONCE) as pool:
            list(pool.map(read, np.unique(shard).tolist()))
        return result

    def keys(self, source: IntArray, sample: IntArray) -> list[str]:
        """Return the keys of samples of any sources, side by side."""
        keys = [""] * len(source)
        for number in np.unique(source).tolist():
            here = np.flatnonzero(source == number)
            for place, row in zip(here.tolist(), self.rows(number, sample[here], ()), strict=True):
                keys[place] = str(row["key"])
        return keys

    def column(self, source: int, shard: int, names: Sequence[str]) -> pa.Table:
        """Return `key` and columns that every index has of a whole index, checked against the manifest."""
        table, _ = self.sources[source].dataset.index_part(shard, (*FAST_COLUMNS, *names))
        return table.select(["key", *names])


def open_sources(history: History) -> Opened:
    """Open the datasets of a history and lay out its plan. Raises ValueError if they are not those of its steps."""
    mixture = dataclasses.replace(_decodable(history.mixture), memory_bytes=1 << 62, quarantine="")
    indexes = Indexes(None)
    digests = digests_in(history.state)
    sources = tuple(
        OpenedSource(source, (), indexes, dataset=_as_it_was(source, digests.get(source.name)))
        for source in mixture.sources
    )
    plan = endless_plan(mixture, sources, global_batch=history.global_batch, rank=0, world_size=1)
    identity = identity_of(
        mixture, sources, global_batch=history.global_batch, once=False, ends=plan.timeline.drained_from
    )
    if history.state is not None:
        identity = continuing(identity, dict(history.state), mixture)
        try:
            check_state(dict(history.state), {name: identity[name] for name in identity if name not in PICTURES})
        except ValueError as error:
            raise ValueError(
                f"{history.name}: the mixture of run.yaml is not the one of the newest checkpoint, or a dataset was "
                f"changed since: {error}"
            ) from error
    return Opened(history, sources, plan, identity, indexes, _differences(history, identity))


def _as_it_was(source: Source, digest: str | None) -> Dataset:
    """Return the dataset of a source, in the version of the run where samples were taken down since."""
    dataset = open_source(source)
    if digest is None or dataset.shards.digest() == digest or dataset.layout != OWN_LAYOUT:
        return dataset
    return as_of(dataset, digest) or dataset


def _decodable(mixture: Mixture) -> Mixture:
    """Return the mixture with a decoder and a resizer that work here: which samples it has does not hang on them."""
    if mixture.decoder == "dali" and dali_fault():
        mixture = dataclasses.replace(mixture, decoder="turbo")
    return dataclasses.replace(mixture, resizer="auto") if mixture.resizer == "fast" and fast_fault() else mixture


def _differences(history: History, identity: Mapping[str, Any]) -> str:
    wanted = {"decoder": history.mixture.decoder, "resizer": history.mixture.resizer}
    wanted = {name: value for name, value in wanted.items() if value != "auto"} | {
        name: str(value) for name, value in (history.state or {}).items() if name in PICTURES[1:]
    }
    other = [
        f"{name} {value}, here {identity[name]}"
        for name, value in wanted.items()
        if identity[name] not in (value, "own") and value != "own"
    ]
    return f"the run had {'; '.join(other)}: the same windows, pixels that may differ by rounding" if other else ""
