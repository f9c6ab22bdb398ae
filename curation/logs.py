"""`logs/` of a job: one file for each run of a stage, one for each unit of work that logged something.

Logs tell what happened on one machine, with times; they are no part of a job's result, and removing them costs nothing.
A remote job has none.
"""

import contextlib
import logging
import os
import time
from collections.abc import Iterator
from pathlib import Path

from headrace import urlpath
from headrace.curation.job import Job
from headrace.shards.logs import PACKAGE, RunLog

log = logging.getLogger(__name__)

KEPT_RUNS = 20
"""Files of the newest runs of a stage that are kept."""


@contextlib.contextmanager
def stage_log(job: Job, stage: str) -> Iterator[None]:
    """Write what the stage inside logs, from INFO up, to files in `logs/` of a local job."""
    if not urlpath.is_local(job.url):
        with _told(job, stage):
            yield
        return
    folder = urlpath.local_path(job.logs)
    _remove_old(folder, stage)
    begun = time.strftime("%Y%m%dT%H%M%S")
    handler = RunLog(folder / f"{stage}-{begun}-{os.getpid()}.log", units=folder / stage)
    package = logging.getLogger(PACKAGE)
    level = package.level
    package.addHandler(handler)
    package.setLevel(min(package.getEffectiveLevel(), logging.INFO))
    try:
        with _told(job, stage):
            yield
    finally:
        package.removeHandler(handler)
        package.setLevel(level)
        handler.close()


@contextlib.contextmanager
def _told(job: Job, stage: str) -> Iterator[None]:
    begun = time.monotonic()
    log.info("%s of %s begins", stage, job.url)
    try:
        yield
    except BaseException as error:
        log.info("%s stops after %.1f s: %s: %s", stage, time.monotonic() - begun, type(error).__name__, error)
        raise
    log.info("%s ends after %.1f s", stage, time.monotonic() - begun)


def _remove_old(folder: Path, stage: str) -> None:
    runs = sorted(folder.glob(f"{stage}-*.log"), key=lambda path: path.stat().st_mtime)
    for path in runs[: max(0, len(runs) - KEPT_RUNS + 1)]:
        path.unlink(missing_ok=True)
