"""Promises of ledgers on disk: each decision has a folder, and the key of a sample leads back to its row."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from headrace.curation.job import Job
from headrace.curation.ledger import (
    dataset_key,
    find_decision,
    latest_decision,
    list_ledgers,
    place_of_key,
    set_latest,
)
from headrace.curation.recipe import Recipe
from headrace.curation.stages import decided_by

MakeJob = Callable[..., Recipe]


@given(st.integers(0, 10**7), st.integers(0, 999_999))
def test_a_key_is_read_back_as_its_place(shard: int, index: int) -> None:
    assert place_of_key(dataset_key(f"{shard:05d}", index)) == (f"{shard:05d}", index)


@pytest.mark.parametrize("text", ["", "000000", "aaaa0001", "http://host/1", "\u0661" * 11, "-00000000001"])
def test_other_texts_are_no_key(text: str) -> None:
    assert place_of_key(text) is None


def test_another_decision_leaves_the_one_before_as_it_was(make_job: MakeJob, write_ledger_again: Any) -> None:
    recipe = make_job()
    job = Job(recipe.job)
    first = latest_decision(job)
    before = Path(first.ledger.table).read_bytes()
    write_ledger_again(recipe, drop=(4, 6))
    second = latest_decision(job, decided_by(recipe))
    assert second.ledger != first.ledger
    assert {ledger.name for ledger in list_ledgers(job)} == {first.ledger.name, second.ledger.name}
    assert Path(first.ledger.table).read_bytes() == before


def test_a_ledger_of_schema_1_is_read_where_it_lies(make_job: MakeJob) -> None:
    recipe = make_job()
    job = Job(recipe.job)
    folder = Path(latest_decision(job).ledger.url)
    for path in folder.iterdir():
        shutil.move(path, Path(job.ledgers, path.name))
    folder.rmdir()
    Path(job.ledgers, "latest.json").unlink()
    assert latest_decision(job).ledger.url == job.ledgers
    assert latest_decision(job, decided_by(recipe)).ledger.url == job.ledgers
    with pytest.raises(ValueError, match="1 of other recipes"):
        latest_decision(job, "f" * 64)


@pytest.mark.parametrize("text", ["", "[]", '{"latest": 3}', '{"schema": 1}'])
def test_a_damaged_note_of_the_latest_is_one_line(make_job: MakeJob, text: str) -> None:
    job = Job(make_job().job)
    Path(job.ledgers, "latest.json").write_text(text)
    with pytest.raises(ValueError, match=r"latest\.json is damaged .* run `headrace select` again"):
        latest_decision(job)


def test_a_note_cannot_lead_out_of_the_job(make_job: MakeJob) -> None:
    job = Job(make_job().job)
    name = latest_decision(job).ledger.name
    Path(job.ledgers, "latest.json").write_text(json.dumps({"latest": {"": f"../../{name}"}}))
    assert latest_decision(job).ledger.url == f"{job.ledgers}/{name}"


def test_select_that_comes_to_the_ledger_of_schema_1_leaves_it_the_latest(make_job: MakeJob) -> None:
    recipe = make_job()
    job = Job(recipe.job)
    decision = latest_decision(job)
    folder = Path(decision.ledger.url)
    for path in folder.iterdir():
        shutil.move(path, Path(job.ledgers, path.name))
    folder.rmdir()
    Path(job.ledgers, "latest.json").unlink()
    found = find_decision(job, decision.summary.inputs)
    assert found is not None
    set_latest(found)
    assert latest_decision(job).ledger.url == job.ledgers
    assert latest_decision(job, decided_by(recipe)).ledger.url == job.ledgers
