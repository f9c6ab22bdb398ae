"""A fetch that slept while another one took its job over: nothing of it is put in its place, or taken from there."""

import json
from pathlib import Path
from typing import Any

import pytest

from headrace.curation.fetch.spool import BOARD
from headrace.curation.job import Job, own_job
from headrace.curation.stages import fetch as run_fetch
from headrace.shards.progress import Progress


def taken_over(job: Path) -> None:
    """Let another process own the job."""
    owner = job / "owner.json"
    owner.write_text(json.dumps({**json.loads(owner.read_text()), "token": "another"}))


@pytest.mark.parametrize("output_format", ["webdataset", "files", "parquet"])
def test_a_fetch_whose_job_was_taken_over_commits_nothing(server, web, tmp_path: Path, output_format: str) -> None:
    job = tmp_path / "job"

    async def answer(_: Any, writer: Any) -> None:
        taken_over(job)
        writer.write(web.reply(web.jpeg()))

    server.answers["/a.jpg"] = answer
    (tmp_path / "list.txt").write_text(server.url("/a.jpg") + "\n")
    config = web.config_for(server, output_format=output_format)
    recipe = web.recipe_for(job, tmp_path / "list.txt", config, caption_column=None)
    with pytest.raises(OSError, match=r"owner\.json: another process took this over"), own_job(Job(str(job))):
        run_fetch(recipe)
    assert [path for path in (job / "raw").rglob("*") if path.is_file()] == []


def test_a_fetch_whose_job_was_taken_over_at_its_end_leaves_what_the_other_tells_its_workers(
    server, web, tmp_path: Path
) -> None:
    job, spool = tmp_path / "job", tmp_path / "job" / "spool" / BOARD
    server.answers["/a.jpg"] = web.reply(web.jpeg())
    (tmp_path / "list.txt").write_text(server.url("/a.jpg") + "\n")
    recipe = web.recipe_for(job, tmp_path / "list.txt", web.config_for(server), caption_column=None)

    def note(progress: Progress) -> None:
        if progress.done == progress.total:
            taken_over(job)
            spool.parent.mkdir(exist_ok=True)
            spool.write_bytes(b"of the other")

    with pytest.raises(OSError, match=r"owner\.json: another process took this over"), own_job(Job(str(job))):
        run_fetch(recipe, on_progress=note)
    assert spool.read_bytes() == b"of the other"
