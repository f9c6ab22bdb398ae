"""kill_driver.py LIST CONFIG FOLDER KILLS SEED: fetch and annotate twice, once killed again and again.

Each try is a fork of this process, which has imported everything and started no thread: a kill costs a fraction of a
second, and meets work instead of start-up.
"""

import json
import os
import random
import signal
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import headrace.curation.annotate.stage
import headrace.curation.annotate.unit
import headrace.curation.fetch.crawl
import headrace.curation.fetch.stage  # noqa: F401
from headrace.config import build_config
from headrace.curation.annotate.config import annotate_config
from headrace.curation.fetch.config import FetchConfig, InputConfig
from headrace.curation.stages import annotate, fetch
from headrace.shards.units import INLINE


def in_child(work: Callable[[], Any]) -> int:
    child = os.fork()
    if child:
        return child
    try:
        work()
        os._exit(0)
    except BaseException:  # noqa: BLE001  whatever it is, the parent must see a child that failed
        traceback.print_exc()
        os._exit(1)


def finish(child: int) -> None:
    _, status = os.waitpid(child, 0)
    assert os.WIFEXITED(status), status
    assert os.WEXITSTATUS(status) == 0, status


def state(job: Path) -> int:
    """A number that changes when something was written: of a spool, a part, a table, a record."""
    return hash(tuple((str(path), path.stat().st_size) for path in sorted(job.rglob("*")) if path.is_file()))


def wait_for_work(child: int, job: Path, changes: int) -> bool:
    """Return when `child` has written so often, or after a while; False if it ended before."""
    deadline, before = time.monotonic() + 20, None
    while changes >= 0 and time.monotonic() < deadline:
        ended, status = os.waitpid(child, os.WNOHANG)
        if ended:
            assert status == 0, "it failed before it was killed"
            return False
        try:
            now = state(job)
        except FileNotFoundError:
            continue  # something was put in place meanwhile
        changes -= now != before
        before = now
        time.sleep(0.002)
    return True


def kill_often(work: Callable[[], Any], job: Path, kills: int, moments: random.Random) -> int:
    """Start `work` and kill it, `kills` times at most; return how many met it at work."""
    for met in range(kills):
        child = in_child(work)
        if not wait_for_work(child, job, moments.choice((0, 1, 2, 3, 5, 8, 13))):
            return met
        time.sleep(moments.uniform(0, 0.02))
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
    return kills


def main(lists: str, settings: str, folder: str, kills: str, seed: str) -> None:
    moments = random.Random(int(seed))

    def recipe(job: str) -> Any:
        return SimpleNamespace(
            job=str(Path(folder) / job),
            seed=3,
            input=InputConfig(urls=(lists,), caption_column=None),
            fetch=build_config(FetchConfig, json.loads(settings)),
            annotate=annotate_config(faces=None),
            engine=INLINE,
        )

    met = {}
    for stage in (fetch, annotate):
        finish(in_child(lambda stage=stage: stage(recipe("whole"))))
        print(json.dumps({stage.__name__: "whole"}), flush=True)  # noqa: T201
        sys.stdin.readline()
        met[stage.__name__] = kill_often(
            lambda stage=stage: stage(recipe("killed")), Path(folder, "killed"), int(kills), moments
        )
        finish(in_child(lambda stage=stage: stage(recipe("killed"))))
    print(json.dumps(met), flush=True)  # noqa: T201


if __name__ == "__main__":
    main(*sys.argv[1:])
