"""How many threads a unit of annotate uses: as many as it decodes ahead with, and one for everything else.

The engine runs a process for each core. A pool of a library's own would fight them, and sums over another number of
threads have other last bits. So every pool is set here: OpenCV's, numpy's and torch's around the unit; sessions of
onnxruntime are opened with one thread each (`detectors/onnx.py`).
"""

import contextlib
import os
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextvars import copy_context
from queue import Queue
from threading import Event, Thread
from typing import TypeVar

from threadpoolctl import threadpool_limits

from headrace.shards.images.opencv import one_opencv_thread

T = TypeVar("T")
R = TypeVar("R")

AHEAD_PER_THREAD = 2
"""Images under way for each thread that decodes."""


@contextlib.contextmanager
def one_thread_each(*, torch: bool) -> Iterator[None]:
    """Run OpenCV, numpy's products of matrices, and torch where it is used, on one thread."""
    with contextlib.ExitStack() as stack:
        # Of two threads over products as small as ours one only spins: 16 ms of CPU an image instead of 2.
        stack.enter_context(threadpool_limits(1, user_api="blas"))
        stack.enter_context(one_opencv_thread())
        if torch:
            from headrace.curation.annotate.annotators.clip_model import one_torch_thread

            stack.enter_context(one_torch_thread())
        yield


def spare_threads(num_units: int, workers: int) -> int:
    """Return how many threads each of the units may decode with, so that all cores are used; 1 where none is spare."""
    cores = len(os.sched_getaffinity(0))
    at_work = max(1, min(num_units, workers or cores))
    return max(1, cores // at_work)


def map_ahead(work: Callable[[T], R], items: Iterable[tuple[T, int]], *, threads: int, budget: int) -> Iterator[R]:
    """Yield `work(item)` in order, computed ahead by `threads`; with 1 thread in this one, when asked for.

    Each item comes with its size; those under way, or done and not taken, are at most `budget` in size, or one item.
    """
    if threads <= 1:
        for item, _ in items:
            yield work(item)
        return
    under_way: deque[tuple[Future[R], int]] = deque()
    held = 0
    with ThreadPoolExecutor(threads, thread_name_prefix="decode") as pool:
        try:
            for item, size in items:
                while under_way and (held + size > budget or len(under_way) >= threads * AHEAD_PER_THREAD):
                    future, freed = under_way.popleft()
                    held -= freed
                    yield future.result()
                under_way.append((pool.submit(work, item), size))
                held += size
            while under_way:
                yield under_way.popleft()[0].result()
        finally:
            for future, _ in under_way:
                future.cancel()


def one_ahead(items: Generator[T, None, None]) -> Iterator[T]:
    """Yield the items, the next one made by another thread meanwhile; what it raises is raised here, in its place."""
    queue: Queue[tuple[T | None, BaseException | None, bool]] = Queue(maxsize=1)
    stopped = Event()

    def fill() -> None:
        try:
            with contextlib.closing(items):
                for item in items:
                    queue.put((item, None, False))
                    if stopped.is_set():
                        return
            queue.put((None, None, True))
        except BaseException as error:  # noqa: BLE001 - whatever it is, it goes on in the other thread
            queue.put((None, error, True))

    # Log lines of the other thread belong to the same unit.
    thread = Thread(target=copy_context().run, args=(fill,), name="batch ahead", daemon=True)
    thread.start()
    try:
        while True:
            item, error, ended = queue.get()
            if error is not None:
                raise error
            if ended:
                return
            yield item  # type: ignore[misc]
    finally:
        stopped.set()
        while thread.is_alive():
            with contextlib.suppress(Exception):
                queue.get(timeout=0.05)
