"""kill_each_write.py STAGE JOB STRIDE RANDOM: run a stage, killed before its writes and at random moments.

STRIDE 2 takes every second write. Each try is a fork of this process, which has imported everything and started no
thread. After each kill the stage runs again to its end, and every file of the job must be what it is after a run that
nobody killed. Prints the number of kills.
"""

import hashlib
import os
import random
import shutil
import signal
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import headrace.curation.build.stage
import headrace.curation.report.stage  # noqa: F401
from headrace.curation.datasets import explain_dataset
from headrace.curation.forget.find import Texts
from headrace.curation.forget.stage import ForgetOptions, run_forget
from headrace.curation.job import Job, own_job
from headrace.curation.ledger import Ledger, list_ledgers
from headrace.curation.recipe import load_recipe
from headrace.curation.report.config import ReportConfig
from headrace.curation.select.database import Limits
from headrace.curation.select.load import find_inputs
from headrace.curation.select.place import Placement
from headrace.curation.select.stage import Selection, select_rows
from headrace.curation.stages import build, report_job
from headrace.shards.parquet import read_table
from headrace.shards.units import EngineConfig

WRITES = ("replace", "rename", "link", "unlink", "remove", "rmdir")
NOT_RESULT = ("owner.json", "logs")


def run_build(job: Job) -> None:
    with own_job(job):
        build(load_recipe(f"{job.url}.yaml"))


def run_report(job: Job) -> None:
    report_job(explain_dataset(job), ReportConfig(), job.report)


def run_select(job: Job) -> None:
    folders = sorted(Path(job.url, "annotations").iterdir())
    inputs = find_inputs(job, {path.name.split("-")[0]: str(path) for path in folders})
    selection = Selection(steps=(), placement=Placement(seed=1, shuffle_window=2, samples_per_shard=3))
    with own_job(job):
        select_rows(inputs, selection, limits=Limits(threads=1), engine=EngineConfig(executor="inline"))


def run_take_down(job: Job) -> None:
    urls = set(Path(f"{job.url}.urls").read_text().split())
    with own_job(job, forgetting=True):
        run_forget(job, Texts(urls), ForgetOptions(copies="near", date="2026-11-26"))


def run_take_down_of_captions(job: Job) -> None:
    urls = set(Path(f"{job.url}.urls").read_text().split())
    with own_job(job, forgetting=True):
        run_forget(job, Texts(urls), ForgetOptions(copies="none"))


STAGES = {
    "build": run_build,
    "report": run_report,
    "select": run_select,
    "forget": run_take_down,
    "captions": run_take_down_of_captions,
}


def write_urls(job: Job) -> None:
    """Name two kept rows and one that was dropped, before anything is taken down."""
    rows = [
        row
        for ledger in map(Ledger, (one.url for one in list_ledgers(job)))
        for row in read_table(ledger.table).to_pylist()
    ]
    kept = [row["url"] for row in rows if row["kept"]]
    dropped = [row["url"] for row in rows if not row["kept"]]
    Path(f"{job.url}.urls").write_text("\n".join([kept[0], kept[-1], dropped[0]]))


def state(job: Path) -> dict[str, str]:
    return {
        str(path.relative_to(job)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(job.rglob("*"))
        if path.is_file() and not path.relative_to(job).parts[0].startswith(NOT_RESULT)
    }


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


def finish(child: int) -> float:
    begun = time.monotonic()
    _, status = os.waitpid(child, 0)
    assert status == 0, status
    return time.monotonic() - begun


def die_before(number: int) -> None:
    """Let this process be killed before its write of that number, from 0."""
    left = [number]

    def counting(write: Callable[..., Any]) -> Callable[..., Any]:
        def counted(*arguments: Any, **options: Any) -> Any:
            if left[0] == 0:
                os.kill(os.getpid(), signal.SIGKILL)
            left[0] -= 1
            return write(*arguments, **options)

        return counted

    for name in WRITES:
        setattr(os, name, counting(getattr(os, name)))


def kill_before(work: Callable[[], Any], number: int) -> bool:
    """Run `work`, killed before its write of that number; False if it has not so many."""

    def dying() -> None:
        die_before(number)
        work()

    _, status = os.waitpid(in_child(dying), 0)
    assert status in (0, signal.SIGKILL), status
    return status != 0


def kill_after(work: Callable[[], Any], seconds: float) -> bool:
    child = in_child(work)
    time.sleep(seconds)
    os.kill(child, signal.SIGKILL)
    return os.waitpid(child, 0)[1] != 0


def main(stage: str, folder: str, stride: int, num_random: int) -> None:
    job, pristine, moments = Path(folder), Path(folder + ".pristine"), random.Random(7)
    shutil.copytree(job, pristine)

    def work() -> None:
        STAGES[stage](Job(folder))

    def restored() -> None:
        shutil.rmtree(job)
        shutil.copytree(pristine, job)

    if stage == "forget":
        finish(in_child(lambda: write_urls(Job(folder))))
    seconds = finish(in_child(work))
    expected, kills = state(job), 0
    assert expected != state(pristine), "the stage wrote nothing"
    tries: list[Callable[[], bool]] = [
        *(lambda number=number: kill_before(work, number) for number in range(0, 1000, stride)),
    ]
    for attempt in tries:
        restored()
        if not attempt():
            break
        kills += 1
        finish(in_child(work))
        got = state(job)
        assert got == expected, (
            stage,
            kills,
            {name for name in {*expected, *got} if expected.get(name) != got.get(name)},
        )
    for _ in range(num_random):
        restored()
        kills += kill_after(work, moments.uniform(0, seconds))
        finish(in_child(work))
        assert state(job) == expected, (stage, "random")
    sys.stdout.write(f"{kills}\n")


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4]))
