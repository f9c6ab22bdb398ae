"""Run a pure function over units of work: in this process, in a pool of processes, or on a Ray cluster.

A unit is described by what its work needs and commits its own result; an executor only schedules. So whatever dies, a
rerun of the units without a commit record ends with the same bytes. Processes are spawned, not forked (threads of
fsspec, OpenCV and Arrow do not survive a fork): `work` and its units must be picklable, and `memory://` files are seen
by one process only.

One rule for a worker's death, whatever the executor: all units that ran beside it are suspects and are tried again
alone, after the others are done. One that kills its worker again is named, and noted in quarantine.

Work that is a `Streaming` has several units under way in each process (under Ray: one).
"""

import contextlib
import logging
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, Literal, Protocol, TypeVar

from headrace.shards.attend import Ended, Unit, attend, hear
from headrace.shards.desk import Streaming, desk_of
from headrace.shards.logs import worker_logs
from headrace.shards.progress import OnProgress, Tally, no_progress
from headrace.shards.quarantine import MAX_DEATHS, NO_QUARANTINE, Quarantine, risked

__all__ = ["EXECUTORS", "INLINE", "EngineConfig", "OnProgress", "Run", "Streaming", "Unit", "no_progress", "run_units"]

log = logging.getLogger(__name__)

MAX_KILLERS = 20
"""So many units that kill their worker alone are no accident of the units: the run stops."""

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
    """What an executor does: run units, tell `tally` what comes of each, return those whose worker died.

    The value says how it died. Units that it neither finished nor returned are given to it again. The first error that
    `work` raises is raised, with a note that names the unit.
    """

    def __call__(self, work: Callable[[Any], Any], units: Mapping[int, Any], tally: Tally[Any]) -> dict[int, str]: ...


def run_units(
    work: Callable[[U], R],
    units: Sequence[U],
    engine: EngineConfig,
    on_progress: OnProgress = no_progress,
    on_result: Callable[[int, R], None] | None = None,
    *,
    quarantine: Quarantine = NO_QUARANTINE,
) -> list[R]:
    """Return `work(unit)` of every unit, in the order of the units; `on_result(number, result)` gets each when it ends.

    The first unit that raises stops the run; its error gets a note naming the unit. Raises ChildProcessError, after all
    other units are done, naming those that killed their worker twice. These are noted in `quarantine`, and those that
    an earlier run noted there come last and alone.
    """
    deaths = quarantine.deaths()

    def ended(number: int, result: R) -> None:
        if units[number].name in deaths:
            quarantine.release(units[number].name)
        if on_result is not None:
            on_result(number, result)

    tally: Tally[R] = Tally([unit.name for unit in units], on_progress, ended)
    tally.tell()
    if not units:
        return []
    log.info("%d units, executor %s", len(units), engine.executor)
    suspects = {number: unit for number, unit in enumerate(units) if unit.name in deaths}
    others = {number: unit for number, unit in enumerate(units) if number not in suspects}
    by_others: Callable[[U], R] = risked(work, quarantine, deaths) if engine.executor == "inline" else work
    with EXECUTORS[engine.executor](engine) as run:
        killers = _run_all(run, by_others, others, tally)
        for number, unit in suspects.items():
            if len(killers) >= MAX_KILLERS:
                break
            log.warning("unit %s: it ended the process of an earlier run; it comes last, alone", unit.name)
            if engine.executor == "inline" and deaths[unit.name] >= MAX_DEATHS:
                with _local(EngineConfig(workers=1)) as apart:
                    killers |= apart(work, {number: unit}, tally)
            else:
                killers |= run(by_others, {number: unit}, tally)
    if killers:
        for number, how in killers.items():
            quarantine.put(units[number].name, how, MAX_DEATHS)
        raise ChildProcessError(
            _death({units[number].name: how for number, how in killers.items()}, len(units), quarantine.url)
        )
    return [tally.results[number] for number in range(len(units))]


def _run_all(run: Run, work: Callable[[U], R], units: Mapping[int, U], tally: Tally[R]) -> dict[int, str]:
    """Run every unit; return those that killed their worker alone too, and stop where they are too many."""
    killers: dict[int, str] = {}
    todo = dict(units)
    while todo:
        for number, how in run(work, todo, tally).items():
            log.warning("unit %s: its worker died (%s); it runs again, alone", units[number].name, how)
            killers |= run(work, {number: units[number]}, tally)
            if len(killers) == MAX_KILLERS:
                return killers
        todo = {number: unit for number, unit in todo.items() if number not in tally.results and number not in killers}
    return killers


def _death(killers: Mapping[str, str], num_units: int, quarantine: str) -> str:
    names = ", ".join(f"{name} ({how})" for name, how in killers.items())
    others = "the run stopped at so many" if len(killers) >= MAX_KILLERS else "all other units are done"
    return (
        f"{len(killers)} of {num_units} units killed their worker twice, the second time alone: {names}; {others}. "
        "SIGKILL is most often memory that ran out (fewer workers at a time need less), another signal a crash in a "
        "decoder; run the same command again to go on" + (f" (they are noted in {quarantine})" if quarantine else "")
    )


@contextlib.contextmanager
def _inline(_: EngineConfig) -> Iterator[Run]:
    def run(work: Callable[[Any], Any], units: Mapping[int, Any], tally: Tally[Any]) -> dict[int, str]:
        if isinstance(work, Streaming):
            _stream_inline(work, units, tally)
            return {}
        for number, unit in units.items():

            def send(message: Mapping[str, Any], unit: Unit = unit) -> None:
                hear(message, unit, tally)
                tally.tell_if_due()

            ended = attend(work, number, unit, send=send, logs=worker_logs(), driver=True)
            tally.ended(number, ended.result, ended.beat)
        return {}

    yield run


def _stream_inline(work: Streaming[Any, Any], units: Mapping[int, Any], tally: Tally[Any]) -> None:
    def send(message: Mapping[str, Any]) -> None:
        hear(message, units[message["unit"]], tally)
        tally.tell_if_due()

    def end(number: int, ended: Ended[Any]) -> None:
        tally.ended(number, ended.result, ended.beat)

    work.stream(desk_of(units, end, send=send, logs=worker_logs()))


@contextlib.contextmanager
def _local(engine: EngineConfig) -> Iterator[Run]:
    from headrace.shards.streams_local import stream_local
    from headrace.shards.units_local import run_local

    workers = engine.workers or len(os.sched_getaffinity(0))

    def run(work: Callable[[Any], Any], units: Mapping[int, Any], tally: Tally[Any]) -> dict[int, str]:
        if isinstance(work, Streaming):
            return stream_local(workers, work, units, tally)
        return run_local(workers, work, units, tally)

    yield run


def _ray(engine: EngineConfig) -> AbstractContextManager[Run]:
    from headrace.shards.units_ray import open_ray  # Ray is an extra

    return open_ray(engine)


EXECUTORS: dict[str, Callable[[EngineConfig], AbstractContextManager[Run]]] = {
    "local": _local,
    "inline": _inline,
    "ray": _ray,
}
