"""Units of work as tasks on a Ray cluster: a running one, or one that is started on this machine and stopped again."""

import contextlib
import signal
import threading
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any

from headrace.shards.units import EngineConfig, Run, named


@contextlib.contextmanager
def open_ray(engine: EngineConfig) -> Iterator[Run]:
    """Yield the function that runs units on the cluster at `engine.ray_address`."""
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
        yield partial(_run, engine.workers)
    finally:
        if started:
            ray.shutdown()
            # Ray leaves its own handler behind, which would take the signal from whoever comes next in this process.
            if handler is not None and threading.current_thread() is threading.main_thread():
                signal.signal(signal.SIGTERM, handler)


def _run(
    workers: int, work: Callable[[Any], Any], units: Mapping[int, Any], on_result: Callable[[int, Any], None]
) -> dict[int, str]:
    import ray

    task = ray.remote(max_retries=0)(named)  # who runs a unit again is decided in one place, for every executor
    queue = list(units.items())[::-1]
    pending: dict[Any, int] = {}
    suspects: dict[int, str] = {}
    while queue or pending:
        while queue and (not workers or len(pending) < workers):
            number, unit = queue.pop()
            pending[task.remote(work, unit)] = number
        (ready,), _ = ray.wait(list(pending), num_returns=1)
        number = pending.pop(ready)
        try:
            result = ray.get(ready)
        except ray.exceptions.RayTaskError as error:
            raise error.cause from None
        except (
            ray.exceptions.WorkerCrashedError,
            ray.exceptions.OutOfMemoryError,
            ray.exceptions.NodeDiedError,
        ) as error:
            suspects[number] = type(error).__name__
        else:
            on_result(number, result)
    return suspects
