"""The threads behind a stream: one that plans, a pool that reads, a pool that decodes.

Batches are finished in any order and taken in order; nothing here counts as delivered. Reading ahead is bounded by
`memory_bytes`, decoding ahead by `prefetch_batches`, and while one slow picture holds its batch up by the pixels of
`AHEAD_SHARE`. A worker's exception is kept and raised where its batch is taken, after the whole batches before it.

Whoever takes batches runs in the main thread, where a signal handler may raise between any two instructions. So he
takes no lock that a worker needs (events, futures and executors have one, a condition), also when he closes: he tells
the planning thread to. And a batch stays where it is until the stream says that it was delivered.
"""

import _thread
import heapq
import threading
import time
from collections import deque
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from typing import Literal

import numpy as np

from headrace.pipeline.ahead import Read, ReadAhead
from headrace.pipeline.chunks import ChunkReader, Payload
from headrace.pipeline.decode.decoder import Images
from headrace.pipeline.mixture import Mixture
from headrace.pipeline.order.plan import BatchPlan, StreamPlan
from headrace.pipeline.pictures import MadeRow, PictureMaker
from headrace.pipeline.stats import QueueDepths
from headrace.pipeline.threads import Bell, wait_until_gone

MAX_PLANNED_BATCHES = 64

# While somebody waits for a batch with one slow picture or read, the other threads go on with later ones, until their
# pixels take this part of memory_bytes: else 1 % of pictures that are 100 times slower halve the speed of 8 threads.
AHEAD_SHARE = 0.25
# How many batches are kept ready where the mixture leaves it open. Small ones last only milliseconds: with two of 32
# on a busy machine 3 % of the steps waited, with eight 0.1 %.
LEAST_AHEAD, MOST_AHEAD, AHEAD_BYTES = 2, 16, 256 << 20

CALLS_PER_THREAD = 2
"""Calls that a decoding thread should have before it; with fewer, more batches may be begun."""

PLANNED_ITEMS = 1024
OWN_THREADS = "headrace-"

WaitedFor = Literal["read", "decode", "none"]


@dataclass(slots=True)
class PendingBatch:
    """One batch under way."""

    plan: BatchPlan
    reads: list[Read | None]
    """Of each row, None for padding."""
    samples: list[tuple[int, int]]
    """For each source how many samples it has here, and how many a chunk."""
    views: tuple[Images, ...] | None = None
    """None until decoding begins."""
    made: dict[int, MadeRow] = field(default_factory=dict)
    """Rows that have pixels."""
    ready: list[int] = field(default_factory=list)
    """Rows whose payload was read and that no call of the decoder has taken yet."""
    unread: int = 0
    missing: int = 0
    """Rows without pixels."""
    planned_at: float = field(default_factory=lambda: time.perf_counter())  # looked up late: tests have another clock
    read_at: float = 0.0
    """When the last read that it needs had ended."""
    error: BaseException | None = None

    @property
    def is_whole(self) -> bool:
        """True if it can be taken."""
        return self.views is not None and not self.missing

    @property
    def waits_for_reads(self) -> bool:
        """True if a read that this batch needs has not ended."""
        return self.views is None or self.unread > 0


class Prefetcher:
    """Makes batches from number `first` on. `close` ends every thread it began."""

    def __init__(
        self,
        plan: StreamPlan,
        reader: ChunkReader,
        maker: PictureMaker,
        *,
        mixture: Mixture,
        first: int,
    ) -> None:
        self.batches: dict[int, PendingBatch] = {}
        """Those that are planned, by number; the stream deletes the one that it delivers."""
        self._plan = plan
        self._reader = reader
        self._maker = maker
        self._chosen_ahead = mixture.prefetch_batches
        self._wanted = self._chosen_ahead or LEAST_AHEAD
        self._memory_bytes = mixture.memory_bytes
        self._mean_bytes = [source.mean_bytes for source in reader.sources]
        self._ahead = ReadAhead(plan, reader, first=first)
        self._planned: deque[BatchPlan] = deque()
        self._plan_at_once = 1  # a call has its price, but nothing should wait for more than the first batch
        self._part = 0
        self._next_plan = self._next_start = self._taken = first
        self._bytes = self._calls = 0  # compressed, in flight; calls of the decoder that wait or run
        self._enough_calls = CALLS_PER_THREAD * maker.decoder.calls_at_once
        self._parts: list[tuple[int, int, PendingBatch, list[int]]] = []  # a heap, by position and row
        self._lock = threading.Lock()  # the workers' counts
        self._to_do, self._news = Bell(), Bell()
        self._plan_error: BaseException | None = None
        self._broken: BaseException | None = None
        self._begun = self._stopped = self._over = False
        self._first, self._awaited = first, False
        self._ended = Bell()
        self._thread = threading.Thread(target=self._run, name="headrace-plan", daemon=True)
        self._pool = ThreadPoolExecutor(maker.decoder.calls_at_once, thread_name_prefix="headrace-decode")

    def start(self) -> None:
        """Begin."""
        self._begun = True
        try:
            # `Thread.start` waits on a condition, so it may not be called where a signal handler may raise.
            _thread.start_new_thread(self._start_thread, ())
        except (RuntimeError, MemoryError):  # no thread can be had: `close` must not wait for one
            self._begun = False
            raise

    @property
    def is_running(self) -> bool:
        """False before it was started and once it was told to close, be it that either was interrupted."""
        return self._begun and not self._stopped

    def take(self, number: int) -> tuple[PendingBatch | None, WaitedFor]:
        """Return batch `number` when it is whole (None = behind the end) and what held it up: read, decode or none.

        It may be taken again until it is deleted from `batches`. Called from one thread at a time.
        """
        waited_for: WaitedFor = "none"
        while True:
            plan_error = self._plan_error  # looked at first: all batches before it are in place then
            batch = self.batches.get(number)
            if batch is not None and batch.is_whole:
                self._taken, self._awaited = number + 1, False
                self._to_do.ring()
                return batch, waited_for
            error = self._broken or (batch.error if batch is not None else plan_error)
            if error is not None:
                raise error
            if batch is None and self._is_last(number):
                return None, waited_for
            if waited_for == "none":
                waited_for = "read" if batch is None or batch.waits_for_reads else "decode"
            if self._stopped:  # another thread closes: nothing comes any more
                self._news.ring()
                raise ValueError("the stream is closed")
            if not self._awaited and number > self._first:
                self._awaited = True  # the first batch has enough to do with itself
                self._to_do.ring()
            self._news.wait()

    def num_whole(self, number: int) -> int:
        """Return how many batches from `number` on could be taken at once."""
        count = 0
        while (batch := self.batches.get(number + count)) is not None and batch.is_whole:
            count += 1
        return count

    def queues(self) -> QueueDepths:
        """Return what is under way; read without a lock, so one number may be older than another."""
        begun = [batch for batch in list(self.batches.values()) if batch.views is not None]
        return QueueDepths(
            planned_batches=max(0, self._next_plan - self._next_start),
            begun_batches=len(begun),
            whole_batches=self.num_whole(self._taken),
            reads=self._reader.num_open,
            pictures=max(0, sum(batch.missing - batch.unread for batch in begun)),
            bytes_in_flight=self._bytes,
            wanted_batches=self._wanted,
        )

    def close(self) -> None:
        """Stop and join every thread; whoever was interrupted in here calls it again."""
        self._stopped = True
        self._to_do.ring()
        self._news.ring()
        if self._begun and threading.current_thread().name.startswith(OWN_THREADS):
            return  # a destructor that the collector ran in one of ours: they end, but cannot wait for themselves
        while self._begun and not self._over:
            self._ended.wait()
        self._ended.ring()  # for another thread that closes too
        if not self._begun:
            self._close_pools()
            return
        self._thread.join()
        wait_until_gone([self._thread])

    def _start_thread(self) -> None:
        try:
            self._thread.start()
        except (RuntimeError, MemoryError) as error:  # no thread can be had: the consumer raises it
            self._begun = False  # first: whoever sees the error closes
            self._broken = error
            self._news.ring()
            self._ended.ring()

    def _run(self) -> None:
        try:
            while not self._stopped:
                if self._may_start():
                    self._begin_decoding(self.batches[self._next_start])
                elif self._may_plan():
                    self._try_to_plan()
                else:
                    self._to_do.wait()
        except BaseException as error:  # noqa: BLE001  a thread has no caller, who would wait for ever: he raises it
            self._broken = error
            self._news.ring()
            while not self._stopped:
                self._to_do.wait()
        finally:
            try:
                self._close_pools()
            finally:  # whatever a decoder of others raises there
                self._over = True
                self._ended.ring()

    def _close_pools(self) -> None:
        mine = [thread for thread in threading.enumerate() if thread.name.startswith(OWN_THREADS)]
        self._reader.interrupt()
        self._pool.shutdown(wait=True, cancel_futures=True)  # replacements are read there
        self._reader.close()
        wait_until_gone(thread for thread in mine if not thread.is_alive())
        self._maker.decoder.close()

    def _try_to_plan(self) -> None:
        try:
            self._plan_next()
        except (ValueError, OSError) as error:
            self._plan_error = error  # raised after the batches that are planned
            self._news.ring()

    def _may_start(self) -> bool:
        if self._next_start >= self._next_plan:
            return False
        return self._next_start < self._taken + self._wanted or self._may_run_ahead()

    def _may_run_ahead(self) -> bool:
        """True if somebody waits for a batch that is held up while the decoder has little to do."""
        held_up = self.batches.get(self._taken)
        if not self._awaited or held_up is None or held_up.is_whole:
            return False
        if self._calls >= self._enough_calls or self._is_pressed():
            return False
        num_items = len(held_up.reads) * (self._next_start - self._taken - self._wanted + 1)
        return num_items * self._maker.bytes_per_item <= AHEAD_SHARE * self._memory_bytes

    def _may_plan(self) -> bool:
        num_planned = self._next_plan - self._next_start
        if self._plan_error or self._is_last(self._next_plan) or num_planned >= MAX_PLANNED_BATCHES:
            return False
        first = self.batches.get(self._ahead.first)
        if first is not None and not first.is_whole:
            return False  # what is read and planned for later would take disk and CPU from what is wanted now
        # With nothing planned the next batch must go on: opening has checked that one window of all lanes fits.
        if not num_planned:
            return True
        return self._bytes < self._memory_bytes and not self._is_pressed()

    def _is_pressed(self) -> bool:
        """True at the beginning while reads of the batches that were begun have not ended."""
        if not self._ahead.is_easing(self._next_plan):
            return False
        begun = [self.batches.get(number) for number in range(self._taken, self._next_start)]
        return any(batch is not None and batch.waits_for_reads for batch in begun)

    def _is_last(self, number: int) -> bool:
        return self._plan.num_batches is not None and number >= self._plan.num_batches

    def _plan_next(self) -> None:
        begun = time.perf_counter()
        if not self._planned:
            self._planned.extend(self._plan.batches(self._next_plan, self._plan_at_once))
        plan = self._planned.popleft()
        self._plan_at_once = max(1, PLANNED_ITEMS // len(plan.position))
        if plan.part != self._part:
            # Of sources whose lanes change here: other ranks give it, or it is read again.
            self._count_bytes(self._ahead.forget(self._plan.stale(self._part, plan.part)), -1)
            self._part = plan.part
        if self._chosen_ahead is None:
            self._wanted = batches_ahead(len(plan.position) * self._maker.bytes_per_item)
        reads = self._ahead.reads_of(self._next_plan, plan)
        self.batches[self._next_plan] = PendingBatch(plan, reads, self._samples_of_chunks(plan))
        self._count_bytes(self._ahead.take_begun(), 1)
        self._next_plan += 1
        self._reader.clock.tally("plan").add(time.perf_counter() - begun)

    def _samples_of_chunks(self, plan: BatchPlan) -> list[tuple[int, int]]:
        counts = np.bincount(plan.placed.source[plan.valid]).tolist()
        return [(count, self._plan.chunk_samples(source)) for source, count in enumerate(counts) if count]

    def _count_bytes(self, samples: Sequence[int], sign: int) -> None:
        """Add samples of each source to what is in flight, or take them off."""
        num_bytes = sum(count * size for count, size in zip(samples, self._mean_bytes, strict=True))
        with self._lock:
            self._bytes += sign * num_bytes

    def _begin_decoding(self, batch: PendingBatch) -> None:
        views = self._maker.empty(batch.plan)
        batch.missing = batch.unread = int(batch.plan.valid.sum())
        batch.views = views  # from here on the consumer may take it: a batch of padding has nothing missing
        self._next_start += 1
        self._news.ring()
        rows: dict[Read, list[int]] = {}
        for row, read in enumerate(batch.reads):
            if read is not None:
                rows.setdefault(read, []).append(row)
        for read, together in rows.items():
            # A future keeps its callbacks, and the chunk of a wide window lives long: it must not keep the batch too.
            read.add_done_callback(partial(self._has_read, [batch], together))

    def _has_read(self, holder: list[PendingBatch], rows: list[int], _: Read) -> None:
        batch = holder.pop()
        if self._stopped:  # the callbacks of cancelled reads run in the thread that closes
            return
        try:
            self._hand_over(batch, rows)
        except BaseException as error:  # noqa: BLE001  a future only logs what its callback raises
            batch.error = batch.error or error
            self._news.ring()

    def _hand_over(self, batch: PendingBatch, rows: list[int]) -> None:
        """Hand rows to the decoder, in parts of its size."""
        size = self._maker.decoder.items_per_call
        with self._lock:
            batch.ready += rows
            batch.unread -= len(rows)
            batch.read_at = time.perf_counter()
            parts = []
            while len(batch.ready) >= size or (batch.ready and not batch.unread):
                parts.append(sorted(batch.ready[:size]))
                del batch.ready[:size]
            self._calls += len(parts)
            for part in parts:
                heapq.heappush(self._parts, (int(batch.plan.position[0]), part[0], batch, part))
        if not batch.unread:
            self._to_do.ring()  # whoever was pressed may be no longer
        for _part in parts:
            self._pool.submit(self._finish_rows)  # RuntimeError: it was shut down since, or no thread can be had

    def _finish_rows(self) -> None:
        """Decode what the earliest batch has waiting: reads end in any order, and later ones must not come before."""
        with self._lock:
            _, _, batch, rows = heapq.heappop(self._parts)
        try:
            assert batch.views is not None
            own = {row: self._payload_of(batch, row) for row in rows}
            batch.made.update(self._maker.fill(batch.plan, own, batch.views))
        except BaseException as error:  # noqa: BLE001  a decoder of others may raise anything: the consumer raises it
            batch.error = batch.error or error
            with self._lock:
                self._calls -= 1
            self._news.ring()
            return
        freed = sum(self._mean_bytes[int(batch.plan.placed.source[row])] for row in rows)
        with self._lock:
            batch.missing -= len(rows)
            self._bytes -= freed
            self._calls -= 1
            whole, runs_low = not batch.missing, self._calls == self._enough_calls - 1
        if whole:
            self._news.ring()
        if whole or runs_low:
            self._to_do.ring()

    def _payload_of(self, batch: PendingBatch, row: int) -> Payload:
        read = batch.reads[row]
        assert read is not None
        return read.result().pop(int(batch.plan.placed.sample[row]))


def batches_ahead(batch_bytes: int) -> int:
    """Return how many batches of so many bytes of pixels are kept ready."""
    return min(max(AHEAD_BYTES // max(1, batch_bytes), LEAST_AHEAD), MOST_AHEAD)
