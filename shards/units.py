"""Run a pure function over units of work, in this process or in several; results in the order of the units.

The one thing a reader would get wrong: processes are spawned, not forked (fsspec's threads do not survive a fork), so
`work` and its units must be picklable and `memory://` files are seen by one process only.
"""

import contextlib
import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_EXCEPTION, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import resource_tracker
from typing import TypeVar

Unit = TypeVar("Unit")
Result = TypeVar("Result")


def run_in_processes(
    work: Callable[[Unit], Result],
    units: Sequence[Unit],
    *,
    workers: int,
    on_progress: Callable[[int, int], None] | None = None,
) -> list[Result]:
    """Return `work(unit)` for each unit; `on_progress(done, total)` is called after each.

    The first failure stops the rest and is raised. Raises OSError if a worker process dies.
    """
    if workers < 1:
        raise ValueError(f"workers must be at least 1, got {workers}")
    report = on_progress or (lambda _done, _total: None)
    if workers == 1 or len(units) < 2:
        results = []
        for unit in units:
            results.append(work(unit))
            report(len(results), len(units))
        return results
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(min(workers, len(units)), mp_context=context, initializer=_die_with_parent) as pool:
        with without_ctrl_c():
            futures = [pool.submit(work, unit) for unit in units]
        done = 0

        def count(future: Future[Result]) -> None:
            nonlocal done
            if not future.cancelled() and future.exception() is None:
                done += 1
                report(done, len(units))

        for future in futures:
            future.add_done_callback(count)
        try:
            wait(futures, return_when=FIRST_EXCEPTION)
            failed = next((future for future in futures if future.done() and future.exception()), None)
            if failed is not None:
                failed.result()
            return [future.result() for future in futures]
        except (KeyboardInterrupt, SystemExit):
            kill_workers(pool)
            raise
        except BrokenProcessPool as error:
            raise OSError("a worker process died (out of memory?); run the command again to go on") from error
        finally:
            pool.shutdown(cancel_futures=True)


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
    """A worker whose parent was killed would wait for work for ever."""
    parent = multiprocessing.parent_process()
    assert parent is not None

    def watch() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
