"""Running units of work: in this process, in a pool of processes, or on a Ray cluster.

A unit is a pure function of its own description that commits its own result; the engine only schedules. So whatever
dies, a rerun of the units without a commit record ends with the same bytes. The one thing a reader would get wrong:
when a worker dies, every unit that ran beside it is a suspect, so suspects are tried again one at a time before one
is blamed.
"""

import ctypes
import multiprocessing
import os
import signal
import sys
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from typing import Any, Literal, Protocol, TypeVar

from headrace.shards.units import kill_workers, without_ctrl_c

OnProgress = Callable[[int, int], None]
"""Called with (units done, units in all) from the driver."""


class Unit(Protocol):
    """What a unit of work must have: a name for messages. It must be picklable."""

    @property
    def name(self) -> str: ...


U = TypeVar("U", bound=Unit)


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


def no_progress(done: int, total: int) -> None:
    """Ignore progress."""


def run_units(
    work: Callable[[U], Any], units: Sequence[U], engine: EngineConfig, on_progress: OnProgress = no_progress
) -> None:
    """Call `work` on every unit. The first unit that raises stops the run; its error gets a note naming the unit.

    Raises RuntimeError, after all other units are done, naming the units that killed their worker twice.
    """
    on_progress(0, len(units))
    if not units:
        return
    if engine.executor == "inline":
        for done, unit in enumerate(units):
            _named(work, unit)
            on_progress(done + 1, len(units))
    elif engine.executor == "ray":
        _run_ray(work, units, engine, on_progress)
    else:
        _run_local(work, units, engine, on_progress)


def _named(work: Callable[[U], Any], unit: U) -> None:
    try:
        work(unit)
    except Exception as error:
        error.add_note(f"in unit {unit.name}")
        raise


def _run_local(work: Callable[[U], Any], units: Sequence[U], engine: EngineConfig, on_progress: OnProgress) -> None:
    workers = min(engine.workers or len(os.sched_getaffinity(0)), len(units))
    done = 0

    def finished(_: U) -> None:
        nonlocal done
        done += 1
        on_progress(done, len(units))

    suspects = _run_pool(work, units, workers, finished)
    killers: list[U] = []
    while suspects:
        # Alone in a pool, a unit that kills its worker has no one else to blame.
        unit, suspects = suspects[0], suspects[1:]
        if _run_pool(work, [unit], 1, finished):
            killers.append(unit)
    if killers:
        raise RuntimeError(
            f"{len(killers)} of {len(units)} units killed their worker twice (out of memory, or a crash in a decoder): "
            + ", ".join(unit.name for unit in killers)
        )


def _run_pool(work: Callable[[U], Any], units: Sequence[U], workers: int, finished: Callable[[U], None]) -> list[U]:
    """Run units in pools of fresh processes; return those that were running when a worker died."""
    queue, suspects = list(reversed(units)), []
    while queue:
        running: dict[Future[None], U] = {}
        context = multiprocessing.get_context("spawn")
        with ProcessPoolExecutor(workers, mp_context=context, initializer=_die_with_parent) as pool:
            try:
                while queue or running:
                    while queue and len(running) < workers:
                        unit = queue.pop()
                        with without_ctrl_c():
                            running[pool.submit(_named, work, unit)] = unit
                    ready, _ = wait(running, return_when=FIRST_COMPLETED)
                    for future in ready:
                        future.result()
                        finished(running.pop(future))
            except BrokenProcessPool:
                for future, unit in running.items():
                    if future.done() and future.exception() is None:
                        finished(unit)
                    else:
                        suspects.append(unit)
            except BaseException as error:
                if not isinstance(error, Exception):
                    kill_workers(pool)
                pool.shutdown(wait=False, cancel_futures=True)
                raise
    return suspects


def _die_with_parent() -> None:
    """Make the kernel kill this worker when the driver dies, even by kill -9."""
    if sys.platform == "linux":
        pr_set_pdeathsig = 1
        ctypes.CDLL(None, use_errno=True).prctl(pr_set_pdeathsig, signal.SIGKILL)
    parent = multiprocessing.parent_process()
    if parent is not None and not parent.is_alive():
        os._exit(1)  # it died before the kernel was asked


def _run_ray(work: Callable[[U], Any], units: Sequence[U], engine: EngineConfig, on_progress: OnProgress) -> None:
    import ray

    started = not ray.is_initialized()
    handler = signal.getsignal(signal.SIGTERM)
    if started:
        ray.init(
            address=engine.ray_address or None,
            num_cpus=None if engine.ray_address else (engine.workers or None),
            include_dashboard=False,
            log_to_driver=False,
            configure_logging=False,
        )
    try:
        # One retry: a unit that kills its worker twice is named, as in the local pool.
        task = ray.remote(max_retries=1)(_named)
        pending = {task.remote(work, unit): unit for unit in units}
        killers = []
        while pending:
            (ready,), _ = ray.wait(list(pending), num_returns=1)
            unit = pending.pop(ready)
            try:
                ray.get(ready)
            except ray.exceptions.RayTaskError as error:
                raise error.cause from None
            except (ray.exceptions.WorkerCrashedError, ray.exceptions.OutOfMemoryError):
                killers.append(unit.name)
            on_progress(len(units) - len(pending), len(units))
        if killers:
            raise RuntimeError(f"{len(killers)} of {len(units)} units killed their worker twice: {', '.join(killers)}")
    finally:
        if started:
            ray.shutdown()
            # Ray leaves its own handler behind, which would take the signal from whoever comes next in this process.
            if handler is not None and threading.current_thread() is threading.main_thread():
                signal.signal(signal.SIGTERM, handler)
