"""Take-downs in fetch: raw shards stay whole without the row, and it is neither requested nor stored again."""

import csv
import dataclasses
from pathlib import Path

import pyarrow.parquet as pq

from headrace.curation.fetch.stage import run_fetch
from headrace.curation.forget.find import Texts
from headrace.curation.forget.stage import ForgetOptions, run_forget
from headrace.curation.job import Job, own_job
from headrace.curation.raw.read import check_raw_tar, raw_shards, read_raw
from headrace.curation.raw.spans import image_spans
from headrace.shards.commit import remove_commit


def write_list(path: Path, urls: list[str]) -> None:
    with path.open("w") as file:
        rows = csv.writer(file)
        rows.writerow(["url", "caption", "note"])
        rows.writerows([url, f"words of {url}", f"note of {url}"] for url in urls)


def test_a_row_that_was_taken_down_leaves_whole_raw_shards_and_never_comes_back(server, web, tmp_path: Path) -> None:
    for number in range(4):
        server.answers[f"/{number}.jpg"] = web.reply(web.jpeg(number))
    server.answers["/copy.jpg"] = web.reply(web.jpeg(1))
    server.answers["/moved"] = web.redirect("/1.jpg")
    gone = server.url("/1.jpg")
    write_list(tmp_path / "a.csv", [server.url(f"/{number}.jpg") for number in range(4)])
    config = web.config_for(server)
    recipe = web.recipe_for(tmp_path / "job", tmp_path / "a.csv", config, columns=("note",))
    job = Job(recipe.job)
    with own_job(job):
        run_fetch(job, recipe.input, config, seed=0, engine=recipe.engine)
    with own_job(job, forgetting=True):
        summary = run_forget(job, Texts({gone}), ForgetOptions())
    assert (summary.rows, len(summary.raw_shards)) == (1, 1)
    again = run_fetch(job, recipe.input, config, seed=0, engine=recipe.engine, retry_failed=True)
    assert (again.rows, again.fetched, again.failed) == (4, 3, {"forgotten": 1})
    for shard in raw_shards(job):
        rows = read_raw(job, shard).to_pylist()  # its sums are checked
        check_raw_tar(job, shard)
        assert set(image_spans(f"{job.raw}/{shard}.tar")[0]) == {
            row["key"] for row in rows if row["status"] == "success"
        }

    asked = len(server.requests)
    write_list(tmp_path / "b.csv", [gone, server.url("/copy.jpg"), server.url("/moved")])
    grown = dataclasses.replace(recipe.input, urls=(*recipe.input.urls, str(tmp_path / "b.csv")))
    found = run_fetch(job, grown, config, seed=0, engine=recipe.engine)
    assert found.failed == {"forgotten": 4}
    assert sorted(path for path, _ in server.requests[asked:]) == ["/copy.jpg", "/moved"]
    for path in Path(job.url).rglob("*"):
        if path.is_file():
            data = repr(pq.read_table(path).to_pylist()).encode() if path.suffix == ".parquet" else path.read_bytes()
            assert web.jpeg(1) not in data, path
            assert b"/1.jpg" not in data or path.is_relative_to(tmp_path / "job/input/segments"), path


def test_a_row_that_waits_to_be_fetched_leaves_the_list_and_is_not_asked_for(server, web, tmp_path: Path) -> None:
    for number in range(4):
        server.answers[f"/{number}.jpg"] = web.reply(web.jpeg(number))
    gone = server.url("/1.jpg")
    write_list(tmp_path / "a.csv", [server.url(f"/{number}.jpg") for number in range(4)])
    config = dataclasses.replace(web.config_for(server), samples_per_shard=2)
    recipe = web.recipe_for(tmp_path / "job", tmp_path / "a.csv", config, columns=("note",))
    job = Job(recipe.job)
    with own_job(job):
        run_fetch(job, recipe.input, config, seed=0, engine=recipe.engine)
    shard = next(name for name in raw_shards(job) if gone in read_raw(job, name)["url"].to_pylist())
    remove_commit(job.raw, shard)  # as if fetch had been killed
    with own_job(job, forgetting=True):
        summary = run_forget(job, Texts({gone}), ForgetOptions())
    assert (summary.rows, summary.waiting, summary.not_found) == (0, 1, 0)
    for path in Path(job.url).rglob("*"):
        if path.is_file():
            data = repr(pq.read_table(path).to_pylist()).encode() if path.suffix == ".parquet" else path.read_bytes()
            assert b"/1.jpg" not in data, path
    asked = len(server.requests)
    with own_job(job):
        found = run_fetch(job, recipe.input, config, seed=0, engine=recipe.engine)
    assert (found.rows, found.fetched, found.failed) == (4, 3, {"forgotten": 1})
    assert "/1.jpg" not in [path for path, _ in server.requests[asked:]]
    with own_job(job, forgetting=True):
        assert run_forget(job, Texts({gone}), ForgetOptions()).request == ""
