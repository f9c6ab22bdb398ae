"""kill -9 during build, or during report, and run again: the bytes of an uninterrupted run."""

import contextlib
import hashlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from headrace.curation.job import Job
from headrace.curation.recipe import Recipe, recipe_text
from headrace.curation.stages import build as run_build
from headrace.curation.stages import report as run_report
from headrace.shards.commit import committed

MakeJob = Callable[..., Recipe]
Hold = Callable[[str, int], dict[str, str]]
MAIN = "from headrace.cli.app import main; main()"
MAX_SECONDS = 120


def digests(folder: str) -> dict[str, str]:
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(Path(folder).rglob("*"))
        if path.is_file()
    }


def start(command: str, recipe: Recipe, environment: dict[str, str] | None = None) -> subprocess.Popen[bytes]:
    path = Path(recipe.job).with_suffix(".yaml")
    path.write_text(recipe_text(recipe))
    arguments = [sys.executable, "-c", MAIN, command, str(path)]
    return subprocess.Popen(arguments, env=environment, start_new_session=True, stderr=subprocess.PIPE)


def kill_when(process: subprocess.Popen[bytes], ready: Callable[[], bool]) -> None:
    deadline = time.monotonic() + MAX_SECONDS
    while not ready():
        assert time.monotonic() < deadline, "never ready to be killed"
        assert process.poll() is None, process.stderr and process.stderr.read()
        time.sleep(0.001)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    if process.stderr:
        process.stderr.close()


@pytest.mark.full
@pytest.mark.parametrize(("commits", "workers"), [(0, 0), (1, 0), (6, 0), (3, 2)])
def test_a_killed_build_ends_with_the_same_bytes(make_job: MakeJob, hold: Hold, commits: int, workers: int) -> None:
    whole = make_job("whole", samples_per_shard=1)
    run_build(whole)
    expected = digests(Job(whole.job).dataset)
    recipe = make_job("killed", workers=workers, samples_per_shard=1)
    job = Job(recipe.job)
    folder = Path(job.dataset, "shards")

    def ready() -> bool:
        # The first kill comes between a shard's tar and its commit.
        return len(committed(job.dataset)) >= commits if commits else any(folder.glob("*.tar"))

    num_shards = len(committed(Job(whole.job).dataset))
    kill_when(start("build", recipe, hold(f"{job.dataset}/commits/[0-9]*", num_shards - 3)), ready)
    done = committed(job.dataset)
    assert len(done) < num_shards, "nothing was left to do"
    assert not Path(job.dataset, "dataset.json").exists()
    again = start("build", recipe)
    assert again.wait(MAX_SECONDS) == 0
    if again.stderr:
        again.stderr.close()
    assert digests(job.dataset) == expected
    assert digests(job.build_failures()) == digests(Job(whole.job).build_failures())


@pytest.mark.full
def test_a_killed_report_ends_with_the_same_bytes(make_job: MakeJob, hold: Hold) -> None:
    recipe = make_job()
    job = Job(recipe.job)
    Path(recipe.job, "recipe.yaml").write_text(recipe_text(recipe))
    run_build(recipe)
    run_report(recipe)
    expected = digests(job.report)
    for name in expected:
        Path(job.report, name).unlink()
    command = [sys.executable, "-c", MAIN, "report", recipe.job]
    held = hold(f"{job.report}/report.json", 1)
    process = subprocess.Popen(command, env=held, start_new_session=True, stderr=subprocess.PIPE)
    kill_when(process, lambda: any(Path(job.report).iterdir()))
    assert not Path(job.report, "report.html").exists()
    assert subprocess.run(command, timeout=MAX_SECONDS, check=False, capture_output=True).returncode == 0
    assert digests(job.report) == expected
