"""A trace of a few steps is written, and the run is what it would be without."""

import gzip
import json
from collections.abc import Callable
from pathlib import Path

import pytest

from headrace.train.config import load_run
from headrace.train.loop import train
from headrace.train.runs.metrics import read_metrics


def test_a_profiled_run_is_the_run_and_leaves_a_trace(
    run_file: Callable[..., Path], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = run_file(steps=5, validation=None)
    plain = load_run(path)
    profiled = load_run(
        path, [f"out={tmp_path / 'profiled'}", "profile.after=2", "profile.steps=2", "profile.memory=true"]
    )
    train(plain)
    train(profiled)
    losses = [[line["loss"] for line in read_metrics(Path(one.out) / "metrics.jsonl")] for one in (plain, profiled)]
    assert losses[0] == losses[1]
    (trace,) = (tmp_path / "profiled" / "profile").iterdir()
    assert trace.name == "00000002-rank0.json.gz"
    with gzip.open(trace) as file:
        events = json.load(file)["traceEvents"]
    names = [event.get("name", "") for event in events]
    assert {"ProfilerStep#2", "ProfilerStep#3"} <= set(names)
    assert "ProfilerStep#4" not in names
    assert any("AdamW" in name for name in names)
    assert "profile.memory needs a CUDA device" in caplog.text


def test_what_a_profile_cannot_be_is_refused(run_file: Callable[..., Path]) -> None:
    with pytest.raises(ValueError, match="after must be at least 0 and steps at least 1, got 3 and 0"):
        load_run(run_file(), ["profile.after=3", "profile.steps=0"])
