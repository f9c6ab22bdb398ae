"""Each line of metrics.jsonl is JSON, whatever the numbers are."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from headrace.train.runs.metrics import MetricsFile, read_metrics


def test_numbers_that_are_not_finite_are_null(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"event": "train", "step": 1, "loss": NaN}\n')  # as an older run wrote it
    file = MetricsFile(path, step=1)
    file.write({"event": "validation", "step": 1, "loss": float("inf"), "top1": 0.5})
    file.close()

    def no_constant(name: str) -> None:
        raise AssertionError(f"{name} is no JSON")

    lines = [json.loads(text, parse_constant=no_constant) for text in path.read_text().splitlines()]
    assert [line["loss"] for line in lines] == [None, None]
    assert lines[1]["top1"] == 0.5
    assert read_metrics(path) == lines


def test_lines_that_are_not_whole_are_left_out_and_counted(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "metrics.jsonl"
    whole = '{"event": "train", "step": 1}\n'
    path.write_text(whole + '{"event": "tr' + "\n\n" + '{"step": 2}\n' + whole)
    file = MetricsFile(path, step=1)
    file.close()
    assert path.read_text() == whole * 2
    (said,) = [record.getMessage() for record in caplog.records]
    assert said == f"{path}: 2 lines are not whole and are left out; the first is line 2"
    caplog.clear()
    assert len(read_metrics(path)) == 2
    assert not caplog.records


def test_a_full_disk_names_the_file(tmp_path: Path, no_more_than: Callable[[int], None]) -> None:
    file = MetricsFile(tmp_path / "metrics.jsonl", step=-1)
    no_more_than(100)
    with pytest.raises(OSError, match=r"metrics\.jsonl: cannot be written: .*make room and run the same command again"):
        file.write({"event": "train", "step": 1, "note": "a" * 200})
    file.close()
