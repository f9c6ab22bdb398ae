"""Promises of annotating a shard in parts: the bytes of one go, every part once, whatever was killed between."""

import json
from pathlib import Path
from typing import Any

import pytest

from headrace.curation.annotate import parts as in_parts
from headrace.curation.annotate import stage, unit
from headrace.curation.annotate.annotators.unsafe_text import UnsafeTextConfig
from headrace.curation.job import Job, own_job
from headrace.curation.stages import annotate as run_annotate
from headrace.shards.units import EngineConfig

SETTINGS = {"unsafe_text": UnsafeTextConfig(), "batch_size": 2}


@pytest.fixture(autouse=True)
def _small_parts(monkeypatch):
    """Parts of three images, of any shard."""
    monkeypatch.setattr(in_parts, "MIN_PART_ROWS", 3)


@pytest.fixture
def recipe_of(make_recipe):
    """A job of two raw shards whose records say how many images they hold, as those of fetch do."""

    def make(name: str):
        recipe = make_recipe(name, shards=2, **SETTINGS)
        for record in Path(recipe.job, "raw", "commits").iterdir():
            record.write_text('{"count": 10, "successes": 9}')
        return recipe

    return make


@pytest.mark.parametrize("executor", ["inline", pytest.param("local", marks=pytest.mark.full)])
def test_parts_are_joined_to_the_bytes_of_one_go(recipe_of, annotation_files, monkeypatch, executor) -> None:
    monkeypatch.setattr(in_parts, "MIN_PART_ROWS", 1000)
    whole = recipe_of("whole")
    run_annotate(whole)
    monkeypatch.setattr(in_parts, "MIN_PART_ROWS", 3)
    cut = recipe_of("cut")
    object.__setattr__(cut, "engine", EngineConfig(executor=executor, workers=2))
    seen = []
    run_annotate(cut, on_progress=seen.append)
    assert annotation_files(cut) == annotation_files(whole)
    assert not Path(cut.job, "spool").exists()
    assert seen[-1].noun == "parts of shards"
    assert seen[-1].done == seen[-1].total > 2


def test_parts_that_were_done_before_a_kill_are_not_made_again(recipe_of, annotation_files, monkeypatch) -> None:
    whole = recipe_of("whole")
    run_annotate(whole)
    killed = recipe_of("killed")

    class Killed(Exception):
        pass

    def killer(*_) -> None:
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(stage, "join", killer)
        with pytest.raises(Killed):
            run_annotate(killed)
    done = sorted(Path(killed.job, "spool").rglob("*.parquet"))
    assert done
    (Path(done[0].parent) / "99999-0000000-0000003.parquet").write_bytes(b"of another list")
    made = []
    monkeypatch.setattr(stage, "annotate_part", lambda part: (made.append(part.name), in_parts.annotate_part(part))[1])
    run_annotate(killed)
    assert made
    assert not any(part.startswith("annotate 00000") for part in made)
    assert annotation_files(killed) == annotation_files(whole)
    assert not Path(killed.job, "spool").exists()


@pytest.mark.parametrize("rows_of_a_part", [3, 1000])
def test_a_run_whose_job_was_taken_over_puts_no_table_in_its_place(recipe_of, monkeypatch, rows_of_a_part: int) -> None:
    monkeypatch.setattr(in_parts, "MIN_PART_ROWS", rows_of_a_part)
    recipe, find = recipe_of("job"), unit.find
    owner = Path(recipe.job, "owner.json")

    def taken_over(*given: Any) -> Any:
        owner.write_text(json.dumps({**json.loads(owner.read_text()), "token": "another"}))
        return find(*given)

    for module in (unit, in_parts):
        monkeypatch.setattr(module, "find", taken_over)
    with pytest.raises(OSError, match=r"owner\.json: another process took this over"), own_job(Job(recipe.job)):
        run_annotate(recipe)
    tables = [path for folder in ("annotations", "spool") for path in Path(recipe.job, folder).rglob("*.parquet")]
    assert tables == []
