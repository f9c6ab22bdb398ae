"""From a list to raw shards: order, completeness, resume, retries, and what is refused."""

import asyncio
import errno
import hashlib
import json
import os
import socket
import subprocess
import sys
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from headrace.curation.fetch.config import FetchConfig, InputConfig
from headrace.curation.fetch.lists import spill as spilling
from headrace.curation.fetch.lists.spill import read_places, spill
from headrace.curation.job import Job
from headrace.curation.raw.read import raw_shards, raw_tar_url, read_raw
from headrace.curation.stages import fetch as run_fetch
from headrace.curation.stages import plan_fetch
from headrace.shards.commit import committed
from headrace.shards.permutation import make_key, permute


def write_list(path: Path, server: Any, web: Any, *, num_rows: int = 23) -> list[dict[str, Any]]:
    """A list of images with three failures in it; the server serves them."""
    records = []
    for number in range(num_rows):
        server.answers[f"/{number}.jpg"] = web.reply(web.jpeg(number))
        records.append({"url": server.url(f"/{number}.jpg"), "caption": f"image {number}", "page": number})
    records[3]["url"] = server.url("/missing.jpg")
    records[7]["url"] = "file:///etc/passwd"
    records[11]["url"] = None
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return records


def files_of(folder: Path) -> dict[str, str]:
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def all_rows(job: Path) -> list[dict[str, Any]]:
    return [row for shard in raw_shards(Job(str(job))) for row in read_raw(Job(str(job)), shard).to_pylist()]


def test_every_row_of_the_list_is_in_a_raw_shard_once(server, web, tmp_path: Path) -> None:
    records = write_list(tmp_path / "list.jsonl", server, web)
    recipe = web.recipe_for(
        tmp_path / "job", tmp_path / "list.jsonl", web.config_for(server, samples_per_shard=10), columns=("page",)
    )
    summary = run_fetch(recipe)
    assert (summary.rows, summary.fetched, summary.shards) == (23, 20, 3)
    assert summary.failed == {"http-4xx": 1, "refused-scheme": 1, "bad-url": 1}
    rows = all_rows(tmp_path / "job")
    assert sorted(row["input_row"] for row in rows) == list(range(23))
    for row in rows:
        record = records[row["input_row"]]
        assert (row["url"], row["caption"], row["page"]) == (record["url"], record["caption"], record["page"])
        assert row["input_file"] == "list.jsonl"
        assert row["uid"] == hashlib.md5((record["caption"] + (record["url"] or "")).encode()).hexdigest()
        assert (row["status"] == "success") == (row["error_class"] is None) == (row["sha256"] is not None)


def test_rows_stand_where_the_permutation_says_whatever_order_they_came_in(server, web, tmp_path: Path) -> None:
    write_list(tmp_path / "list.jsonl", server, web)

    async def late(_: Any, writer: Any) -> None:
        await asyncio.sleep(0.3)
        writer.write(web.reply(web.jpeg(0)))

    server.answers["/0.jpg"] = late
    recipe = web.recipe_for(
        tmp_path / "job", tmp_path / "list.jsonl", web.config_for(server, samples_per_shard=10), seed=5
    )
    run_fetch(recipe)
    place = permute(np.arange(23), 23, make_key("fetch order", 5))
    rows = all_rows(tmp_path / "job")
    assert [place[row["input_row"]] for row in rows] == list(range(23))
    assert [row["key"] for row in rows] == [f"{number // 10:05d}{number % 10:04d}" for number in range(23)]


def test_what_a_lost_machine_left_is_gone_at_the_end(server, web, tmp_path: Path) -> None:
    write_list(tmp_path / "list.jsonl", server, web)
    left = [tmp_path / "job/raw" / part / ".00000.lost.tmp" for part in ("", "commits")]

    async def lose(_: Any, writer: Any) -> None:
        for path in left:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(b"half")
        writer.write(web.reply(web.jpeg(0)))

    server.answers["/0.jpg"] = lose
    run_fetch(web.recipe_for(tmp_path / "job", tmp_path / "list.jsonl", web.config_for(server)))
    assert not [path for path in left if path.exists()]


def test_the_tar_is_img2datasets_layout(server, web, tmp_path: Path) -> None:
    write_list(tmp_path / "list.jsonl", server, web)
    recipe = web.recipe_for(tmp_path / "job", tmp_path / "list.jsonl", web.config_for(server), columns=("page",))
    run_fetch(recipe)
    raw = tmp_path / "job" / "raw"
    assert sorted(path.name for path in raw.iterdir()) == ["00000.parquet", "00000.tar", "00000_stats.json", "commits"]
    assert raw_tar_url(Job(recipe.job), "00000") == str(raw / "00000.tar")
    table = pq.read_table(raw / "00000.parquet").to_pylist()
    with tarfile.open(raw / "00000.tar") as tar:
        members = {member.name: tar.extractfile(member).read() for member in tar}
    fetched = [row for row in table if row["status"] == "success"]
    assert len(members) == 3 * len(fetched)
    for row in fetched:
        assert hashlib.sha256(members[f"{row['key']}.jpg"]).hexdigest() == row["sha256"]
        assert members[f"{row['key']}.txt"].decode() == row["caption"]
        told = json.loads(members[f"{row['key']}.json"])
        assert (told["uid"], told["page"], told["width"]) == (row["uid"], row["page"], 32)
    stats = json.loads((raw / "00000_stats.json").read_text())
    assert (stats["count"], stats["successes"], stats["failed_to_download"]) == (23, 20, 3)


def test_two_runs_and_two_processes_write_the_same_bytes(server, web, tmp_path: Path) -> None:
    write_list(tmp_path / "list.jsonl", server, web)
    for name, executor in (("one", "inline"), ("two", "local")):
        config = web.config_for(server, samples_per_shard=10, concurrency=1 if name == "one" else 8)
        run_fetch(web.recipe_for(tmp_path / name, tmp_path / "list.jsonl", config, executor=executor))
    assert files_of(tmp_path / "one") == files_of(tmp_path / "two")
    assert any(name.endswith(".tar") for name in files_of(tmp_path / "one"))


def test_a_finished_shard_is_not_fetched_again(server, web, tmp_path: Path) -> None:
    write_list(tmp_path / "list.jsonl", server, web)
    recipe = web.recipe_for(tmp_path / "job", tmp_path / "list.jsonl", web.config_for(server, samples_per_shard=10))
    run_fetch(recipe)
    before = files_of(tmp_path / "job")
    (tmp_path / "job/raw/commits/00001.json").unlink()
    (tmp_path / "job/raw/00001.tar").write_bytes(b"half")
    (tmp_path / "job/input/runs/00000.parquet").unlink()
    server.requests.clear()
    run_fetch(recipe)
    assert len(server.requests) <= 10
    assert files_of(tmp_path / "job") == before
    server.requests.clear()
    run_fetch(recipe)
    assert server.requests == []


def test_a_job_at_another_file_system_holds_the_same_bytes(server, web, tmp_path: Path) -> None:
    import fsspec

    write_list(tmp_path / "list.jsonl", server, web)
    config = web.config_for(server, samples_per_shard=10)
    run_fetch(web.recipe_for(tmp_path / "job", tmp_path / "list.jsonl", config))
    run_fetch(web.recipe_for("memory://fetch-job", tmp_path / "list.jsonl", config))
    fs = fsspec.filesystem("memory")
    found = {
        name.removeprefix("/fetch-job/"): hashlib.sha256(fs.cat_file(name)).hexdigest()
        for name in fs.find("/fetch-job")
    }
    assert found == files_of(tmp_path / "job")
    assert read_raw(Job("memory://fetch-job"), "00001").num_rows == 10


def test_another_list_or_seed_is_refused(server, web, tmp_path: Path) -> None:
    write_list(tmp_path / "list.jsonl", server, web)
    config = web.config_for(server, samples_per_shard=10)
    run_fetch(web.recipe_for(tmp_path / "job", tmp_path / "list.jsonl", config))
    for settings, named in (({"seed": 1}, "seed"), ({"columns": ("page",)}, "settings of input")):
        with pytest.raises(ValueError, match=f"another input.*{named}"):
            run_fetch(web.recipe_for(tmp_path / "job", tmp_path / "list.jsonl", config, **settings))
    text = (tmp_path / "list.jsonl").read_text()
    (tmp_path / "list.jsonl").write_text(text.replace("image 4", "image 5"))
    with pytest.raises(ValueError, match=r"the files of input\.urls"):
        run_fetch(web.recipe_for(tmp_path / "job", tmp_path / "list.jsonl", config))
    (tmp_path / "list.jsonl").write_text(text)
    run_fetch(
        web.recipe_for(
            tmp_path / "job", tmp_path / "list.jsonl", web.config_for(server, samples_per_shard=10, retries=1)
        )
    )


def test_a_retry_fetches_only_what_may_have_passed_into_new_shards(server, web, tmp_path: Path) -> None:
    write_list(tmp_path / "list.jsonl", server, web)
    for number in (1, 2, 5, 20):
        server.answers[f"/{number}.jpg"] = web.reply(status="503 Busy")
    recipe = web.recipe_for(
        tmp_path / "job", tmp_path / "list.jsonl", web.config_for(server, samples_per_shard=10), columns=("page",)
    )
    run_fetch(recipe)
    before = files_of(tmp_path / "job" / "raw")
    for number in (1, 2):
        server.answers[f"/{number}.jpg"] = web.reply(web.jpeg(number))
    server.requests.clear()
    summary = run_fetch(recipe, retry_failed=True)
    assert sorted(path for path, _ in server.requests) == ["/1.jpg", "/2.jpg", "/20.jpg", "/5.jpg"]
    assert (summary.rows, summary.fetched, summary.retried) == (23, 18, 2)
    after = files_of(tmp_path / "job" / "raw")
    assert before.items() <= after.items()
    table = read_raw(Job(recipe.job), "00003")
    assert sorted(table.column("input_row").to_pylist()) == sorted(table.column("page").to_pylist()) == [1, 2]
    assert table.column("status").to_pylist() == ["success", "success"]
    assert table.column("key").to_pylist() == ["000030000", "000030001"]

    server.answers["/5.jpg"] = web.reply(web.jpeg(5))
    server.requests.clear()
    assert run_fetch(recipe, retry_failed=True).retried == 3
    assert sorted(path for path, _ in server.requests) == ["/20.jpg", "/5.jpg"]
    assert read_raw(Job(recipe.job), "00004").column("input_row").to_pylist() == [5]

    uids = [row["uid"] for row in all_rows(tmp_path / "job") if row["status"] == "success"]
    assert len(uids) == len(set(uids)) == 19


def test_a_retry_without_a_success_leaves_the_raw_part_as_it_was(server, web, tmp_path: Path) -> None:
    write_list(tmp_path / "list.jsonl", server, web)
    for number in range(20):
        server.answers[f"/{number}.jpg"] = web.reply(status="503 Busy")
    recipe = web.recipe_for(tmp_path / "job", tmp_path / "list.jsonl", web.config_for(server, samples_per_shard=9))
    run_fetch(recipe)
    raw = files_of(tmp_path / "job/raw")
    assert run_fetch(recipe, retry_failed=True).retried == 0
    assert files_of(tmp_path / "job/raw") == raw
    whole = files_of(tmp_path / "job")
    # Killed after one of its shards, while the other had a success that is not there any more: goes on to the same.
    records = sorted((tmp_path / "job/input/retries/00000/commits").iterdir())
    assert [path.name for path in records] == ["00003.json", "00004.json"]
    records[1].unlink()
    for suffix in (".tar", ".parquet", "_stats.json"):
        (tmp_path / f"job/raw/00004{suffix}").write_bytes(b"never committed")
    for folder in (records[1].parent, records[1].parents[1], records[1].parents[2]):
        (folder / ".a.json.x.tmp").write_bytes(b"half")
    server.requests.clear()
    run_fetch(recipe, retry_failed=True)
    assert 0 < len(server.requests) < 18
    assert files_of(tmp_path / "job") == whole
    # The next one is another generation, with the numbers after those.
    for number in range(20):
        server.answers[f"/{number}.jpg"] = web.reply(web.jpeg(number))
    assert run_fetch(recipe, retry_failed=True).retried == 17
    assert [int(name) for name in raw_shards(Job(recipe.job))] == [0, 1, 2, 5, 6]
    assert sum(row["status"] == "success" for row in all_rows(tmp_path / "job")) == 20


def test_a_retry_that_was_cut_short_goes_on_with_the_same_names(server, web, tmp_path: Path) -> None:
    write_list(tmp_path / "list.jsonl", server, web)
    for number in range(20):
        server.answers[f"/{number}.jpg"] = web.reply(status="503 Busy")
    recipe = web.recipe_for(tmp_path / "job", tmp_path / "list.jsonl", web.config_for(server, samples_per_shard=4))
    run_fetch(recipe)
    num_list_shards = len(committed(f"{tmp_path}/job/raw"))
    for number in range(20):
        server.answers[f"/{number}.jpg"] = web.reply(web.jpeg(number))
    run_fetch(recipe, retry_failed=True)
    whole = files_of(tmp_path / "job")
    for path in (tmp_path / "job/raw/commits").iterdir():
        if int(path.stem) > num_list_shards:
            path.unlink()
    run_fetch(recipe, retry_failed=True)
    assert files_of(tmp_path / "job") == whole


def test_requests_to_one_host_are_limited(server, web, tmp_path: Path) -> None:
    async def slow(server: Any, writer: Any) -> None:
        for _ in range(100):  # the first wait for each other, however slowly they come
            await asyncio.sleep(0.03)
            if server.most_open >= 3:
                break
        writer.write(web.reply(web.jpeg()))

    (tmp_path / "list.txt").write_text("".join(server.url(f"/{number}") + "\n" for number in range(40)))
    server.answers.update({f"/{number}": slow for number in range(40)})
    config = web.config_for(server, per_host=3, concurrency=20)
    assert run_fetch(web.recipe_for(tmp_path / "job", tmp_path / "list.txt", config)).fetched == 40
    assert server.most_open == 3


def test_waiting_for_a_slot_does_not_count_as_the_servers_time(server, web, tmp_path: Path) -> None:
    async def slow(_: Any, writer: Any) -> None:
        await asyncio.sleep(0.1)
        writer.write(web.reply(web.jpeg()))

    (tmp_path / "list.txt").write_text("".join(server.url(f"/{number}") + "\n" for number in range(40)))
    server.answers.update({f"/{number}": slow for number in range(40)})
    config = web.config_for(server, per_host=1, attempt_seconds=3.0, deadline_seconds=3.0)
    # A busy machine may stall for seconds, and then a row is lost; if waiting counted, the last rows always were.
    jobs = (str(tmp_path / f"job-{attempt}") for attempt in range(3))
    assert any(run_fetch(web.recipe_for(job, tmp_path / "list.txt", config)).fetched == 40 for job in jobs)


def test_a_plan_requests_and_writes_nothing(server, web, tmp_path: Path) -> None:
    write_list(tmp_path / "list.jsonl", server, web)
    recipe = web.recipe_for(tmp_path / "job", tmp_path / "list.jsonl", web.config_for(server))
    lines = plan_fetch(recipe)
    assert any("list.jsonl" in line for line in lines)
    assert server.requests == []
    assert not (tmp_path / "job").exists()


def test_a_plan_refuses_a_list_without_the_columns_that_the_recipe_names(server, web, tmp_path: Path) -> None:
    (tmp_path / "list.csv").write_text("url,alt\nhttp://127.0.0.1/,x\n")
    recipe = web.recipe_for(tmp_path / "job", tmp_path / "list.csv", web.config_for(server))
    with pytest.raises(ValueError, match=r"list\.csv: no column 'caption'; its columns: url, alt"):
        plan_fetch(recipe)
    assert not (tmp_path / "job").exists()


def test_a_full_disk_ends_the_run_and_costs_no_row(server, web, tmp_path: Path, monkeypatch) -> None:
    write_list(tmp_path / "list.jsonl", server, web)
    recipe = web.recipe_for(tmp_path / "job", tmp_path / "list.jsonl", web.config_for(server, samples_per_shard=10))

    room, write = [4000], os.pwritev

    def until_full(handle: int, parts: list[bytes], offset: int) -> int:
        room[0] -= sum(map(len, parts))
        if room[0] < 0:
            raise OSError(errno.ENOSPC, "No space left on device")
        return write(handle, parts, offset)

    with monkeypatch.context() as patch:
        patch.setattr("os.pwritev", until_full)
        with pytest.raises(OSError, match=r"No space left on device: '.*spool/00000\.rows'"):
            run_fetch(recipe)
    assert committed(f"{tmp_path}/job/raw") == []
    assert run_fetch(recipe).fetched == 20


def test_too_few_file_handles_end_the_run_and_are_no_failure_of_a_url(server, web, tmp_path: Path, monkeypatch) -> None:
    write_list(tmp_path / "list.jsonl", server, web)
    recipe = web.recipe_for(tmp_path / "job", tmp_path / "list.jsonl", web.config_for(server))

    def none_left(*_: Any, **__: Any) -> None:
        raise OSError(errno.EMFILE, "Too many open files")

    with monkeypatch.context() as patch:
        patch.setattr("headrace.curation.fetch.net.http.open_socket", none_left)
        with pytest.raises(OSError, match="Too many open files"):
            run_fetch(recipe)
    assert committed(f"{tmp_path}/job/raw") == []


def test_a_list_that_nobody_answers_is_not_committed(server, web, tmp_path: Path, monkeypatch) -> None:
    (tmp_path / "list.txt").write_text("".join(f"http://host{number}.example:{server.port}/\n" for number in range(20)))
    config = web.config_for(server)
    recipe = web.recipe_for(tmp_path / "job", tmp_path / "list.txt", config)

    def nothing(*_: Any, **__: Any) -> None:
        raise socket.gaierror(socket.EAI_AGAIN, "Temporary failure in name resolution")

    with monkeypatch.context() as patch:
        patch.setattr("socket.getaddrinfo", nothing)
        with pytest.raises(ConnectionError, match="none of 20 hosts could be reached"):
            run_fetch(recipe)
    assert committed(f"{tmp_path}/job/raw") == []
    server.answers["/"] = web.reply(web.jpeg())
    here = [(socket.AF_INET, socket.SOCK_STREAM, 6, "", ("127.0.0.1", 0))]
    monkeypatch.setattr("socket.getaddrinfo", lambda *_, **__: here)
    assert run_fetch(recipe).fetched == 20


def test_an_empty_list_is_an_error(server, web, tmp_path: Path) -> None:
    (tmp_path / "list.txt").write_text("")
    with pytest.raises(ValueError, match="no rows"):
        run_fetch(web.recipe_for(tmp_path / "job", tmp_path / "list.txt", web.config_for(server)))


def test_any_shard_reads_its_rows_from_all_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(spilling, "RUN_ROWS", 700)
    monkeypatch.setattr(spilling, "MIN_GROUP_ROWS", 16)
    (tmp_path / "list.txt").write_text("".join(f"http://a.example/{number}\n" for number in range(5000)))
    config = InputConfig(urls=(str(tmp_path / "list.txt"),))
    found = spill(config, str(tmp_path / "input"), seed=3, fetch=FetchConfig(samples_per_shard=300))[0].rows
    assert found.num_runs == 8
    place = permute(np.arange(5000), 5000, make_key("fetch order", 3))
    whole = np.argsort(place)
    for start in range(0, 5000, 300):
        rows = read_places(found, start, min(start + 300, 5000))
        assert rows.column("input_row").to_pylist() == whole[start : start + 300].tolist()
    (tmp_path / "input/runs/00003.parquet").unlink()
    again = spill(config, str(tmp_path / "input"), seed=3, fetch=FetchConfig(samples_per_shard=300))[0].rows
    assert read_places(again, 0, 300).num_rows == 300


# VmHWM, as ru_maxrss begins with what the parent had at the fork.
SPILL = """
import re, sys
from pathlib import Path
from headrace.curation.fetch import FetchConfig, InputConfig
from headrace.curation.fetch.lists.spill import spill
spill(InputConfig(urls=(sys.argv[1],)), sys.argv[2], seed=0, fetch=FetchConfig())
print(int(re.search(r"VmHWM:\\s+(\\d+) kB", Path("/proc/self/status").read_text())[1]) >> 10)
"""


def spill_megabytes(folder: Path, num_rows: int) -> int:
    rows = range(num_rows)
    urls = [f"http://a.example/{number}/" + "a" * 60 for number in rows]
    path = folder / f"{num_rows}.parquet"
    pq.write_table(pa.table({"url": urls, "caption": [f"caption {number} " * 5 for number in rows]}), path)
    command = [sys.executable, "-c", SPILL, path, folder / f"input-{num_rows}"]
    return int(subprocess.run(command, check=True, capture_output=True, timeout=120).stdout)


@pytest.mark.full
def test_the_memory_to_shuffle_a_list_does_not_grow_with_it(tmp_path: Path) -> None:
    short, long = spill_megabytes(tmp_path, 200_000), spill_megabytes(tmp_path, 1_000_000)
    assert long < 1.4 * short, f"{short} MB for 200,000 rows, {long} MB for 1,000,000"


def test_what_was_odd_in_the_list_is_counted_logged_and_in_the_summary(
    server, web, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    server.answers["/0.jpg"] = web.reply(web.jpeg(0))
    link = server.url("/0.jpg")
    (tmp_path / "l.csv").write_text(f'url,caption\n{link},"open\n{link},a, b\n{link},c, d\n,none\n\n')
    recipe = web.recipe_for(tmp_path / "job", tmp_path / "l.csv", web.config_for(server, retry_classes=("bad-url",)))
    summary = run_fetch(recipe)
    assert (summary.rows, summary.fetched, summary.failed) == (4, 1, {"bad-url": 3})
    assert "in the list: more cells than the header has (2)" in str(summary)
    assert "the row has no URL (1)" in str(summary)
    assert "quotes that do not pair, taken as letters (1)" in str(summary)
    assert "2 rows not fetched: more cells than the header has; first: l.csv line 3" in caplog.text
    messages = {row["input_row"]: row["error_message"] for row in all_rows(tmp_path / "job")}
    assert messages[2] == "line 4: more cells than the header has"
    # Trying again cannot help: the URL of such a line may be cut.
    server.requests.clear()
    assert run_fetch(recipe, retry_failed=True).retried == 0
    assert server.requests == []


def test_a_job_whose_list_an_older_reader_cut_goes_on_only_with_its_rows(server, web, tmp_path: Path) -> None:
    write_list(tmp_path / "list.jsonl", server, web)
    recipe = web.recipe_for(tmp_path / "job", tmp_path / "list.jsonl", web.config_for(server, samples_per_shard=10))
    run_fetch(recipe)
    plan = tmp_path / "job/input/plan.json"
    told = json.loads(plan.read_text())
    assert told["segments"][0].pop("reader") == spilling.READER
    plan.write_text(json.dumps(told))
    (tmp_path / "job/input/lists.json").unlink()
    assert run_fetch(recipe).rows == 23
    (tmp_path / "job/input/runs/00000.parquet").unlink()
    with pytest.raises(ValueError, match="an older headrace began this job"):
        run_fetch(recipe)


def test_a_dry_run_refuses_what_the_run_would_refuse(server, web, tmp_path: Path) -> None:
    write_list(tmp_path / "list.jsonl", server, web)
    (tmp_path / "empty.txt").write_text("")
    config = web.config_for(server, samples_per_shard=10)
    recipe = web.recipe_for(tmp_path / "job", tmp_path / "list.jsonl", config)
    lines = plan_fetch(recipe)
    assert "23 rows" in lines
    assert "of 23 rows read, 1 not fetched: the row has no URL; first: list.jsonl line 12" in lines
    assert any("of the links give an image" in line and "an assumption" in line for line in lines)
    run_fetch(recipe)
    lines = plan_fetch(recipe)
    assert any("3 raw shards are finished and stay as they are; 0 rows are left" in line for line in lines)
    changed = tmp_path / "list.jsonl"
    changed.write_bytes(changed.read_bytes().replace(b"image 4", b"image 5"))
    raw = {"raw": str(tmp_path / "none")}
    for refused, message in (
        (recipe, "changed: the files of input.urls"),
        (web.recipe_for(tmp_path / "job", changed, config, seed=4), "changed: the files of input.urls, seed"),
        (web.recipe_for(tmp_path / "other", tmp_path / "empty.txt", config), "the lists hold no rows"),
        (web.recipe_for(tmp_path / "job", None, config, **raw), "no finished shard"),
    ):
        for call in (plan_fetch, run_fetch):
            with pytest.raises(ValueError, match=message):
                call(refused)
    with pytest.raises(ValueError, match="--retry-failed"):
        plan_fetch(web.recipe_for(tmp_path / "job", None, config, **raw), retry_failed=True)
