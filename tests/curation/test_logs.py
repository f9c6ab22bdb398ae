"""Promises of a job's logs: a file for each run of a stage, a bounded number of them, none for a remote job."""

import logging
from pathlib import Path

import pytest

from headrace import files
from headrace.curation.job import Job, own_job
from headrace.curation.logs import KEPT_RUNS, stage_log

log = logging.getLogger("headrace.test")


@pytest.fixture(autouse=True)
def _quiet() -> None:
    logging.getLogger("headrace").setLevel(logging.WARNING)


def test_a_run_of_a_stage_has_a_file_with_its_begin_and_end(tmp_path: Path) -> None:
    with stage_log(Job(str(tmp_path)), "fetch"):
        log.info("in it")
    log.info("after it")
    (path,) = (tmp_path / "logs").iterdir()
    assert path.name.startswith("fetch-")
    lines = [line.partition(" ")[2] for line in path.read_text().splitlines()]
    assert lines[0] == f"INFO headrace.curation.logs: fetch of {tmp_path} begins"
    assert lines[1] == "INFO headrace.test: in it"
    assert lines[2].startswith("INFO headrace.curation.logs: fetch ends after ")
    assert len(lines) == 3
    assert logging.getLogger("headrace").level == logging.WARNING


def test_a_run_that_fails_says_why(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="bad"), stage_log(Job(str(tmp_path)), "build"):
        raise ValueError("bad")
    (path,) = (tmp_path / "logs").iterdir()
    assert "ValueError: bad" in path.read_text()


def test_the_newest_runs_of_a_stage_are_kept(tmp_path: Path) -> None:
    (tmp_path / "logs").mkdir()
    for number in range(KEPT_RUNS + 5):
        (tmp_path / "logs" / f"fetch-{number:02d}.log").touch()
    (tmp_path / "logs" / "build-1.log").touch()
    with stage_log(Job(str(tmp_path)), "fetch"):
        pass
    assert len(list((tmp_path / "logs").glob("fetch-*.log"))) == KEPT_RUNS
    assert (tmp_path / "logs" / "build-1.log").exists()


def test_a_remote_job_has_none() -> None:
    with stage_log(Job("memory://job-without-logs"), "fetch"):
        log.info("in it")
    assert not files.exists("memory://job-without-logs/logs")


def test_a_folder_of_logs_that_cannot_be_written_stops_nothing(tmp_path: Path) -> None:
    (tmp_path / "logs").touch()
    with stage_log(Job(str(tmp_path)), "fetch"):
        log.info("in it")


def test_a_folder_with_logs_alone_is_no_job(tmp_path: Path) -> None:
    (tmp_path / "logs").mkdir()
    with pytest.raises(ValueError, match="holds logs"), own_job(Job(str(tmp_path))):
        pass


def test_owning_a_job_is_logged(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "headrace")
    with own_job(Job(str(tmp_path / "job"))):
        pass
    assert "owned by process" in caplog.text
    (tmp_path / "job" / "owner.json").write_text('{"host": "elsewhere", "process": 1, "started": "1"}')
    with own_job(Job(str(tmp_path / "job")), take_over=True):
        pass
    assert "its owner, process 1 on elsewhere, is gone (--take-over says so)" in caplog.text
