"""A mixture as a stream of batches.

The whole state of a stream is one position; everything else follows from the mixture. `state_dict` counts the batches
that were handed out, never those that threads have made ready.

`__next__` may be broken off at any instruction by a signal handler that raises. So it changes nothing but by its last
assignment: whoever goes on after an exception gets the same batch.
"""

import logging
import os
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, NoReturn

import cv2
import numpy as np

from headrace.pipeline import copies, taken_down
from headrace.pipeline import state as stream_state
from headrace.pipeline.assemble import assemble
from headrace.pipeline.augment.changes import ViewChanges, view_changes
from headrace.pipeline.augment.colour import ColourDraw
from headrace.pipeline.augment.views import planned_views
from headrace.pipeline.batch import Batch
from headrace.pipeline.catalog import OpenedSource
from headrace.pipeline.chunks import ChunkReader
from headrace.pipeline.clock import StageClock
from headrace.pipeline.collate import Kind
from headrace.pipeline.decode import make_decoder
from headrace.pipeline.mapping import Mapper
from headrace.pipeline.mixture import Mixture
from headrace.pipeline.order.plan import StreamPlan
from headrace.pipeline.pictures import PictureMaker
from headrace.pipeline.prefetch import PendingBatch, Prefetcher
from headrace.pipeline.quarantine import DamageCount, DamageReport, Quarantine, log_new_reasons
from headrace.pipeline.stats import BatchTimes, Delivered, QueueDepths, StreamStats, gather
from headrace.pipeline.threads import close_at_exit, hand_over_sooner
from headrace.pipeline.verdict import describe, judge
from headrace.shards.cache import open_cache
from headrace.shards.ranges import RangeReader

log = logging.getLogger(__name__)


REPORTED_BATCHES = 100
"""After so many batches the log says what the stream is bound by, and once more at its end."""


@dataclass(frozen=True, kw_only=True, slots=True)
class OpenedMixture:
    """What a stream stands on: checked, and not yet reading."""

    mixture: Mixture
    sources: tuple[OpenedSource, ...]
    plan: StreamPlan
    columns: dict[str, Kind]
    """Columns to deliver, and how."""
    identity: dict[str, Any]
    """The state without its position, and with the segments to come."""
    quarantine: str
    """File of this rank; empty = none."""
    rank: int
    world_size: int
    mapper: Mapper | None = None
    device: str = "cpu"
    """Where batches lie: `cpu` or `cuda:N`."""


@dataclass(frozen=True, slots=True)
class Reading:
    """The threads and connections of a stream that was begun."""

    ranges: RangeReader
    prefetcher: Prefetcher
    """Closes both."""


class Stream:
    """An endless (or, with `once`, finite) iterator of batches. Close it, or use it in `with`."""

    _closed = True  # until the constructor has run: __del__ may be called without it

    def __init__(self, opened: OpenedMixture) -> None:
        self.mixture = opened.mixture
        self.sources = opened.sources
        self.plan = opened.plan
        self.rank, self.world_size = opened.rank, opened.world_size
        self.global_batch = int(opened.identity["global_batch"])
        self.times = BatchTimes(0, 0.0, 0.0, 0.0)
        """When the last batch that was taken came to be."""
        self.given = Delivered()
        """What the consumer got."""
        self.counts_here = True
        """False where somebody takes batches before they are asked for, and then keeps `given` by `hand_on`."""
        self._opened = opened
        self._identity = opened.identity
        self._delivered = 0
        self._ended = False
        self._damage = DamageCount()
        self._clock = StageClock()
        self._reported = 0
        self._retries = self._cached_bytes = 0  # of readings that have ended
        self._quarantine = Quarantine(
            opened.quarantine,
            max_fraction=opened.mixture.max_bad_fraction,
            max_consecutive=opened.mixture.max_bad_consecutive,
        )
        self._reading: Reading | None = None
        self._callers: dict[str, int] = {}  # "next": the thread that is inside
        self._process = os.getpid()
        self._closed = False

    def __enter__(self) -> "Stream":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __del__(self) -> None:
        if not self._closed:
            self.close()

    def __reduce__(self) -> NoReturn:
        raise TypeError("a stream cannot be copied: each copy would give the same batches; open it where it is read")

    def __iter__(self) -> Iterator[Batch]:
        """Return this stream. It goes on where it stands; a finite pass that has ended begins again."""
        if self._ended and not self._closed:
            log.info("the finite pass has ended and begins again")
            self._begin_at(0)
        return self

    def __next__(self) -> Batch:
        """Return the next batch. Raises ValueError for too many damaged samples, OSError for data out of reach."""
        if self._closed:
            raise ValueError("the stream is closed")
        copies.refuse_copy(self._process, begun=self._reading is not None)
        me = threading.get_ident()
        while self._callers.setdefault("next", me) != me:  # one thread after the other
            time.sleep(0.001)
        try:
            number = self._delivered
            batch, damage, given, pending = self._make(number)
        except BaseException as error:
            self._callers.pop("next", None)
            self._ended = self._ended or isinstance(error, StopIteration)
            if isinstance(error, ValueError | OSError):
                self._stop()  # whoever goes on, say when a server is back, begins with this batch anew
            raise
        # Without a call, so that no signal handler runs in between: here the batch is delivered, or not at all.
        self._damage = damage
        if given is not None:
            self.given = given
        self._delivered = number + 1
        del pending[number]
        del self._callers["next"]
        return batch

    @property
    def decoder(self) -> str:
        """What decodes: the mixture's `decoder`, or what `auto` is on this device or in the state loaded."""
        return str(self._identity["decoder"])

    @property
    def device(self) -> str:
        """Where the stream was opened for: `cpu` or `cuda:N`."""
        return self._opened.device

    @property
    def changes_left(self) -> tuple[ViewChanges | None, ...]:
        """For each view what whoever takes the batches to the device is to do to them; empty: they are finished."""
        return view_changes(self.mixture) if self.device != "cpu" else ()

    @property
    def colours_left(self) -> tuple[ColourDraw | None, ...]:
        """The colours among `changes_left`: all of it where there is neither RandAugment nor random erasing."""
        return tuple(None if changes is None else changes.colour for changes in self.changes_left)

    @property
    def position(self) -> int:
        """The global position of the next batch."""
        return self._delivered * self.global_batch

    @property
    def views(self) -> dict[str, float]:
        """How often each source has been gone through up to here, over all ranks; 1.5 = half way through its second."""
        given = self.plan.given(self.position)
        return {
            source.config.name: count / source.num_samples for source, count in zip(self.sources, given, strict=True)
        }

    @property
    def weights(self) -> dict[str, float]:
        """The share of each source from here on, as it is met; in a finite pass, its share of the samples."""
        shares = self.plan.shares(self.position)
        return {source.config.name: share for source, share in zip(self.sources, shares, strict=True)}

    @property
    def weight_errors(self) -> dict[str, float]:
        """Share of each source as it is met minus as it was asked for; after N samples |error| * N + 1 is the worst."""
        errors = self.plan.weight_errors(self.position)
        return {source.config.name: error for source, error in zip(self.sources, errors, strict=True)}

    @property
    def bad_samples(self) -> dict[str, int]:
        """Damaged samples since the stream was opened or its state loaded, by reason."""
        return dict(sorted(self._damage.reasons.items()))

    @property
    def num_retries(self) -> int:
        """Reads that were tried again since the stream was opened or its state loaded."""
        return self._retries + (self._reading.ranges.num_retries if self._reading else 0)

    @property
    def num_cached_bytes(self) -> int:
        """Bytes read from the cache on disk since the stream was opened or its state loaded."""
        return self._cached_bytes + (self._reading.ranges.num_cached_bytes if self._reading else 0)

    def stats(self) -> StreamStats:
        """Return what was done since the stream was opened or its state loaded, and what holds it up."""
        return self._stats(self.given)

    def hand_on(self, times: BatchTimes, asked: float, *, ready: int) -> Delivered:
        """Return `given` with a batch that was `asked` for then, while so many lay `ready`, and is handed on now."""
        now = time.perf_counter()
        self._clock.tally("wait").add(now - asked)
        late = now - max(asked, times.whole)
        if not ready:
            self.count_transfer(late)
        return self._count(times, asked, whole_batches=ready, now=now)

    def count_transfer(self, seconds: float) -> None:
        """Count what the caller took to bring a batch to its device, so that `stats` can tell it from computing."""
        self._clock.tally("transfer").add(seconds)

    def state_dict(self) -> dict[str, Any]:
        """Return where the stream stands: small, plain JSON."""
        return self.state_at(self.position)

    def state_at(self, position: int) -> dict[str, Any]:
        """Return the state in which the stream stands, stood or will stand at `position`."""
        return stream_state.state_at(position, self._identity)

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from `state`, at any world size. Raises ValueError, naming the field, if that cannot be exact."""
        identity = stream_state.continuing(self._opened.identity, state, self.mixture, device=self._opened.device)
        try:
            position = stream_state.check_state(state, identity)
        except ValueError as error:
            told = taken_down.explain(state, self.sources)
            if told:
                raise ValueError(f"{error}; {told}") from error
            raise
        self._begin_at(position // self.global_batch)
        self._identity = identity
        log.info("the stream continues at position %d", position)

    def close(self) -> None:
        """Stop and join every thread. A closed stream gives no more batches."""
        if not self._closed:
            self._closed = True  # first: a signal handler that raises in here must not bring the report again and again
            self._report(self.given)
        self._stop()

    def pause(self) -> None:
        """Stop and join every thread; the next call of `next` reads anew. One that waits raises ValueError."""
        self._stop()

    def _stats(self, given: Delivered) -> StreamStats:
        reading = self._reading
        stats = gather(
            given,
            self._clock,
            queues=reading.prefetcher.queues() if reading else QueueDepths(),
            cached_bytes=self.num_cached_bytes,
            retries=self.num_retries,
            bad_samples=self.bad_samples,
        )
        return judge(stats, stream_state.with_choices(self.mixture, self._identity))

    def _report(self, given: Delivered) -> None:
        """Say once what the stream is bound by up to here."""
        if given.batches > 1 and given.batches != self._reported and self._process == os.getpid():
            self._reported = given.batches
            log.info("%s", describe(self._stats(given)))

    def _count(self, times: BatchTimes, asked: float, *, whole_batches: int, now: float) -> Delivered:
        given = self.given.plus(times.arrival(asked, whole_batches=whole_batches), now=now)
        if given.batches == REPORTED_BATCHES:
            self._report(given)
        return given

    def _begin_at(self, number: int) -> None:
        self._stop()
        self._damage = DamageCount()
        self.given, self._clock = Delivered(), StageClock()
        self._reported = self._retries = self._cached_bytes = 0
        self._ended = False
        self._delivered = number

    def _make(self, number: int) -> tuple[Batch, DamageCount, Delivered | None, dict[int, PendingBatch]]:
        """Return a batch, damage and statistics with it, and where to delete it then. Raises StopIteration."""
        begun = time.perf_counter()
        reading = self._reading
        if reading is None or not reading.prefetcher.is_running:
            reading = self._start()
        num_whole = reading.prefetcher.num_whole(number)
        pending, waited_for = reading.prefetcher.take(number)
        ended = time.perf_counter()
        if pending is None:
            raise StopIteration
        damage = self._judge(number, pending)
        images = int(np.count_nonzero(pending.plan.valid))
        self.times = BatchTimes(images, pending.planned_at, pending.read_at, ended)
        given = None
        if self.counts_here:
            self._clock.tally("wait").add(ended - begun)
            given = self._count(self.times, begun, whole_batches=num_whole, now=ended)
        batch = assemble(
            pending,
            self._opened.columns,
            self._opened.mapper,
            replaces=self.plan.replaces,
            waited_seconds=ended - begun,
            waited_for=waited_for,
        )
        return batch, damage, given, reading.prefetcher.batches

    def _start(self) -> Reading:
        self._stop()  # what an interrupt left half begun or half closed
        copies.refuse_worker(self._opened.rank, self._opened.world_size)
        copies.refuse_dispatch(self._opened.world_size)
        close_at_exit().add(self)
        # Our threads are the parallelism; OpenCV's own pool would only fight them.
        cv2.setNumThreads(1)
        hand_over_sooner()
        reading = self._new_reading()
        self._reading = reading
        reading.prefetcher.start()
        return reading

    def _new_reading(self) -> Reading:
        mixture = self.mixture
        decoder = make_decoder(stream_state.with_choices(mixture, self._identity), self._opened.device)
        # After the decoder, which may be one of others and raise: the files of the cache would stay open.
        cache = open_cache(mixture.cache_dir, mixture.cache_bytes) if mixture.cache_dir else None
        ranges = RangeReader(
            mixture.patience, cache, slow_seconds=mixture.slow_read_seconds, hedges=mixture.hedge_reads == "on"
        )
        reader = ChunkReader(
            self.sources, ranges, io_threads=mixture.io_threads, verify_crc=mixture.verify_crc, clock=self._clock
        )
        log.info(
            "reading from position %d: %d reads at once, decoder %s, resizer %s, %d calls at once, views: %s",
            self.position,
            mixture.io_threads,
            self._identity["decoder"],
            self._identity["resizer"],
            decoder.calls_at_once,
            ", ".join(f"{view.image_size} pixels" for view in planned_views(mixture)) or "none, the bytes",
        )
        prefetcher = Prefetcher(
            self.plan,
            reader,
            PictureMaker(mixture, self.plan, reader, decoder, self._opened.mapper, changes=not self.changes_left),
            mixture=mixture,
            first=self._delivered,
        )
        return Reading(ranges, prefetcher)

    def _stop(self) -> None:
        # In a forked process: threads and connections are those of the process that forked.
        reading = self._reading  # another thread may close at the same time
        if reading is not None and self._process == os.getpid():
            cached_bytes = reading.ranges.num_cached_bytes
            reading.prefetcher.close()
            self._retries += reading.ranges.num_retries
            self._cached_bytes += cached_bytes
        self._reading = None

    def _judge(self, number: int, pending: PendingBatch) -> DamageCount:
        """Write down the damage in a batch and return the count with it. Raises ValueError if the budget is spent."""
        if not any(made.damaged for made in pending.made.values()):  # nearly always
            return self._quarantine.count_whole(self._damage, pending.samples)
        items = np.flatnonzero(pending.plan.valid).tolist()
        chunks = [self.plan.chunk_of(pending.plan, item) for item in items]
        report = DamageReport(
            [pending.made[item].damaged for item in items],
            [(chunk, self.plan.chunk_samples(chunk[0])) for chunk in chunks],
        )
        self._quarantine.write(number, report)
        damage = self._quarantine.count(self._damage, report)
        log_new_reasons(self._damage, damage, report)
        return damage
