"""Units of work as tasks on a Ray cluster: a running one, or one that is started on this machine and stopped again.

Heartbeats and log lines go through a small actor, which the driver empties. Ray itself runs no unit again: that is
decided in one place, for every executor.
"""

import contextlib
import signal
import threading
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any

from headrace.shards.attend import Ended, Unit, attend, hear
from headrace.shards.logs import WorkerLogs, worker_logs
from headrace.shards.progress import Tally
from headrace.shards.units import EngineConfig, Run

LISTEN_SECONDS = 1.0
MAX_MESSAGES = 10_000
"""Messages that wait for the driver; later ones are dropped."""


@contextlib.contextmanager
def open_ray(engine: EngineConfig) -> Iterator[Run]:
    """Yield the function that runs units on the cluster at `engine.ray_address`. Raises OSError if Ray fails."""
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
    mailbox = ray.remote(num_cpus=0)(Mailbox).remote()
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


def _attend(work: Callable[[Any], Any], number: int, unit: Unit, mailbox: Any, logs: WorkerLogs) -> Ended[Any]:
    return attend(work, number, unit, send=mailbox.put.remote, logs=logs, driver=False)


def _run(
    workers: int, mailbox: Any, work: Callable[[Any], Any], units: Mapping[int, Unit], tally: Tally[Any]
) -> dict[int, str]:
    import ray

    deaths = (ray.exceptions.WorkerCrashedError, ray.exceptions.OutOfMemoryError, ray.exceptions.NodeDiedError)
    task = ray.remote(max_retries=0)(_attend)
    queue = list(units.items())[::-1]
    pending: dict[Any, int] = {}
    suspects: dict[int, str] = {}
    while queue or pending:
        while queue and (not workers or len(pending) < workers):
            number, unit = queue.pop()
            pending[task.remote(work, number, unit, mailbox, worker_logs())] = number
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
            except deaths as error:
                tally.died(number)
                suspects[number] = type(error).__name__
            else:
                tally.ended(number, ended.result, ended.beat)
    return suspects
