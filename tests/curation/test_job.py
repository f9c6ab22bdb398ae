"""Promises of a job's ownership."""

import json
import multiprocessing
import os
import signal
import socket
import time
from pathlib import Path

import pytest

from headrace import atomic
from headrace.curation.job import PARTS, Job, check_job, own_job, write_recipe


def test_a_finished_job_shows_no_owner(tmp_path: Path) -> None:
    with own_job(Job(str(tmp_path / "job"))) as job:
        write_recipe(job, "seed: 0\n")
        assert (tmp_path / "job" / "owner.json").exists()
    assert sorted(path.name for path in (tmp_path / "job").iterdir()) == ["job.json", "recipe.yaml"]


def test_a_second_driver_is_refused_and_may_take_over(tmp_path: Path) -> None:
    job = Job(str(tmp_path))
    with own_job(job):
        with pytest.raises(ValueError, match=f"owned by process {os.getpid()}.*--take-over"), own_job(job):
            pass
        with own_job(job, take_over=True):
            pass


def test_an_owner_on_another_host_is_never_thought_dead(tmp_path: Path) -> None:
    (tmp_path / "owner.json").write_text(json.dumps({"host": "elsewhere", "process": 1, "started": "1"}))
    with pytest.raises(ValueError, match="on elsewhere"), own_job(Job(str(tmp_path))):
        pass


def _hold(folder: str) -> None:
    with own_job(Job(folder)):
        time.sleep(600)


def test_an_owner_killed_on_this_host_is_replaced(tmp_path: Path) -> None:
    process = multiprocessing.get_context("spawn").Process(target=_hold, args=(str(tmp_path),))
    process.start()
    deadline = time.monotonic() + 200
    while not (tmp_path / "owner.json").exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    assert process.pid is not None
    os.kill(process.pid, signal.SIGKILL)
    process.join()
    assert json.loads((tmp_path / "owner.json").read_text())["host"] == socket.gethostname()
    with own_job(Job(str(tmp_path))):
        pass


@pytest.mark.parametrize("name", PARTS)
def test_a_folder_that_is_no_job_is_never_written_over(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_text("my own")
    with pytest.raises(ValueError, match=f"is no job.*holds {name}"), own_job(Job(str(tmp_path))):
        pass
    assert [path.name for path in tmp_path.iterdir()] == [name]
    assert (tmp_path / name).read_text() == "my own"


def test_what_a_job_writes_is_what_it_will_not_write_over() -> None:
    job = Job("memory://job")
    urls = [job.raw, job.ledgers, job.dataset, job.build_failures(), job.report, job.annotations("clip", "0" * 8)]
    assert {url.removeprefix("memory://job/").split("/")[0] for url in urls} <= set(PARTS)


def test_a_folder_of_another_schema_is_refused(tmp_path: Path) -> None:
    (tmp_path / "job.json").write_text('{"schema": 99}')
    with pytest.raises(ValueError, match="job of schema 99"), own_job(Job(str(tmp_path))):
        pass


@pytest.mark.parametrize("text", ["[1]", "7", "", "{", '{"host": "a", "process": "x"}'])
def test_a_damaged_owner_is_named_and_may_be_replaced(tmp_path: Path, text: str) -> None:
    (tmp_path / "owner.json").write_text(text)
    job = Job(str(tmp_path))
    with pytest.raises(ValueError, match=r"owner\.json is damaged.*--take-over"), own_job(job):
        pass
    with own_job(job, take_over=True):
        assert json.loads((tmp_path / "owner.json").read_text())["process"] == os.getpid()


def test_an_owner_that_ends_between_two_looks_is_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "owner.json").write_text("{}")
    put = atomic.put_if_absent

    def put_then_end(url: str, data: bytes) -> bool:
        put_it = put(url, data)
        if url.endswith("owner.json") and not put_it:
            (tmp_path / "owner.json").unlink()
        return put_it

    monkeypatch.setattr(atomic, "put_if_absent", put_then_end)
    with own_job(Job(str(tmp_path))):
        assert json.loads((tmp_path / "owner.json").read_text())["process"] == os.getpid()


def test_a_file_in_the_place_of_the_job_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("my own")
    for url in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(ValueError, match=r"job: .*/file is a file, not a folder"), own_job(Job(str(url))):
            pass
    assert (tmp_path / "file").read_text() == "my own"


def test_what_a_killed_driver_was_writing_is_cleared(tmp_path: Path) -> None:
    for name in (".recipe.yaml.abc123.tmp", ".owner.json.abc123.tmp"):
        (tmp_path / name).write_text("half")
    with own_job(Job(str(tmp_path))):
        assert sorted(path.name for path in tmp_path.iterdir()) == ["job.json", "owner.json"]


def test_a_look_at_a_job_refuses_what_owning_it_would_and_leaves_nothing(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken/recipe.yaml").write_text("my own")
    (tmp_path / "odd").mkdir()
    (tmp_path / "odd/job.json").write_text("[]")
    refused = {
        f"{tmp_path}/file/job": "is a file, not a folder",
        "/dev/null": "is a file, not a folder",
        f"{tmp_path}/{'a' * 300}/job": "cannot be written: File name too long",
        "/proc/headrace/job": "cannot be written",
        f"{tmp_path}/taken": "is no job",
        f"{tmp_path}/odd": "is not a job file",
    }
    before = sorted(tmp_path.rglob("*"))
    for url, message in refused.items():
        with pytest.raises(ValueError, match=message) as caught:
            check_job(Job(url))
        assert "\n" not in str(caught.value)
    check_job(Job(str(tmp_path / "new/job")))
    assert sorted(tmp_path.rglob("*")) == before
    with own_job(Job(str(tmp_path / "new"))) as job:
        with pytest.raises(ValueError, match=f"owned by process {os.getpid()}"):
            check_job(job)
        check_job(job, take_over=True)
    check_job(job)
