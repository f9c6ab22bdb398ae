"""Units of work as tasks on a Ray cluster: a running one, or one that is started on this machine and stopped again.

Heartbeats and log lines go through a small actor, which the driver empties. Ray itself runs no unit again: that is
decided in one place, for every executor.
"""

import contextlib
import logging
import os
import signal
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any

from headrace.shards.attend import Ended, Unit, attend, hear
from headrace.shards.logs import WorkerLogs, worker_logs
from headrace.shards.progress import Tally
from headrace.shards.resources import resources_of
from headrace.shards.units import EngineConfig, Run

log = logging.getLogger(__name__)

LISTEN_SECONDS = 1.0
LOOK_SECONDS = 10.0
"""Between two looks at what the cluster has."""
PENDING_A_CPU = 2
LEAST_PENDING = 16
MAX_LOSSES = 3
"""Nodes that a unit may lose before it is a suspect itself."""
MAX_MESSAGES = 10_000
"""Messages that wait for the driver; later ones are dropped."""


@contextlib.contextmanager
def open_ray(engine: EngineConfig) -> Iterator[Run]:
    """Yield the function that runs units on the cluster at `engine.ray_address`. Raises OSError if Ray fails."""
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

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
    # Beside the driver: it must outlive every other node.
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    mailbox = ray.remote(num_cpus=0)(Mailbox).options(scheduling_strategy=here).remote()
    try:
        yield partial(_run, engine.workers, mailbox)
    except ray.exceptions.RayError as error:
        raise OSError(f"Ray failed: {type(error).__name__}: {error}") from error
    finally:
        ray.kill(mailbox)
        if started:
            ray.shutdown()
            # Ray leaves its own handler behind, which would take the signal from whoever comes next in this process.
            if handler is not None and threading.current_thread() is threading.main_thread():
                signal.signal(signal.SIGTERM, handler)


class Mailbox:
    """Messages of all workers; an actor."""

    def __init__(self) -> None:
        self._messages: list[Mapping[str, Any]] = []

    def put(self, message: Mapping[str, Any]) -> None:
        """Keep a message for the driver."""
        if len(self._messages) < MAX_MESSAGES:
            self._messages.append(message)

    def empty(self) -> list[Mapping[str, Any]]:
        """Return the messages since the last time."""
        messages, self._messages = self._messages, []
        return messages


def _attend(
    work: Callable[[Any], Any], number: int, unit: Unit, mailbox: Any, logs: WorkerLogs, folder: str
) -> Ended[Any]:
    with contextlib.suppress(OSError):  # a node that has no such folder has no files of relative paths either
        os.chdir(folder)  # a worker begins where its node was started, not where the driver was
    return attend(work, number, unit, send=mailbox.put.remote, logs=logs, driver=False)


def _run(
    workers: int, mailbox: Any, work: Callable[[Any], Any], units: Mapping[int, Unit], tally: Tally[Any]
) -> dict[int, str]:
    import ray

    deaths = (ray.exceptions.WorkerCrashedError, ray.exceptions.OutOfMemoryError)
    losses = (ray.exceptions.NodeDiedError, ray.exceptions.LocalRayletDiedError, ray.exceptions.ObjectLostError)
    task = ray.remote(max_retries=0)(_attend)
    cluster = _Cluster(workers)
    queue = list(units.items())[::-1]
    pending: dict[Any, int] = {}
    suspects: dict[int, str] = {}
    lost: Counter[int] = Counter()
    while queue or pending:
        while queue and len(pending) < cluster.room():
            number, unit = queue.pop()
            asked = task.options(**cluster.asked(unit))
            pending[asked.remote(work, number, unit, mailbox, worker_logs(), os.getcwd())] = number
        ready, _ = ray.wait(list(pending), num_returns=1, timeout=LISTEN_SECONDS)
        for message in ray.get(mailbox.empty.remote()):
            hear(message, units[message["unit"]], tally)
        tally.tell_if_due()
        for future in ready:
            number = pending.pop(future)
            try:
                ended = ray.get(future)
            except ray.exceptions.RayTaskError as error:
                raise error.cause from None
            except losses as error:
                tally.died(number)
                lost[number] += 1
                if lost[number] < MAX_LOSSES:  # a node takes many units with it, and none of them need be the cause
                    log.warning(
                        "unit %s: its node is gone (%s); it runs again", units[number].name, type(error).__name__
                    )
                    queue.append((number, units[number]))
                else:
                    suspects[number] = type(error).__name__
            except deaths as error:
                tally.died(number)
                suspects[number] = type(error).__name__
            else:
                tally.ended(number, ended.result, ended.beat)
    return suspects


class _Cluster:
    """What the cluster has, looked up now and then: nodes come and go."""

    def __init__(self, workers: int) -> None:
        self._workers = workers
        self._resources: Mapping[str, float] = {}
        self._looked: float | None = None

    def room(self) -> int:
        """Return how many units are handed to Ray at a time: enough to keep it busy, few enough to wait for."""
        return self._workers or max(LEAST_PENDING, PENDING_A_CPU * int(self._now().get("CPU", 1)))

    def asked(self, unit: Unit) -> dict[str, float]:
        """Return the options of a unit's task. Raises ValueError if it needs a GPU, and there is none."""
        need = resources_of(unit)
        there_are = self._now().get("GPU", 0) >= 1
        if need.gpu == "one" and not there_are:
            raise ValueError(f"{unit.name} needs a GPU, and no node of the Ray cluster has one")
        return {"num_cpus": need.cpus, "num_gpus": 1 if need.takes_gpu(there_are=there_are) else 0}

    def _now(self) -> Mapping[str, float]:
        import ray

        if self._looked is None or time.monotonic() - self._looked > LOOK_SECONDS:
            self._resources, self._looked = ray.cluster_resources(), time.monotonic()
        return self._resources
