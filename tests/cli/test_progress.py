"""Promises of the life sign: plain lines off a terminal, a bar on one, nothing after -q, nothing of data that obeys."""

import contextlib
import io
import os
import pty
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest

from headrace.cli.progress import SECONDS_VARIABLE, numbers, show_progress, troubles
from headrace.cli.verbosity import set_verbosity
from headrace.shards.progress import Progress

HALF = Progress(
    done=1,
    total=2,
    counts={"rows": 1500, "bytes": 2_500_000},
    failures={"http-404": 7, "timeout": 300},
    hosts={"slow.example\x1b[31m": 31.4, "fast.example": 0.1},
    expected={"rows": 3000},
    rates={"rows": 12.4, "bytes": 20_000.0},
    left_seconds=121.0,
)


def test_the_numbers_are_of_rows_bytes_rates_and_time() -> None:
    assert numbers(HALF, 120.0) == (
        "1/2 shards, 1,500 of 3,000 rows, 2.5 MB, 12 rows/s, 20 kB/s, 0:02:00, about 0:02:01 left"
    )
    assert numbers(HALF, 100.0, ended=True) == "1/2 shards, 1,500 rows, 2.5 MB, 15 rows/s, 25 kB/s, 0:01:40"
    assert numbers(Progress(done=3, total=12, noun="steps"), 5.0) == "3/12 steps, 0:00:05"


def test_troubles_are_failures_by_class_and_the_slowest_hosts() -> None:
    assert troubles(HALF) == "failed 307: timeout 300, http-404 7; slowest hosts: slow.example [31m 31 s"
    assert troubles(HALF, hosts=False) == "failed 307: timeout 300, http-404 7"
    assert troubles(Progress(done=0, total=1)) == ""


def test_off_a_terminal_a_line_comes_by_the_clock_and_one_at_the_end(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(SECONDS_VARIABLE, "0.05")
    said = ""

    def until(what: str) -> None:
        nonlocal said
        end = time.monotonic() + 150
        while what not in said:
            assert time.monotonic() < end, said
            time.sleep(0.01)
            said += capsys.readouterr().err

    with show_progress("fetch") as on_progress:
        until("\n")  # a driver that is busy says nothing itself
        on_progress(HALF)
        until("slowest")
    lines = (said + capsys.readouterr().err).splitlines()
    assert re.fullmatch(r"fetch: 0:0\d:\d\d", lines[0])
    assert any(line.startswith("fetch: 1/2 shards, 1,500 of 3,000 rows") and "slowest" in line for line in lines)
    assert lines[-1].startswith("fetch: 1/2 shards, 1,500 rows, 2.5 MB, ")


def test_a_short_run_has_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    with show_progress("fetch") as on_progress:
        on_progress(HALF)
    assert capsys.readouterr().err.count("\n") == 1


def test_nothing_to_do_and_a_failure_have_none(capsys: pytest.CaptureFixture[str]) -> None:
    with show_progress("fetch") as on_progress:
        on_progress(Progress(done=0, total=0))
    with contextlib.suppress(ValueError), show_progress("fetch") as on_progress:
        on_progress(HALF)
        raise ValueError
    assert capsys.readouterr().err == ""


def test_quiet_has_none(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(SECONDS_VARIABLE, "0.01")
    set_verbosity(quiet=True)
    with show_progress("fetch") as on_progress:
        on_progress(HALF)
        time.sleep(0.05)
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("text", ["soon", "0", "-1", "nan"])
def test_a_bad_interval_is_a_clear_error(monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    monkeypatch.setenv(SECONDS_VARIABLE, text)
    with pytest.raises(ValueError, match=SECONDS_VARIABLE), show_progress("fetch"):
        pass


def test_on_a_terminal_a_bar_lives_and_log_lines_stand_above_it(tmp_path: Path) -> None:
    (tmp_path / "program.py").write_text(
        "import logging, sys, time\n"
        "from headrace.cli.progress import show_progress\n"
        "from headrace.cli.verbosity import set_verbosity\n"
        "from headrace.shards.progress import Progress\n"
        "set_verbosity(verbose=True)\n"
        "with show_progress('fetch') as tell:\n"
        "    tell(Progress(done=1, total=2, counts={'rows': 7}, failures={'timeout': 3}, rates={'rows': 2.0}))\n"
        "    time.sleep(0.6)\n"
        "    logging.getLogger('headrace.x').info('a line')\n"
        "    print('to stdout')\n"
        "    time.sleep(0.6)\n"
    )
    ours, theirs = pty.openpty()
    environment = {**os.environ, "TERM": "xterm", "COLUMNS": "200", "LINES": "40"}
    process = subprocess.run(
        [sys.executable, tmp_path / "program.py"], stdout=subprocess.PIPE, stderr=theirs, env=environment, check=True
    )
    os.close(theirs)
    shown = io.BytesIO()
    with contextlib.suppress(OSError):  # the other end is closed
        while data := os.read(ours, 65536):
            shown.write(data)
    os.close(ours)
    text = re.sub(rb"\x1b\[[0-9;?]*[A-Za-z]", b"", shown.getvalue()).decode()
    assert "1/2 shards, 7 rows, 2.0 rows/s" in text
    assert "failed 3: timeout 3" in text
    assert "INFO headrace.x: a line" in text
    assert process.stdout == b"to stdout\n"
