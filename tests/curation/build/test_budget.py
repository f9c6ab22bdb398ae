"""A build that lost most of its rows does not end well, however small it is."""

import dataclasses
from collections.abc import Callable
from pathlib import Path

import pytest

from headrace.curation.job import Job
from headrace.curation.recipe import Recipe
from headrace.curation.stages import build as run_build
from headrace.shards.tar import scan_tar

MakeJob = Callable[..., Recipe]


def spoil(recipe: Recipe, *, shards: int) -> None:
    """Change a byte in every image of the first raw shards: such a row fails alone, as these tars are not recorded."""
    for shard in range(shards):
        tar = Path(Job(recipe.job).raw, f"{shard:05d}.tar")
        data = bytearray(tar.read_bytes())
        for member in scan_tar(str(tar)):
            if not member.name.endswith(("txt", "json")):
                data[member.offset + member.size // 2] ^= 0x10
        tar.write_bytes(data)


def finished(recipe: Recipe) -> bool:
    return Path(Job(recipe.job).dataset, "dataset.json").exists()


@pytest.mark.parametrize("budget", [0.0, 0.1, 1.0])
def test_a_dataset_without_a_sample_is_never_finished(make_job: MakeJob, budget: float) -> None:
    recipe = make_job(failure_budget=budget)
    spoil(recipe, shards=3)
    with pytest.raises(ValueError, match=r"rows failed, over .*; the first: raw shard 0000., key .*sha256 is"):
        run_build(recipe)
    assert not finished(recipe)


def test_a_small_job_may_lose_half_of_its_rows_and_no_more(make_job: MakeJob) -> None:
    recipe = make_job("some")
    spoil(recipe, shards=1)
    summary = run_build(recipe)
    assert 0 < summary.num_failed <= summary.num_samples
    assert "see build/failures;" in str(summary)
    beside = make_job("beside", dataset="strict")
    spoil(beside, shards=1)
    failures = run_build(beside).failures
    assert failures == "build/strict/failures"
    assert list(Path(beside.job, failures).glob("*.parquet"))
    recipe = make_job("most")
    spoil(recipe, shards=2)
    with pytest.raises(ValueError, match=r"over 0\.5 \(build\.failure_budget\)"):
        run_build(recipe)
    assert not finished(recipe)


def test_a_job_of_many_small_shards_is_judged_whole(make_job: MakeJob, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("headrace.curation.build.stage.MIN_JUDGED_ROWS", 10)
    recipe = make_job()
    spoil(recipe, shards=1)
    with pytest.raises(ValueError, match=r"over 0\.1 \(build\.failure_budget\)"):
        run_build(recipe)


def test_a_refused_build_goes_on_when_the_budget_allows_it_and_starts_over_when_the_cause_is_gone(
    make_job: MakeJob,
) -> None:
    recipe = make_job()
    before = {path: path.read_bytes() for path in Path(Job(recipe.job).raw).glob("*.tar")}
    spoil(recipe, shards=2)
    for _ in range(2):
        with pytest.raises(ValueError, match="--start-over"):
            run_build(recipe)
    allowed = dataclasses.replace(recipe, build=dataclasses.replace(recipe.build, failure_budget=0.9))
    assert run_build(allowed).num_failed > 0
    for path, data in before.items():
        path.write_bytes(data)
    assert run_build(recipe, start_over=True).num_failed == 0
