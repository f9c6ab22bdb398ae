"""Promises of two decisions side by side: each dataset keeps the ledger that explains it, and is asked for by name."""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from headrace.curation.datasets import built_from, explain_dataset, list_datasets
from headrace.curation.job import Job
from headrace.curation.ledger import latest_decision
from headrace.curation.recipe import Recipe
from headrace.curation.stages import build as run_build
from headrace.curation.stages import explain_recipe
from headrace.curation.stages import report as run_report
from headrace.curation.why import explain
from headrace.shards.dataset import open_dataset
from headrace.shards.verify import verify_dataset

MakeJob = Callable[..., Recipe]


@pytest.fixture
def two(make_job: MakeJob, write_ledger_again: Any) -> Recipe:
    """The recipe of a dataset `strict` of 15 samples, in a job that has published another of 17."""
    recipe = make_job()
    run_build(recipe)
    write_ledger_again(recipe, drop=(4, 6))
    strict = dataclasses.replace(recipe, build=dataclasses.replace(recipe.build, dataset="strict"))
    summary = run_build(strict)
    assert summary.dataset == "datasets/strict"
    return strict


def test_two_thresholds_stand_side_by_side_without_a_second_fetch(two: Recipe) -> None:
    job = Job(two.job)
    assert list_datasets(job) == ["", "strict"]
    assert open_dataset(job.dataset).num_samples == 17
    assert open_dataset(job.dataset_named("strict")).num_samples == 15
    for name in ("", "strict"):
        assert list(verify_dataset(job.dataset_named(name), decode=True)) == []
    assert built_from(job.dataset) != built_from(job.dataset_named("strict"))


def test_why_speaks_of_the_dataset_that_is_named(two: Recipe) -> None:
    job = Job(two.job)
    dropped = next(row for row in explain_rows(job, "strict") if row.kept is False and row.steps_dropped == "rule")
    (published,) = explain(job, dropped.uid)
    (strict,) = explain(job, dropped.uid, dataset="strict")
    assert (published.dataset, published.kept, published.build) == ("dataset", True, "built")
    assert (strict.dataset, strict.kept, strict.build) == ("datasets/strict", False, "dropped")
    assert explain(job, dropped.uid, ledger=strict.ledger[:6]) == [strict]
    assert explain(job, published.dataset_key or "") == [published]
    assert explain(job, dropped.uid, dataset="strict", ledger=strict.ledger) == [strict]
    with pytest.raises(ValueError, match=f"datasets/strict is not built from ledger {published.ledger}"):
        explain(job, dropped.uid, dataset="strict", ledger=published.ledger)


@dataclasses.dataclass
class Row:
    uid: str
    kept: bool
    steps_dropped: str | None


def explain_rows(job: Job, dataset: str) -> list[Row]:
    import pyarrow.parquet as pq

    table = pq.read_table(explain_dataset(job, dataset=dataset).decision.ledger.table)
    return [Row(row["uid"], row["kept"], row["step"]) for row in table.to_pylist()]


def test_an_unfinished_dataset_too_knows_its_ledger(two: Recipe) -> None:
    job = Job(two.job)
    before = built_from(job.dataset_named("strict"))
    Path(job.dataset_named("strict"), "dataset.json").unlink()
    assert built_from(job.dataset_named("strict")) == before


def test_a_report_stands_beside_the_published_ones(two: Recipe) -> None:
    job = Job(two.job)
    summary = run_report(two)
    assert summary.html == f"{job.report}/strict/report.html"
    assert "datasets/strict" in Path(summary.html).read_text()
    assert not Path(job.report, "report.html").exists()


def test_what_is_not_there_is_named_with_what_is(two: Recipe) -> None:
    job = Job(two.job)
    with pytest.raises(ValueError, match="no dataset datasets/loose; built are: dataset, datasets/strict"):
        explain_dataset(job, dataset="loose")
    names = sorted(ledger.decision.ledger.name for ledger in (explain_dataset(job, dataset=n) for n in ("", "strict")))
    with pytest.raises(ValueError, match="0 ledgers start with 'zzz'; there are: ") as caught:
        explain_dataset(job, ledger="zzz")
    assert all(name in str(caught.value) for name in names)


def test_a_dataset_whose_ledger_is_gone_says_so(two: Recipe) -> None:
    job = Job(two.job)
    ledger = explain_dataset(job).decision.ledger
    assert ledger != latest_decision(job).ledger
    for path in Path(ledger.url).iterdir():
        path.unlink()
    with pytest.raises(ValueError, match=r"was built from the ledger .* which is not in .* any more"):
        explain_dataset(job)


def test_where_a_dataset_lies_is_no_part_of_what_it_is(make_job: MakeJob) -> None:
    recipe = make_job()
    run_build(recipe)
    copy = dataclasses.replace(recipe, build=dataclasses.replace(recipe.build, dataset="copy"))
    run_build(copy)
    job = Job(recipe.job)
    ours, theirs = Path(job.dataset), Path(job.dataset_named("copy"))
    names = sorted(str(path.relative_to(ours)) for path in ours.rglob("*") if path.is_file())
    assert explain_recipe(recipe).dataset == ""
    assert explain_recipe(copy).dataset == "copy"
    assert names
    assert all((ours / name).read_bytes() == (theirs / name).read_bytes() for name in names)


@pytest.mark.parametrize("name", ["../out", "a/b", ".hidden", "-x", "a b"])
def test_a_name_is_a_name_and_no_path(make_job: MakeJob, name: str) -> None:
    recipe = make_job()
    with pytest.raises(ValueError, match="dataset: letters, digits"):
        dataclasses.replace(recipe.build, dataset=name)
