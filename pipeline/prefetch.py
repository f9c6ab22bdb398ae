"""The threads behind a stream: one that plans, a pool that reads, a pool that decodes.

Batches are finished in any order and handed out in order; nothing here counts as delivered. Reading ahead is bounded
by `memory_bytes`, decoding ahead by `prefetch_batches`. The one thing a reader would get wrong: a worker's exception
is kept and raised where its batch is taken, after the whole batches before it.
"""

import threading
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from headrace.pipeline.chunks import ChunkReader, Payload, SampleError
from headrace.pipeline.order.plan import Plan, Planned
from headrace.pipeline.quarantine import Bad

MAX_PLANNED_BATCHES = 64

WaitedFor = Literal["read", "decode", "none"]

DecodePayload = Callable[[Payload, int, NDArray[np.uint8]], None]
"""(payload, position, out): raises SampleError."""


@dataclass(frozen=True, kw_only=True, slots=True)
class EngineLimits:
    """How far ahead the engine may run."""

    image_size: int
    decode_threads: int
    prefetch_batches: int
    memory_bytes: int
    max_bad_consecutive: int


@dataclass(slots=True)
class Chunk:
    """Samples that are read together, and those of them that are still to be given."""

    source: int
    samples: NDArray[np.int64]
    read: "Future[dict[int, Payload]] | None" = None


@dataclass(slots=True)
class Work:
    """One batch under way."""

    planned: Planned
    chunks: list[Chunk | None]
    images: NDArray[np.uint8] | None = None
    payloads: list[Payload | None] = field(default_factory=list)
    bad: list[list[Bad]] = field(default_factory=list)
    missing: int = 0
    error: BaseException | None = None

    @property
    def reads_pending(self) -> bool:
        """True if a read that this batch needs has not ended."""
        return any(chunk is not None and (chunk.read is None or not chunk.read.done()) for chunk in self.chunks)


class Engine:
    """Makes batches from `first` on. `close` ends every thread it began."""

    def __init__(
        self,
        plan: Plan,
        reader: ChunkReader,
        decode: DecodePayload,
        *,
        limits: EngineLimits,
        sources: Sequence[tuple[str, int]],
    ) -> None:
        self._plan = plan
        self._reader = reader
        self._decode = decode
        self._limits = limits
        self._sources = sources  # name and mean bytes of a sample
        self._chunks: dict[tuple[int, int, int, int], Chunk] = {}
        self._planned: deque[Work] = deque()
        self._started: deque[Work] = deque()
        self._bytes = 0
        self._next = 0
        self._changed = threading.Condition()
        self._plan_error: BaseException | None = None
        self._broken: BaseException | None = None
        self._stopped = False
        self._thread = threading.Thread(target=self._run, name="headrace-plan", daemon=True)
        self._pool = ThreadPoolExecutor(limits.decode_threads, thread_name_prefix="headrace-decode")

    def start(self, first: int) -> None:
        """Begin with batch number `first`."""
        self._next = first
        self._thread.start()

    def take(self) -> tuple[Work | None, WaitedFor]:
        """Return the next whole batch (None = the end) and what held it up: read, decode or none."""
        waited_for: WaitedFor = "none"
        with self._changed:
            while True:
                work = self._started[0] if self._started else None
                if work is not None and not work.missing:
                    self._started.popleft()
                    self._changed.notify_all()
                    return work, waited_for
                error = self._broken or (work.error if work else None if self._planned else self._plan_error)
                if error is not None:
                    raise error
                if work is None and not self._planned and self._is_last(self._next):
                    return None, waited_for
                if waited_for == "none":
                    waiting = work or (self._planned[0] if self._planned else None)
                    waited_for = "read" if waiting is None or waiting.reads_pending else "decode"
                self._changed.wait()

    def close(self) -> None:
        """Stop and join every thread."""
        with self._changed:
            self._stopped = True
            self._changed.notify_all()
        if self._thread.is_alive():
            self._thread.join()
        self._reader.close()
        self._pool.shutdown(wait=True, cancel_futures=True)

    def _run(self) -> None:
        try:
            while True:
                with self._changed:
                    self._changed.wait_for(lambda: self._stopped or self._may_start() or self._may_plan())
                    if self._stopped:
                        return
                    starting = self._planned[0] if self._may_start() else None
                if starting is not None:
                    self._begin_decoding(starting)
                else:
                    self._try_to_plan()
        except BaseException as error:  # noqa: BLE001  a thread has no caller: the consumer raises it
            with self._changed:
                self._broken = error
                self._changed.notify_all()

    def _try_to_plan(self) -> None:
        try:
            self._plan_next()
        except (ValueError, OSError) as error:
            with self._changed:
                self._plan_error = error  # raised after the batches that are planned
                self._changed.notify_all()

    def _may_start(self) -> bool:
        return bool(self._planned) and len(self._started) < self._limits.prefetch_batches

    def _may_plan(self) -> bool:
        if self._plan_error or self._is_last(self._next) or len(self._planned) >= MAX_PLANNED_BATCHES:
            return False
        # With nothing planned the next batch must go on: opening has checked that one window of all lanes fits.
        return not self._planned or self._bytes < self._limits.memory_bytes

    def _is_last(self, number: int) -> bool:
        return self._plan.num_batches is not None and number >= self._plan.num_batches

    def _plan_next(self) -> None:
        planned = self._plan.batch(self._next)
        placed = planned.placed
        columns = (placed.source, placed.lane, placed.epoch, placed.sample)
        names = list(zip(*(column.tolist() for column in columns), strict=True))
        chunks: list[Chunk | None] = []
        for item, name in enumerate(names):
            if not planned.valid[item]:
                chunks.append(None)
                continue
            if name not in self._chunks:
                self._open_window(planned, item)
            chunk = self._chunks.pop(name)
            if chunk.read is None:
                self._read_chunk(chunk)
            chunks.append(chunk)
        with self._changed:
            self._planned.append(Work(planned, chunks))
            self._next += 1
            self._changed.notify_all()

    def _open_window(self, planned: Planned, item: int) -> None:
        """Name the chunks of a lane's window; each is read when the order first comes to it."""
        placed = planned.placed
        source, lane, epoch = int(placed.source[item]), int(placed.lane[item]), int(placed.epoch[item])
        samples = self._plan.together(planned, item)
        group = samples // self._plan.chunk_samples(source)
        for number in np.unique(group):
            chunk = Chunk(source, np.sort(samples[group == number]))
            for sample in chunk.samples.tolist():
                self._chunks[source, lane, epoch, sample] = chunk

    def _read_chunk(self, chunk: Chunk) -> None:
        with self._changed:
            self._bytes += len(chunk.samples) * self._sources[chunk.source][1]
        chunk.read = self._reader.submit(chunk.source, chunk.samples)

    def _begin_decoding(self, work: Work) -> None:
        size = self._limits.image_size
        num_items = len(work.chunks)
        work.images = np.empty((num_items, size, size, 3), np.uint8)
        work.images[~work.planned.valid] = 0
        work.payloads, work.bad = [None] * num_items, [[] for _ in range(num_items)]
        work.missing = int(work.planned.valid.sum())
        with self._changed:  # from here on the consumer may take it: a batch of padding has nothing missing
            self._planned.popleft()
            self._started.append(work)
            self._changed.notify_all()
        for item, chunk in enumerate(work.chunks):
            if chunk is not None:
                assert chunk.read is not None
                chunk.read.add_done_callback(partial(self._submit_item, work, item))

    def _submit_item(self, work: Work, item: int, _: "Future[dict[int, Payload]]") -> None:
        with self._changed:
            if not self._stopped:
                self._pool.submit(self._finish_item, work, item)

    def _finish_item(self, work: Work, item: int) -> None:
        try:
            self._decode_item(work, item)
        except BaseException as error:  # noqa: BLE001  whatever it is, the consumer raises it
            with self._changed:
                work.error = work.error or error
                self._changed.notify_all()
            return
        source = int(work.planned.placed.source[item])
        with self._changed:
            work.missing -= 1
            self._bytes -= self._sources[source][1]
            if not work.missing:
                self._changed.notify_all()

    def _decode_item(self, work: Work, item: int) -> None:
        chunk, placed = work.chunks[item], work.planned.placed
        assert chunk is not None
        assert chunk.read is not None
        assert work.images is not None
        payload = chunk.read.result().pop(int(placed.sample[item]))
        position = int(work.planned.position[item])
        faults: list[tuple[Payload, SampleError]] = []
        while True:
            try:
                if payload.fault is not None:
                    raise payload.fault
                self._decode(payload, position, work.images[item])
                break
            except SampleError as error:
                faults.append((payload, error))
            if not self._plan.replaces:
                work.images[item] = 0
                break
            if len(faults) >= self._limits.max_bad_consecutive:
                break  # the budget stops the run when this batch is delivered
            sample = self._plan.replacement(placed, item, len(faults))
            payload = self._reader.read(chunk.source, np.array([sample], np.int64))[sample]
        work.payloads[item] = payload
        given = payload.key if faults and payload is not faults[-1][0] else ""
        work.bad[item] = [self._bad(position, chunk.source, fault, error, given) for fault, error in faults]

    def _bad(self, position: int, source: int, payload: Payload, error: SampleError, given: str) -> Bad:
        shard, offset = payload.where
        return Bad(
            position=position,
            source=self._sources[source][0],
            shard=shard,
            key=payload.key,
            offset=offset,
            reason=error.reason,
            message=str(error),
            replaced_by=given,
        )
