"""Promises of logs: one line a record, files of bounded size, each worker line once on the driver's side."""

import logging
from pathlib import Path

import pytest

from headrace.shards.logs import BoundedFile, RunLog, WorkerLogs, logging_to, relay, unit_log, worker_logs

log = logging.getLogger("headrace.test")


@pytest.fixture
def package() -> logging.Logger:
    """The package's logger."""
    return logging.getLogger("headrace")


def test_a_unit_that_logs_nothing_has_no_file(tmp_path: Path, package: logging.Logger) -> None:
    package.setLevel(logging.INFO)
    with unit_log("raw/00001", str(tmp_path / "logs")):
        pass
    assert not (tmp_path / "logs").exists()
    with unit_log("raw/00002", str(tmp_path / "logs")):
        log.info("once\nmore \x1b[31m")
    log.info("of nobody")
    (line,) = (tmp_path / "logs" / "raw-00002.log").read_text().splitlines()
    assert line.endswith("INFO headrace.test: once more  [31m")


def test_a_file_ends_where_it_is_full(tmp_path: Path, package: logging.Logger) -> None:
    package.setLevel(logging.INFO)
    handler = BoundedFile(tmp_path / "a.log", max_bytes=1000)
    package.addHandler(handler)
    for number in range(100):
        log.info("line %d", number)
    handler.close()
    text = (tmp_path / "a.log").read_text()
    assert len(text) < 1100
    assert text.splitlines()[-1] == "... no more lines: this file is full at 1000 bytes"


def test_a_log_that_cannot_be_written_stops_nothing(package: logging.Logger) -> None:
    package.setLevel(logging.INFO)
    handler = BoundedFile(Path("/dev/full"), max_bytes=1000)
    package.addHandler(handler)
    log.info("a")
    log.info("b")
    handler.close()
    with unit_log("u", "/dev/null/logs"):
        log.info("c")


def test_workers_send_what_the_driver_shows(package: logging.Logger, tmp_path: Path) -> None:
    root = logging.getLogger()
    others = root.handlers[:]
    try:
        root.handlers[:] = []
        assert worker_logs() == WorkerLogs(shown=logging.WARNING, folder=None)
        root.handlers[:] = [logging.Handler(logging.ERROR)]
        package.addHandler(RunLog(tmp_path / "run.log", units=tmp_path / "units"))
        package.setLevel(logging.INFO)
        assert worker_logs() == WorkerLogs(shown=logging.ERROR, folder=str(tmp_path / "units"))
        root.handlers[:] = [logging.Handler(logging.INFO)]
        assert worker_logs().shown == logging.INFO
    finally:
        root.handlers[:] = others


def test_a_line_of_a_worker_comes_up_in_the_driver_with_its_unit(
    caplog: pytest.LogCaptureFixture, package: logging.Logger
) -> None:
    sent: list[dict[str, object]] = []
    with logging_to(lambda message: sent.append(dict(message)), WorkerLogs(shown=logging.INFO, folder=None)):
        log.debug("not this")
        log.info("a %s", 100 * "long\n")
        try:
            raise ValueError("bad")
        except ValueError:
            log.warning("failed", exc_info=True)
    caplog.clear()
    package.setLevel(logging.INFO)
    for message in sent:
        relay(message, "raw/00001")
    first, second = caplog.messages
    assert first.startswith("raw/00001: a long long")
    assert second == "raw/00001: failed: ValueError: bad"
    assert caplog.records[1].levelno == logging.WARNING


def test_the_file_of_a_run_has_the_faults_of_its_units_only(tmp_path: Path, package: logging.Logger) -> None:
    package.setLevel(logging.INFO)
    handler = RunLog(tmp_path / "run.log", units=tmp_path)
    package.addHandler(handler)
    log.info("of the driver")
    relay({"log": logging.INFO, "logger": "headrace.x", "text": "usual"}, "u1")
    relay({"log": logging.WARNING, "logger": "headrace.x", "text": "odd"}, "u1")
    handler.close()
    lines = (tmp_path / "run.log").read_text().splitlines()
    assert [line.partition(" ")[2] for line in lines] == [
        "INFO headrace.test: of the driver",
        "WARNING headrace.x: u1: odd",
    ]
