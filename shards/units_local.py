"""Units of work in a pool of processes on this machine.

A worker dies with its driver, whatever ends that, and never gets a Ctrl-C of its own.
"""

import contextlib
import ctypes
import functools
import multiprocessing
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextvars import ContextVar
from multiprocessing import resource_tracker
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from typing import Any

from headrace.shards.attend import Ended, Unit, attend, hear
from headrace.shards.channel import Channel, Sender
from headrace.shards.logs import WorkerLogs, worker_logs
from headrace.shards.progress import Tally
from headrace.shards.resources import has_gpu, resources_of

LISTEN_SECONDS = 0.1
MAX_BROKEN_POOLS = 10
"""After so many deaths the suspects are judged before more units are begun."""

_DESK: ContextVar[Callable[..., Ended[Any]]] = ContextVar("headrace.desk")
"""In a worker: `attend` with what this process was given."""


def run_local(workers: int, work: Callable[[Any], Any], units: Mapping[int, Unit], tally: Tally[Any]) -> dict[int, str]:
    """Run units in processes, `workers` at a time; return those whose worker died, with how it died.

    Of units that take a GPU one runs at a time, beside others that take none.
    """
    suspects: dict[int, str] = {}
    queue = list(units.items())[::-1]
    with Channel() as channel:

        def listen() -> None:
            for message in channel.messages():
                hear(message, units[message["unit"]], tally)
            tally.tell_if_due()

        for _ in range(MAX_BROKEN_POOLS):
            if queue:
                suspects |= _Pool(min(workers, len(queue)), work, channel.writer).run(queue, tally, listen)
                listen()
    return suspects


class _Pool:
    """One pool of fresh processes; it ends when a worker dies."""

    def __init__(self, workers: int, work: Callable[[Any], Any], writer: Connection) -> None:
        self._workers = workers
        self._work = work
        self._writer = writer
        self._running: dict[Future[Ended[Any]], int] = {}
        self._on_gpu: set[int] = set()

    def run(self, queue: list[tuple[int, Unit]], tally: Tally[Any], listen: Callable[[], None]) -> dict[int, str]:
        """Take units from the end of `queue` until it is empty or a worker dies; return those that ran then."""
        context = multiprocessing.get_context("spawn")
        start = functools.partial(_start_worker, self._writer, worker_logs())
        with ProcessPoolExecutor(self._workers, mp_context=context, initializer=start) as pool:
            processes = pool._processes
            try:
                while queue or self._running:
                    self._submit(pool, queue)
                    ready, _ = wait(self._running, timeout=LISTEN_SECONDS, return_when=FIRST_COMPLETED)
                    listen()
                    for future in ready:
                        ended = future.result()
                        tally.ended(self._running.pop(future), ended.result, ended.beat)
            except BrokenProcessPool:
                pool.shutdown()  # until then futures and exit codes are not all there
                return dict.fromkeys(self._suspects(tally), how_died(processes.values()))
            except BaseException as error:  # whatever ends the run; it is raised again
                if not isinstance(error, Exception):  # Ctrl-C, or another signal
                    _kill_workers(pool)
                pool.shutdown(wait=False, cancel_futures=True)
                raise
        return {}

    def _submit(self, pool: ProcessPoolExecutor, queue: list[tuple[int, Unit]]) -> None:
        while len(self._running) < self._workers:
            place = self._next(queue)
            if place is None:
                return
            number, unit = queue[place]
            with without_ctrl_c():
                self._running[pool.submit(_attend, self._work, number, unit)] = number
            del queue[place]  # not before: a pool that broke meanwhile takes no unit
            if _takes_gpu(unit):
                self._on_gpu.add(number)

    def _next(self, queue: list[tuple[int, Unit]]) -> int | None:
        """Return the place of the next unit: its end, but where a unit has the GPU, the last that needs none."""
        if not queue or not self._on_gpu.intersection(self._running.values()):
            return len(queue) - 1 if queue else None
        return next((place for place in reversed(range(len(queue))) if not _takes_gpu(queue[place][1])), None)

    def _suspects(self, tally: Tally[Any]) -> list[int]:
        suspects = []
        for future, number in self._running.items():
            if future.exception() is None:
                tally.ended(number, future.result().result, future.result().beat)
            else:
                tally.died(number)
                suspects.append(number)
        return suspects


def _takes_gpu(unit: Unit) -> bool:
    return resources_of(unit).takes_gpu(there_are=has_gpu())


def how_died(processes: Iterable[BaseProcess]) -> str:
    """Say what ended the first of them to die: the pool ends the others by SIGTERM."""
    codes = [process.exitcode for process in processes if process.exitcode not in (None, 0, -signal.SIGTERM)]
    if not codes or codes[0] is None:
        return "it vanished"
    return signal.Signals(-codes[0]).name if codes[0] < 0 else f"exit code {codes[0]}"


@contextlib.contextmanager
def without_ctrl_c() -> Iterator[None]:
    """Leave Ctrl-C to this process: workers started here never get it, also not while they still import."""
    resource_tracker.ensure_running()  # on its first start it would unblock the signal again
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _kill_workers(pool: ProcessPoolExecutor) -> None:
    """End the workers now: who stops the driver does not wait for the units under way, which are not committed."""
    for process in list(pool._processes.values()):
        process.kill()


def _attend(work: Callable[[Any], Any], number: int, unit: Unit) -> Ended[Any]:
    return _DESK.get()(work, number, unit)


def _start_worker(writer: Connection, logs: WorkerLogs) -> None:
    die_with_parent()
    _DESK.set(functools.partial(attend, send=Sender(writer).send, logs=logs, driver=False))


def die_with_parent() -> None:
    """Make the kernel kill this worker when the driver dies, even by kill -9."""
    if sys.platform == "linux":
        pr_set_pdeathsig = 1
        ctypes.CDLL(None, use_errno=True).prctl(pr_set_pdeathsig, signal.SIGKILL)
    parent = multiprocessing.parent_process()
    assert parent is not None
    if not parent.is_alive():
        os._exit(1)  # it died before the kernel was asked
    if sys.platform != "linux":
        threading.Thread(target=_exit_after, args=(parent,), daemon=True).start()


def _exit_after(parent: BaseProcess) -> None:
    parent.join()
    os._exit(1)
