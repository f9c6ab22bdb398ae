"""kill -9 before the writes of select, build, report and forget, and at random moments: the same bytes at the end."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from headrace.curation.build.config import LabelsConfig
from headrace.curation.job import Job
from headrace.curation.recipe import Recipe, recipe_text
from headrace.curation.stages import build as run_build

sys.path.append(str(Path(__file__).parent / "select"))
from select_jobs import make_row, write_job

DRIVER = Path(__file__).parent / "kill_each_write.py"


def kills(stage: str, job: str, *, stride: int, at_random: int) -> int:
    """Run the driver; return how many kills met the stage at work."""
    command = [sys.executable, str(DRIVER), stage, job, str(stride), str(at_random)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=400, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    return int(done.stdout.split()[-1])


@pytest.mark.full
@pytest.mark.parametrize(("stage", "least", "stride"), [("build", 25, 2), ("report", 4, 1), ("forget", 50, 2)])
def test_a_stage_killed_at_any_write_ends_with_the_same_bytes(
    make_job: Callable[..., Recipe], stage: str, least: int, stride: int
) -> None:
    # Every caption a class, so that a take-down leaves some without a sample.
    labels = {"labels": LabelsConfig(column="caption")} if stage == "forget" else {}
    recipe = make_job(samples_per_shard=5, **labels)
    Path(f"{recipe.job}.yaml").write_text(recipe_text(recipe))
    if stage != "build":
        run_build(recipe)
    if stage == "forget":
        Path(Job(recipe.job).report).mkdir()
        Path(Job(recipe.job).report, "report.html").write_text("<html>")
    assert kills(stage, recipe.job, stride=stride, at_random=4) >= least


@pytest.mark.full
def test_a_selection_killed_at_any_write_ends_with_the_same_bytes(tmp_path: Path) -> None:
    rows = [[make_row(8 * shard + place) for place in range(8)] for shard in range(3)]
    job = write_job(tmp_path / "job", rows)
    Path(job.url, "job.json").write_text('{"schema": 2}\n')
    assert kills("select", job.url, stride=1, at_random=8) >= 10
