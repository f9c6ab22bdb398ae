"""A stage that slept while another process took its job over puts nothing in its place and takes nothing away."""

import json
import shutil
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from headrace.curation.forget.find import Texts
from headrace.curation.forget.stage import ForgetOptions, run_forget
from headrace.curation.job import Job, own_job
from headrace.curation.ledger import latest_decision
from headrace.curation.recipe import Recipe
from headrace.curation.select.database import Limits
from headrace.curation.select.load import find_inputs
from headrace.curation.select.place import Placement
from headrace.curation.select.stage import Selection, select_rows
from headrace.curation.stages import build, report
from headrace.shards.parquet import read_table
from headrace.shards.units import EngineConfig, OnProgress

sys.path.append(str(Path(__file__).parent / "select"))
from select_jobs import make_row, write_job

MakeJob = Callable[..., Recipe]
Stage = Callable[[Job, OnProgress], object]
RESULTS = (".parquet", ".json", ".html", ".tar", ".md", ".yaml")


def placed(job: Path) -> dict[str, bytes]:
    """Return every result in the job; the work folders of select have a point in their name."""
    return {
        str(path.relative_to(job)): path.read_bytes()
        for path in job.rglob("*")
        if path.suffix in RESULTS and path.name != "owner.json" and "." not in str(path.relative_to(job).parent)
    }


def stopped(stage: Stage, job: Job, number: int) -> bool:
    """Run a stage whose job is taken over when it tells its progress for the `number`th time; False if it does not.

    What is there then must be there in the end, and nothing else.
    """
    left, then = [number], dict[str, bytes]()

    def tell(*_: object) -> None:
        left[0] -= 1
        if left[0] == 0:
            owner = Path(job.url, "owner.json")
            owner.write_text(json.dumps({**json.loads(owner.read_text()), "token": "another"}))
            then.update(placed(Path(job.url)))

    told = ""
    try:
        with own_job(job, forgetting=True):
            stage(job, tell)
    except OSError as error:
        told = str(error)
    # Where everything is in its place already, nothing is asked any more.
    assert not told or (left[0] <= 0 and "owner.json: another process took this over" in told), told
    assert left[0] > 0 or placed(Path(job.url)) == then
    return left[0] <= 0


def take_over_at_every_moment(stage: Stage, job: Job, folder: Path) -> int:
    """Return how often a stage was stopped; each time it began from the same job."""
    number = 1
    while True:
        copy = Job(str(folder / f"copy{number}"))
        shutil.copytree(job.url, copy.url)
        if not stopped(stage, copy, number):
            return number - 1
        number += 1


def test_a_select_whose_job_was_taken_over_writes_no_ledger(tmp_path: Path) -> None:
    job = write_job(tmp_path / "job", [[make_row(number) for number in range(6)]])
    Path(job.url, "job.json").write_text('{"schema": 2}\n')

    def select(job: Job, tell: OnProgress) -> None:
        names = {path.name: str(path) for path in Path(job.url, "annotations").iterdir()}
        inputs = find_inputs(job, {name.split("-")[0]: url for name, url in names.items()})
        selection = Selection(steps=(), placement=Placement(seed=1, shuffle_window=2, samples_per_shard=3))
        engine = EngineConfig(executor="inline")
        select_rows(inputs, selection, limits=Limits(threads=1), engine=engine, on_progress=tell)

    # The last time is after all is written.
    assert take_over_at_every_moment(select, job, tmp_path) >= 3


def test_a_report_whose_job_was_taken_over_leaves_the_page_that_is_there(make_job: MakeJob) -> None:
    recipe = make_job()
    build(recipe)
    report(recipe)

    def again(job: Job, tell: OnProgress) -> None:
        Path(job.report, "report.html").write_text("of the other")
        report(replace(recipe, job=job.url), on_progress=tell)

    assert stopped(again, Job(recipe.job), 1)
    assert Path(recipe.job, "report", "report.html").read_text() == "of the other"


def test_a_take_down_whose_job_was_taken_over_rewrites_nothing_more(make_job: MakeJob, tmp_path: Path) -> None:
    recipe = make_job()
    build(recipe)
    rows = read_table(latest_decision(Job(recipe.job)).ledger.table).to_pylist()
    url = next(row["url"] for row in rows if row["kept"])

    def forget(job: Job, tell: OnProgress) -> None:
        run_forget(job, Texts({url}), ForgetOptions(copies="none"), on_progress=tell)

    assert take_over_at_every_moment(forget, Job(recipe.job), tmp_path) >= 5
