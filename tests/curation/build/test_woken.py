"""A build that slept while another one took its job over: nothing of it is put beside what the other has built."""

import hashlib
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from headrace.curation.job import Job, own_job
from headrace.curation.recipe import Recipe, recipe_text
from headrace.curation.stages import build

# Builds, and stops itself before the first call of a function of build.unit.
BUILD = """
import os, signal, sys
from headrace.curation.build import unit
from headrace.curation.job import Job, own_job
from headrace.curation.recipe import load_recipe
from headrace.curation.stages import build

work = getattr(unit, sys.argv[2])

def stop(*arguments, **options):
    setattr(unit, sys.argv[2], work)
    os.kill(os.getpid(), signal.SIGSTOP)
    return work(*arguments, **options)

setattr(unit, sys.argv[2], stop)
recipe = load_recipe(sys.argv[1])
with own_job(Job(recipe.job)):
    build(recipe)
"""


def _digests(folder: str) -> dict[str, str]:
    paths = [path for path in sorted(Path(folder).rglob("*")) if path.is_file()]
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in paths}


@pytest.mark.parametrize("while_the_other_runs", [True, False], ids=["running", "ended"])
@pytest.mark.parametrize("stopped_before", ["read_kept", "parquet_bytes"])  # the tar of its first shard, its commit
def test_a_build_that_woke_up_leaves_the_dataset_of_another_ledger_alone(
    make_job: Callable[..., Recipe],
    write_ledger_again: Callable[..., None],
    tmp_path: Path,
    stopped_before: str,
    while_the_other_runs: bool,
) -> None:
    recipe = make_job()
    job, text = Job(recipe.job), tmp_path / "recipe.yaml"
    text.write_text(recipe_text(recipe))
    command = [sys.executable, "-c", BUILD, str(text), stopped_before]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as sleeping:
        try:
            assert os.WIFSTOPPED(os.waitpid(sleeping.pid, os.WUNTRACED)[1])
            write_ledger_again(recipe, drop=(3, 8, 11, 12, 16))
            with own_job(job, take_over=True):
                build(recipe, start_over=True)
                before = _digests(job.url)
                if while_the_other_runs:
                    sleeping.send_signal(signal.SIGCONT)
                    _, told = sleeping.communicate(timeout=120)
            if not while_the_other_runs:
                before = _digests(job.url)
                sleeping.send_signal(signal.SIGCONT)
                _, told = sleeping.communicate(timeout=120)
        finally:
            sleeping.kill()
    assert sleeping.returncode == 1
    assert "owner.json: another process took this over while this one was silent" in told
    after = _digests(job.url)
    assert {name: sha256 for name, sha256 in before.items() if name != "owner.json"} == after
