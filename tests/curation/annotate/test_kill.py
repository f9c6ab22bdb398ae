"""kill -9 at several moments, then run again: the same bytes as a run that nobody killed."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from headrace.curation.annotate.annotators.unsafe_text import UnsafeTextConfig
from headrace.curation.recipe import recipe_text
from headrace.curation.stages import annotate as run_annotate

NUM_SHARDS = 16
NUM_TABLES = 4 * NUM_SHARDS
KILL_AFTER = (1, 17, 40)


def command(recipe_path):
    return [str(Path(sys.executable).with_name("headrace")), "annotate", str(recipe_path)]


def committed_tables(job):
    return len(list(Path(job, "annotations").glob("*/commits/*.json")))


def run_and_kill(recipe_path, job, tables, environment):
    """Kill the driver and its workers once `tables` are committed; return how many were."""
    process = subprocess.Popen(
        command(recipe_path),
        env=environment,
        start_new_session=True,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        deadline = time.monotonic() + 120
        while committed_tables(job) < tables:
            assert process.poll() is None, "annotate ended before it could be killed"
            assert time.monotonic() < deadline
            time.sleep(0.002)
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    return committed_tables(job)


@pytest.mark.full
def test_a_killed_run_goes_on_to_the_same_bytes(make_recipe, annotation_files, tmp_path, hold):
    settings = {"unsafe_text": UnsafeTextConfig(), "batch_size": 2}
    whole = make_recipe("whole", shards=NUM_SHARDS, **settings)
    run_annotate(whole)
    killed = make_recipe("killed", shards=NUM_SHARDS, workers=2, **settings)
    recipe_path = tmp_path / "recipe.yaml"
    recipe_path.write_text(recipe_text(killed))
    # Two workers may each put one more in place after they looked.
    held = hold(f"{killed.job}/annotations/*/commits/*.json", NUM_TABLES - 4)
    for tables in KILL_AFTER:
        done = run_and_kill(recipe_path, killed.job, tables, held)
        assert tables <= done < NUM_TABLES, "no work was left at the kill, so it proved nothing"
    subprocess.run(command(recipe_path), check=True, timeout=200, stdout=subprocess.DEVNULL)
    assert annotation_files(killed) == annotation_files(whole)
