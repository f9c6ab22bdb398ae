"""Jobs of a study: `headrace` commands that are done once, whatever is killed in between.

OUT/jobs holds a file for each finished job, written last, and `headrace train` goes on from its newest checkpoint. So a
study may be killed at any moment and started again with the same command, or be run by several processes or terminals
at once: who holds the lock of a group of jobs does them.
"""

import contextlib
import fcntl
import json
import multiprocessing
import os
import resource
import shlex
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from multiprocessing.synchronize import Event
from pathlib import Path

import pyarrow as pa

from headrace.atomic import write_atomic
from headrace.cli import app
from headrace.shards.parquet import write_parquet

Groups = Mapping[str, Sequence["Job"]]
"""Jobs that follow each other, by name of the group."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Job:
    """One command."""

    name: str
    arguments: tuple[str, ...]


def do_all(out: Path, groups: Groups, *, processes: int) -> None:
    """Do what is not done yet, in `processes` processes, and wait for other programs that are at it.

    Raises ValueError for a command that fails, and for jobs that were done with other settings.
    """
    context = multiprocessing.get_context("fork")
    stopped = context.Event()
    helpers = [context.Process(target=_help, args=(out, groups, os.getpid(), stopped)) for _ in range(processes - 1)]
    for helper in helpers:
        helper.start()
    try:
        _do_groups(out, groups, wait=False, until=stopped.is_set)
    except BaseException:
        stopped.set()
        raise
    finally:
        for helper in helpers:
            helper.join()
    # What another process, or an earlier call that was killed, is still at.
    _do_groups(out, groups, wait=True)


def make_dataset(out: Path, name: str, table: pa.Table) -> None:
    """Import a table with the columns jpg and, where there are labels, label, as OUT/data/NAME."""
    if not (out / "data" / name / "dataset.json").exists():
        original = out / "originals" / f"{name}.parquet"
        write_parquet(str(original), table)
        headrace(out, "import", str(original), f"data/{name}")


def headrace(out: Path, *arguments: str) -> None:
    """Run one `headrace` command in the folder `out`, on one thread; what it prints goes into OUT/log.txt.

    It is a fork of this process, where torch is imported already: a study is many short commands, and five seconds each
    were a third of it. It holds the locks that this process holds: were this one killed, they would live on with it.
    Raises ValueError if it fails.
    """
    print("+ headrace", *map(shlex.quote, arguments), flush=True)
    _import_once()
    begin = (out / "log.txt").stat().st_size if (out / "log.txt").exists() else 0
    command = multiprocessing.get_context("fork").Process(target=_command, args=(out, arguments))
    command.start()
    command.join()
    if command.exitcode:
        with (out / "log.txt").open() as log:
            log.seek(begin)
            last = log.read().strip().rpartition("\n")[2] or f"exit code {command.exitcode}"
        raise ValueError(f"headrace {shlex.join(arguments)}: {last}")


def _command(out: Path, arguments: Sequence[str]) -> None:
    log = os.open(out / "log.txt", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    os.dup2(log, 1)
    os.dup2(log, 2)
    sys.stdout, sys.stderr = open(1, "w", closefd=False), open(2, "w", closefd=False)  # noqa: SIM115
    os.chdir(out)
    sys.argv = ["headrace", *arguments]
    app.main()


def _import_once() -> None:
    """Import what every command needs, and start no thread: forks would not have it."""
    import torch

    import headrace.train.evaluate.probes
    import headrace.train.loop  # noqa: F401

    # Two runs side by side share two cores better than the threads of one small matrix product do.
    torch.set_num_threads(1)
    # The first optimizer of a process imports half of torch.
    torch.optim.AdamW([torch.zeros(1)])


def _help(out: Path, groups: Groups, parent: int, stopped: Event) -> None:
    # Who was killed is not worked for: otherwise a killed study would go on.
    try:
        _do_groups(out, groups, wait=False, until=lambda: stopped.is_set() or os.getppid() != parent)
    except ValueError:
        stopped.set()  # the first process does that job again, and says why it fails


def _do_groups(out: Path, groups: Groups, *, wait: bool, until: Callable[[], bool] = lambda: False) -> None:
    """Do the groups that no other process is at; `wait` waits for those others, and does what they left."""
    for name, jobs in groups.items():
        if until():
            return
        if all(cpu_seconds(out, job) is not None for job in jobs):
            continue
        with lock(out / "locks" / name, wait=wait) as held:
            for job in jobs if held else ():
                if cpu_seconds(out, job) is None and not until():
                    _do_job(out, job)


def cpu_seconds(out: Path, job: Job) -> float | None:
    """Return what a job took, None if it is not done. Raises ValueError if it was done with other settings.

    Of one that was killed and went on, it is what the last part took.
    """
    path = _job_file(out, job)
    if not path.exists():
        return None
    facts = json.loads(path.read_text())
    if facts["arguments"] != list(job.arguments):
        raise ValueError(f"{path} was done with other settings; give them again, or another --out")
    return float(facts["cpu_seconds"])


def _do_job(out: Path, job: Job) -> None:
    before = _used_seconds()
    headrace(out, *job.arguments)
    facts = {"arguments": job.arguments, "cpu_seconds": round(_used_seconds() - before, 1)}
    path = _job_file(out, job)
    path.parent.mkdir(exist_ok=True)
    write_atomic(str(path), json.dumps(facts).encode())


def _job_file(out: Path, job: Job) -> Path:
    return out / "jobs" / f"{job.name}.json"


def _used_seconds() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


@contextlib.contextmanager
def lock(path: Path, *, wait: bool) -> Iterator[bool]:
    """Hold a lock that ends with whoever holds it; yield False if another process does and `wait` is False."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except BlockingIOError:
            yield False
        else:
            yield True
