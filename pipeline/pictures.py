"""From payloads to the pixels of a batch: the gate, the decoder, and what replaces a damaged sample.

Threads of a pool call this at the same time, never for the same rows of a batch.
"""

import dataclasses
import threading
import time
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from types import MappingProxyType
from typing import Any

import numpy as np

from headrace.pipeline.augment.changes import change_picture, view_changes
from headrace.pipeline.augment.views import planned_views, view_windows
from headrace.pipeline.captions import Rotation
from headrace.pipeline.chunks import ChunkReader, Payload
from headrace.pipeline.decode.decoder import Decoder, Images, Item, TellsAugment
from headrace.pipeline.decode.gate import admit
from headrace.pipeline.decode.memory import blacken
from headrace.pipeline.errors import SampleError
from headrace.pipeline.mapping import Mapper, Sample
from headrace.pipeline.mixture import Mixture
from headrace.pipeline.order.order import Placements
from headrace.pipeline.order.plan import BatchPlan, StreamPlan
from headrace.pipeline.quarantine import DamagedSample
from headrace.shards.images.header import read_header
from headrace.text import without_secrets

LOOKS = 64
"""Samples that are tried for the columns of a map function."""

Fault = tuple[Payload, SampleError]
Columns = tuple[Mapping[str, Any], Mapping[str, Any]]
"""Of one row: those of the index, and those of the map function."""


@dataclasses.dataclass(frozen=True, slots=True)
class MadeRow:
    """What a row of a batch holds now."""

    payload: Payload
    """Whose pixels they are, without its data, if there are pixels; of a damaged sample that nothing replaces, its own.
    """
    damaged: list[DamagedSample]
    """The row's own sample if it is damaged, then the replacements that are damaged too."""
    key: str
    values: Mapping[str, Any]
    """Its columns, looked up here and not where the batch is taken: that is the consumer's time."""
    mapped: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    """What the map function gave."""


class PictureMaker:
    """Writes every view of rows of a batch."""

    def __init__(
        self,
        mixture: Mixture,
        plan: StreamPlan,
        reader: ChunkReader,
        decoder: Decoder,
        mapper: Mapper | None = None,
        *,
        changes: bool = True,
    ) -> None:
        self.decoder = decoder
        self._mapper = mapper
        self._clock = reader.clock
        if isinstance(decoder, TellsAugment):
            decoder.on_augment = self._clock.adder("augment")
        self._plan = plan
        self._reader = reader
        self._names = [source.name for source in mixture.sources]
        # A finite pass gives the first captions, so that it is the same for every seed.
        self._rotations = [
            Rotation(mixture.seed, source.name) if source.captions == "rotate" and plan.replaces else None
            for source in mixture.sources
        ]
        self._max_pixels = mixture.max_pixels
        self._max_bad_consecutive = mixture.max_bad_consecutive
        self._sizes = [view.image_size for view in planned_views(mixture)]
        self.bytes_per_item = sum(3 * size * size for size in self._sizes) or max(s.mean_bytes for s in reader.sources)
        """Bytes of one row of a batch: its pixels, or without them its compressed image."""
        self._windows = view_windows(mixture)
        chosen = view_changes(mixture) if changes else ()  # else the device makes them
        self._changes = [(view, choose) for view, choose in enumerate(chosen) if choose is not None]
        self._large = threading.Lock()

    def empty(self, plan: BatchPlan) -> tuple[Images, ...]:
        """Return memory for a batch, its padding black. Raises ReadError, and what the map function raises."""
        views = self.decoder.empty(len(plan.valid), self._sizes)
        if not plan.valid.all():
            for view in views:
                blacken(view, ~plan.valid)
            if self._mapper is not None and not plan.valid.any():
                self._learn_mapped(self._mapper)
        return views

    def fill(self, plan: BatchPlan, own: Mapping[int, Payload], views: Sequence[Images]) -> dict[int, MadeRow]:
        """Write the rows of `own`, which holds the sample of each, into `views`.

        A damaged sample is replaced where the plan says so, else its row is black. What does not decode, and has no
        checksum, is read again first. Raises ReadError where either cannot be read, and what the map function raises.
        """
        given, finished = dict(own), dict[int, Columns]()
        faults: dict[int, list[Fault]] = {row: [] for row in own}
        waiting, looked_again = own, set[int]()
        while waiting:
            again: dict[int, Payload] = {}
            errors = self._timed_decode(plan, waiting, views)
            errors |= self._finish(plan, {row: waiting[row] for row in waiting.keys() - errors}, views, finished)
            for row, error in errors.items():
                other = None if row in looked_again else self._reader.read_again(waiting[row])
                looked_again.add(row)
                if other is not None:
                    again[row] = other
                    continue
                faults[row].append((waiting[row], error))
                replacement = self._replacement(plan, row, len(faults[row]))
                if replacement is not None:
                    again[row] = replacement
                    looked_again.discard(row)  # it has a second look of its own
                    continue
                for view in views:
                    blacken(view, row)
            given.update(again)
            waiting = again
        if self._mapper is not None and not finished and not self._plan.replaces:
            self._learn_mapped(self._mapper)
        return {
            row: MadeRow(
                dataclasses.replace(payload, data=b"") if views else payload,
                self._note(plan, row, payload, faults[row]),
                payload.key,
                *finished.get(row, ({}, {})),
            )
            for row, payload in given.items()
        }

    def _finish(
        self, plan: BatchPlan, payloads: Mapping[int, Payload], views: Sequence[Images], out: dict[int, Columns]
    ) -> dict[int, SampleError]:
        """Put the columns of rows that have their pixels into `out`; return what labels or the map function refuse."""
        errors: dict[int, SampleError] = {}
        for row, payload in sorted(payloads.items()):
            source = int(plan.placed.source[row])
            try:
                values = self._reader.sources[source].values(
                    payload.rows, payload.row, self._rotations[source], epoch=int(plan.placed.epoch[row])
                )
                mapped: Mapping[str, Any] = {}
                if self._mapper is not None:
                    sample = Sample(
                        key=payload.key,
                        position=int(plan.position[row]),
                        source=self._names[source],
                        columns=MappingProxyType(values),
                        views=tuple(view[row] for view in views if isinstance(view, np.ndarray)),
                        upright_size=_upright_size(payload),
                        data=b"" if views else payload.data,
                    )
                    mapped = self._timed_map(self._mapper, sample, payload.where[0])
            except SampleError as error:
                errors[row] = error
            else:
                out[row] = values, mapped
        return errors

    def _timed_map(self, mapper: Mapper, sample: Sample, shard: str) -> Mapping[str, Any]:
        begun = time.perf_counter()
        try:
            return mapper(sample, shard)
        finally:
            self._clock.tally("map").add(time.perf_counter() - begun)

    def _learn_mapped(self, mapper: Mapper) -> None:
        """Map the first sample that can be had, if none was, so that a batch without one has the columns of the others.

        In a finite pass a batch may be nothing but padding and damaged samples, and the only one that a rank has.
        """
        source = self._reader.sources[0]
        for ordinal in range(min(LOOKS, source.num_samples)):
            if mapper.kinds:
                return
            sample = np.array([ordinal], np.int64)
            sample = sample if source.subset is None else source.subset.in_order(sample)
            zero = np.zeros(1, np.int64)
            plan = BatchPlan(zero, np.ones(1, np.bool_), Placements(zero, zero, zero, zero, zero, sample))
            payloads = self._reader.read(0, sample)
            views = self.decoder.empty(1, self._sizes)
            own = {0: payloads[int(sample[0])]}
            if not self._timed_decode(plan, own, views):
                self._finish(plan, own, views, {})

    def _timed_decode(
        self, plan: BatchPlan, payloads: Mapping[int, Payload], out: Sequence[Images]
    ) -> dict[int, SampleError]:
        augment = self._clock.tally("augment")
        begun, before = time.perf_counter(), augment.seconds
        errors = self._decode(plan, payloads, out)
        self._clock.tally("decode").add(time.perf_counter() - begun - (augment.seconds - before))
        return errors

    def _decode(
        self, plan: BatchPlan, payloads: Mapping[int, Payload], out: Sequence[Images]
    ) -> dict[int, SampleError]:
        """Decode one payload for each row; return the errors by row."""
        errors: dict[int, SampleError] = {}
        items: list[Item] = []
        for row, payload in payloads.items():
            try:
                if payload.fault is not None:
                    raise payload.fault
                orientation = int(payload.rows.orientation[payload.row])
                header = admit(payload.data, orientation=orientation, max_pixels=self._max_pixels)
                items.append(Item(payload.data, header, int(plan.position[row]), row))
            except SampleError as error:
                errors[row] = error
        if not items:
            return errors
        with self._large if any(item.is_large for item in items) else nullcontext():
            answers = self.decoder.decode(items, self._windows, out)
        if len(answers) != len(items):
            name = type(self.decoder).__name__
            raise ValueError(f"decoder {name} gave {len(answers)} answers for {len(items)} pictures")
        errors |= {item.row: error for item, error in zip(items, answers, strict=True) if error is not None}
        if self._changes:
            self._change([item for item in items if item.row not in errors], out)
        return errors

    def _change(self, items: Sequence[Item], out: Sequence[Images]) -> None:
        """Do to what was decoded what comes behind its crop and flip, in place."""
        begun = time.perf_counter()
        for item in items:
            for view, changes in self._changes:
                change_picture(out[view][item.row], changes, item.position)
        self._clock.tally("augment").add(time.perf_counter() - begun)

    def _replacement(self, plan: BatchPlan, row: int, steps: int) -> Payload | None:
        """Read the sample `steps` after this row's own; None if there is to be none."""
        # At the limit the budget stops the run when this batch is delivered.
        if not self._plan.replaces or steps >= self._max_bad_consecutive:
            return None
        sample = self._plan.replacement(plan, row, steps)
        return self._reader.read(int(plan.placed.source[row]), np.array([sample], np.int64))[sample]

    def _note(self, plan: BatchPlan, row: int, given: Payload, faults: Sequence[Fault]) -> list[DamagedSample]:
        replaced_by = given.key if faults and given is not faults[-1][0] else ""
        source = self._names[int(plan.placed.source[row])]
        return [_damaged(int(plan.position[row]), source, *fault, replaced_by) for fault in faults]


def _upright_size(payload: Payload) -> tuple[int, int]:
    """Return height and width of a picture that was admitted, the index's orientation applied."""
    header = read_header(payload.data)
    orientation = int(payload.rows.orientation[payload.row]) or header.orientation
    width, height = dataclasses.replace(header, orientation=orientation).upright_size
    return height, width


def _damaged(position: int, source: str, payload: Payload, error: SampleError, replaced_by: str) -> DamagedSample:
    shard, offset = payload.where
    return DamagedSample(
        position=position,
        source=source,
        shard=without_secrets(shard),
        key=payload.key,
        offset=offset,
        reason=error.reason,
        message=str(error),
        replaced_by=replaced_by,
    )
