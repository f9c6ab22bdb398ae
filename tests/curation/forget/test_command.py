"""`headrace forget`: what it would do, what it did, and one line for what it cannot take."""

import hashlib
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from headrace.cli.app import main
from headrace.curation.job import Job
from headrace.curation.recipe import Recipe
from headrace.curation.stages import build as run_build
from headrace.shards.dataset import open_dataset

Run = Callable[..., tuple[int, str]]


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """Run `headrace forget ARGUMENTS`; return exit code and everything printed, the error's line included."""

    def run_main(*arguments: object) -> tuple[int, str]:
        monkeypatch.setattr(sys, "argv", ["headrace", "forget", *map(str, arguments)])
        with pytest.raises(SystemExit) as stopped:
            main()
        code = stopped.value.code
        text = "".join(capsys.readouterr())
        return (1, text + code) if isinstance(code, str) else (code or 0, text)

    return run_main


def state(job: str) -> dict[str, str]:
    return {str(p): hashlib.sha256(p.read_bytes()).hexdigest() for p in Path(job).rglob("*") if p.is_file()}


def rows_of(recipe: Recipe) -> list[dict[str, Any]]:
    dataset = open_dataset(Job(recipe.job).dataset)
    return [row for number in range(len(dataset.shards)) for row in dataset.index(number).to_pylist()]


def test_a_list_of_urls_uids_and_sums_is_forgotten_as_the_dry_run_said(
    make_job: Callable[..., Recipe], run: Run, tmp_path: Path
) -> None:
    recipe = make_job()
    run_build(recipe)
    first, second, third, *_ = rows_of(recipe)
    names = tmp_path / "names.txt"
    names.write_text("\n".join([first["url"], second["uid"], third["sha256"].upper(), "https://example.org/none.jpg"]))
    before = state(recipe.job)
    code, text = run(recipe.job, "--list", names, "--dry-run", "--json", "-q")
    planned = json.loads(text)
    assert (code, planned["rows"], planned["samples"], planned["not_found"], planned["dry_run"]) == (0, 3, 3, 1, True)
    assert state(recipe.job) == before
    code, text = run(recipe.job, "--list", names, "--date", "2026-11-26")
    assert code == 0
    assert "forget: take-down 00000: 3 rows, 3 samples in 1 shards of 1 datasets, 3 raw shards" in text
    assert "1 of those asked for are nowhere in the job" in text
    assert "next: headrace audit RUN" in text
    assert len(rows_of(recipe)) == 14
    assert "nothing to forget" in run(recipe.job, "--list", names)[1]


def test_one_dataset_alone_is_rewritten_and_what_holds_the_rest_is_said(
    make_job: Callable[..., Recipe], run: Run
) -> None:
    recipe = make_job()
    run_build(recipe)
    other = make_job(dataset="other")
    run_build(other)
    raw, url = state(Job(recipe.job).raw), rows_of(recipe)[0]["url"]
    code, text = run(recipe.job, "--url", url, "--dataset", "other")
    assert code == 0
    assert "still held by: dataset" in text
    assert state(Job(recipe.job).raw) == raw
    assert (len(rows_of(recipe)), open_dataset(Job(recipe.job).dataset_named("other")).num_samples) == (17, 16)
    assert "1 samples in 1 shards of 1 datasets, 1 raw shards" in run(recipe.job, "--url", url)[1]
    assert len(rows_of(recipe)) == 16


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "nothing is named, and no take-down of this job is unfinished: give --url"),
        (["--uid", "abc"], "--uid: expected 32 hexadecimal digits"),
        (["--sha256", "zz" * 32], "--sha256: expected 64 hexadecimal digits"),
        (["--url", ""], "--url is empty"),
        (["--url", "http://a/b", "--date", "soon"], "expected YYYY-MM-DD"),
        (["--url", "http://a/b", "--dataset", "nowhere"], "holds no dataset datasets/nowhere"),
    ],
)
def test_what_it_cannot_take_is_one_line(
    make_job: Callable[..., Recipe], run: Run, arguments: list[str], message: str
) -> None:
    recipe = make_job()
    code, text = run(recipe.job, *arguments)
    assert code == 1
    assert message in text.splitlines()[-1]
    assert not Path(recipe.job, "forgotten").exists()


def test_a_folder_that_is_no_job_is_refused(run: Run, tmp_path: Path) -> None:
    code, text = run(tmp_path, "--url", "http://a/b")
    assert (code, "is no job" in text) == (1, True)
