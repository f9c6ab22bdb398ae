"""A mixture as a stream of batches.

The whole state of a stream is one position; everything else follows from the mixture. The one thing a reader would get
wrong: `state_dict` counts the batches that were handed out, never those that threads have made ready.
"""

import atexit
import os
import threading
import time
import weakref
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache, partial
from typing import Any

import cv2
import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from headrace.pipeline import state as stream_state
from headrace.pipeline.augment.crop import choose_window, position_draws
from headrace.pipeline.catalog import OpenedSource, collate
from headrace.pipeline.chunks import ChunkReader, Payload
from headrace.pipeline.decode.turbo import Decoder
from headrace.pipeline.mixture import Mixture
from headrace.pipeline.order.plan import Plan
from headrace.pipeline.prefetch import Engine, EngineLimits, WaitedFor, Work
from headrace.pipeline.quarantine import Quarantine
from headrace.shards.permutation import make_key
from headrace.shards.ranges import Patience, RangeReader

VIEW = 0


@dataclass(frozen=True, slots=True)
class Batch:
    """One rank's part of one global batch, by ascending position."""

    images: NDArray[np.uint8]
    """[B, S, S, 3], RGB, upright."""
    columns: dict[str, NDArray[np.generic] | list[Any]]
    """Columns of the index that were asked for: numbers as arrays (missing: -1 or NaN), everything else as lists."""
    position: NDArray[np.int64]
    """[B] global position."""
    source: NDArray[np.int32]
    """[B] number of the source in the mixture."""
    key: list[str]
    valid: NDArray[np.bool_]
    """[B] False only in a finite pass: the padding of its end, and damaged samples."""
    waited_seconds: float = 0.0
    """How long the caller waited for this batch."""
    waited_for: WaitedFor = "none"


class ImageMaker:
    """Payload -> the augmented square: decoding, with the window that belongs to the position."""

    def __init__(self, mixture: Mixture) -> None:
        self._augment = mixture.augment
        self._key = make_key(mixture.seed, "augment", VIEW)
        self._decoder = Decoder(max_pixels=mixture.max_pixels)

    def __call__(self, payload: Payload, position: int, out: NDArray[np.uint8]) -> None:
        """Write the picture that stands at `position` into `out`. Raises SampleError."""
        draws = position_draws(self._key, position)
        self._decoder.decode_into(payload.data, payload.orientation, partial(choose_window, self._augment, draws), out)


@dataclass(frozen=True, kw_only=True, slots=True)
class Opened:
    """What a stream stands on: checked, and not yet reading."""

    mixture: Mixture
    sources: tuple[OpenedSource, ...]
    plan: Plan
    columns: dict[str, pa.DataType]
    """Columns to deliver, and their types."""
    identity: dict[str, Any]
    """The state without its position."""
    quarantine: str
    """File of this rank; empty = none."""


class Stream:
    """An endless (or, with `once`, finite) iterator of batches. Close it, or use it in `with`."""

    _closed = True  # until the constructor has run: __del__ may be called without it

    def __init__(self, opened: Opened) -> None:
        self.mixture = opened.mixture
        self.sources = opened.sources
        self.plan = opened.plan
        self._opened = opened
        self._delivered = 0
        self._engine: Engine | None = None
        self._ranges: RangeReader | None = None
        self._process = os.getpid()
        self._quarantine = self._new_quarantine()
        self._closed = False

    def __enter__(self) -> "Stream":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __del__(self) -> None:
        if not self._closed:
            self.close()

    def __iter__(self) -> Iterator[Batch]:
        return self

    def __next__(self) -> Batch:
        """Return the next batch. Raises ValueError for too many damaged samples, OSError for data out of reach."""
        if self._closed:
            raise ValueError("the stream is closed")
        if self._engine is not None and self._process != os.getpid():
            raise ValueError("the stream was begun before this process was forked off; open it in this one")
        engine = self._engine or self._start()
        begun = time.perf_counter()
        work, waited_for = engine.take()
        waited = time.perf_counter() - begun
        if work is None:
            raise StopIteration
        try:
            self._quarantine.deliver(work.bad)
            batch = self._to_batch(work, waited, waited_for)
        except BaseException:
            self._stop()  # the batch is taken but not delivered: whoever goes on begins with it again
            raise
        self._delivered += 1
        return batch

    @property
    def position(self) -> int:
        """The global position of the next batch."""
        return self._delivered * int(self._opened.identity["global_batch"])

    @property
    def views(self) -> dict[str, float]:
        """How often each source has been gone through up to here, over all ranks; 1.5 = half way through its second."""
        given = self.plan.given(self.position)
        return {
            source.config.name: count / source.num_samples for source, count in zip(self.sources, given, strict=True)
        }

    @property
    def weights(self) -> dict[str, float]:
        """The share of each source as the mixture meets it; in a finite pass, its share of the samples."""
        shares = self.plan.shares
        return {source.config.name: share for source, share in zip(self.sources, shares, strict=True)}

    @property
    def bad_samples(self) -> dict[str, int]:
        """Damaged samples since the stream was opened or its state loaded, by reason."""
        return dict(sorted(self._quarantine.reasons.items()))

    @property
    def num_retries(self) -> int:
        """Reads that were tried again since the stream was started."""
        return self._ranges.num_retries if self._ranges else 0

    def state_dict(self) -> dict[str, Any]:
        """Return where the stream stands: small, plain JSON."""
        return {"position": self.position, **self._opened.identity}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from `state`, at any world size. Raises ValueError, naming the field, if that cannot be exact."""
        position = stream_state.check_state(state, self._opened.identity)
        self._stop()
        self._delivered = position // int(self._opened.identity["global_batch"])
        self._quarantine = self._new_quarantine()

    def close(self) -> None:
        """Stop and join every thread. A closed stream gives no more batches."""
        self._closed = True
        self._stop()

    def _new_quarantine(self) -> Quarantine:
        return Quarantine(
            self._opened.quarantine,
            max_fraction=self.mixture.max_bad_fraction,
            max_consecutive=self.mixture.max_bad_consecutive,
        )

    def _start(self) -> Engine:
        _close_at_exit().add(self)
        mixture = self.mixture
        # Our threads are the parallelism; OpenCV's own pool would only fight them.
        cv2.setNumThreads(1)
        patience = Patience(timeout_seconds=mixture.read_timeout_seconds, retries=mixture.read_retries)
        self._ranges = RangeReader(patience)
        reader = ChunkReader(self.sources, self._ranges, io_threads=mixture.io_threads, verify_crc=mixture.verify_crc)
        limits = EngineLimits(
            image_size=mixture.image_size,
            decode_threads=mixture.decode_threads or len(os.sched_getaffinity(0)),
            prefetch_batches=mixture.prefetch_batches,
            memory_bytes=mixture.memory_bytes,
            max_bad_consecutive=mixture.max_bad_consecutive,
        )
        self._process = os.getpid()
        names = [(source.config.name, source.mean_bytes) for source in self.sources]
        self._engine = Engine(self.plan, reader, ImageMaker(mixture), limits=limits, sources=names)
        self._engine.start(self._delivered)
        return self._engine

    def _stop(self) -> None:
        if self._process != os.getpid():
            self._engine = self._ranges = None  # threads and connections are those of the process that forked
        if self._ranges is not None:
            self._ranges.interrupt()
        if self._engine is not None:
            self._engine.close()
        if self._ranges is not None:
            self._ranges.close()
        self._engine = self._ranges = None

    def _to_batch(self, work: Work, waited: float, waited_for: WaitedFor) -> Batch:
        assert work.images is not None
        replaces = self.plan.replaces
        given = [payload if replaces or not bad else None for payload, bad in zip(work.payloads, work.bad, strict=True)]
        return Batch(
            images=work.images,
            columns={name: _column(name, kind, given) for name, kind in self._opened.columns.items()},
            position=work.planned.position,
            source=work.planned.placed.source.astype(np.int32),
            key=[payload.key if payload else "" for payload in given],
            valid=np.array([payload is not None for payload in given], np.bool_),
            waited_seconds=waited,
            waited_for=waited_for,
        )


@cache
def _close_at_exit() -> "weakref.WeakSet[Stream]":
    """Return the set whose streams are closed when the program ends, whoever forgot them."""
    streams: weakref.WeakSet[Stream] = weakref.WeakSet()

    def close() -> None:
        for stream in list(streams):
            stream.close()

    # Before the interpreter joins the threads of pools, which would wait for every read under way, also for one that
    # hangs. atexit comes after that; the private function is what concurrent.futures itself uses.
    getattr(threading, "_register_atexit", atexit.register)(close)
    return streams


def _column(name: str, kind: pa.DataType, given: Sequence[Payload | None]) -> NDArray[np.generic] | list[Any]:
    return collate([payload.rows.columns[name][payload.row].as_py() if payload else None for payload in given], kind)
