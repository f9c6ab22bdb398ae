"""Run a pure function over units of work: in this process, in a pool of processes, or on a Ray cluster.

A unit is described by what its work needs and commits its own result; an executor only schedules. So whatever dies, a
rerun of the units without a commit record ends with the same bytes. Processes are spawned, not forked (threads of
fsspec, OpenCV and Arrow do not survive a fork): `work` and its units must be picklable, and `memory://` files are seen
by one process only.

One rule for a worker's death, whatever the executor: all units that ran beside it are suspects and are tried again
alone, after the others are done. One that kills its worker again is named.
"""

import contextlib
import ctypes
import logging
import multiprocessing
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import AbstractContextManager
from dataclasses import dataclass
from multiprocessing import resource_tracker
from multiprocessing.process import BaseProcess
from typing import Any, Literal, Protocol, TypeVar

log = logging.getLogger(__name__)

OnProgress = Callable[[int, int], None]
"""Called with (units done, units in all) from the driver."""

MAX_KILLERS = 20
"""So many units that kill their worker alone are no accident of the units: the run stops."""
MAX_BROKEN_POOLS = 10
"""After so many deaths the suspects are judged before more units are begun."""


class Unit(Protocol):
    """What a unit of work must have: a name for messages. It must be picklable."""

    @property
    def name(self) -> str: ...


U = TypeVar("U", bound=Unit)
R = TypeVar("R")


@dataclass(frozen=True, kw_only=True, slots=True)
class EngineConfig:
    """Where units of work run."""

    executor: Literal["local", "inline", "ray"] = "local"
    """`local`: a pool of processes; `inline`: this process, for debugging; `ray`: tasks on a Ray cluster."""
    workers: int = 0
    """Units at a time; 0 means one for each CPU this process may use (under Ray: as many as the cluster has)."""
    ray_address: str = ""
    """Address of a running Ray cluster; empty starts one on this machine."""

    def __post_init__(self) -> None:
        if self.workers < 0:
            raise ValueError(f"workers must be 0 or more, got {self.workers}")


INLINE = EngineConfig(executor="inline")


class Run(Protocol):
    """What an executor does: run units, call `on_result(number, result)` for each, return those whose worker died.

    The value says how it died. Units that it neither finished nor returned are given to it again. The first error that
    `work` raises is raised, with a note that names the unit.
    """

    def __call__(
        self, work: Callable[[Any], Any], units: Mapping[int, Any], on_result: Callable[[int, Any], None]
    ) -> dict[int, str]: ...


def no_progress(done: int, total: int) -> None:
    """Ignore progress."""


def run_units(
    work: Callable[[U], R], units: Sequence[U], engine: EngineConfig, on_progress: OnProgress = no_progress
) -> list[R]:
    """Return `work(unit)` of every unit, in the order of the units.

    The first unit that raises stops the run; its error gets a note naming the unit. Raises ChildProcessError, after all
    other units are done, naming those that killed their worker twice.
    """
    results: dict[int, R] = {}

    def finished(number: int, result: R) -> None:
        results[number] = result
        on_progress(len(results), len(units))

    on_progress(0, len(units))
    if not units:
        return []
    with EXECUTORS[engine.executor](engine) as run:
        killers = _run_all(run, work, units, finished, results)
    if killers:
        raise ChildProcessError(_death({units[number].name: how for number, how in killers.items()}, len(units)))
    return [results[number] for number in range(len(units))]


def _run_all(
    run: Run,
    work: Callable[[U], R],
    units: Sequence[U],
    finished: Callable[[int, R], None],
    results: Mapping[int, R],
) -> dict[int, str]:
    """Run every unit; return those that killed their worker alone too, and stop where they are too many."""
    killers: dict[int, str] = {}
    todo = dict(enumerate(units))
    while todo:
        for number, how in run(work, todo, finished).items():
            log.warning("unit %s: its worker died (%s); it runs again, alone", units[number].name, how)
            killers |= run(work, {number: units[number]}, finished)
            if len(killers) == MAX_KILLERS:
                return killers
        todo = {number: unit for number, unit in todo.items() if number not in results and number not in killers}
    return killers


def named(work: Callable[[U], R], unit: U) -> R:
    """Return `work(unit)`; an error says which unit it was."""
    try:
        return work(unit)
    except Exception as error:
        error.add_note(f"in unit {unit.name}")
        raise


def _death(killers: Mapping[str, str], num_units: int) -> str:
    names = ", ".join(f"{name} ({how})" for name, how in killers.items())
    others = "the run stopped at so many" if len(killers) == MAX_KILLERS else "all other units are done"
    return (
        f"{len(killers)} of {num_units} units killed their worker twice, the second time alone: {names}; {others}. "
        "SIGKILL is most often memory that ran out (fewer workers at a time need less), another signal a crash in a "
        "decoder; run the same command again to go on"
    )


@contextlib.contextmanager
def _inline(_: EngineConfig) -> Iterator[Run]:
    def run(
        work: Callable[[Any], Any], units: Mapping[int, Any], on_result: Callable[[int, Any], None]
    ) -> dict[int, str]:
        for number, unit in units.items():
            on_result(number, named(work, unit))
        return {}

    yield run


@contextlib.contextmanager
def _local(engine: EngineConfig) -> Iterator[Run]:
    workers = engine.workers or len(os.sched_getaffinity(0))

    def run(
        work: Callable[[Any], Any], units: Mapping[int, Any], on_result: Callable[[int, Any], None]
    ) -> dict[int, str]:
        queue = list(units.items())[::-1]
        suspects: dict[int, str] = {}
        for _ in range(MAX_BROKEN_POOLS):
            suspects |= _run_pool(work, queue, min(workers, len(queue)), on_result) if queue else {}
        return suspects

    yield run


def _run_pool(
    work: Callable[[Any], Any], queue: list[tuple[int, Any]], workers: int, on_result: Callable[[int, Any], None]
) -> dict[int, str]:
    """Take units from the end of `queue` until it is empty or a worker dies; return those that ran then."""
    running: dict[Future[Any], int] = {}
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(workers, mp_context=context, initializer=_die_with_parent) as pool:
        processes = pool._processes
        try:
            while queue or running:
                while queue and len(running) < workers:
                    number, unit = queue[-1]
                    with without_ctrl_c():
                        running[pool.submit(named, work, unit)] = number  # raises if the pool broke meanwhile
                    queue.pop()
                ready, _ = wait(running, return_when=FIRST_COMPLETED)
                for future in ready:
                    result = future.result()
                    on_result(running.pop(future), result)
        except BrokenProcessPool:
            pool.shutdown()  # until then futures and exit codes are not all there
            suspects = []
            for future, number in running.items():
                if future.exception() is None:
                    on_result(number, future.result())
                else:
                    suspects.append(number)
            return dict.fromkeys(suspects, _how_died(processes.values()))
        except BaseException as error:
            if not isinstance(error, Exception):
                kill_workers(pool)
            pool.shutdown(wait=False, cancel_futures=True)
            raise
    return {}


def _how_died(processes: Iterable[BaseProcess]) -> str:
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


def kill_workers(pool: ProcessPoolExecutor) -> None:
    """End the workers now: who stops the driver does not wait for the units under way, which are not committed."""
    for process in list(pool._processes.values()):
        process.kill()


def _die_with_parent() -> None:
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


def _ray(engine: EngineConfig) -> AbstractContextManager[Run]:
    from headrace.shards.units_ray import open_ray  # Ray is an extra

    return open_ray(engine)


EXECUTORS: dict[str, Callable[[EngineConfig], AbstractContextManager[Run]]] = {
    "local": _local,
    "inline": _inline,
    "ray": _ray,
}
