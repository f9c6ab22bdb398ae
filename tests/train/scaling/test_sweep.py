"""A sweep does each combination once, whatever is killed; what is collected from its folders is what the runs did."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml
from typer.testing import CliRunner

from headrace.cli.app import app
from headrace.cli.sweep import _Children, _Outcome
from headrace.config import config_to_dict
from headrace.shards.part import Part
from headrace.train.runs.folder import write_records
from headrace.train.scaling.collect import collect
from headrace.train.scaling.sweep import do_run, is_finished, load_sweep

HEADRACE = [sys.executable, "-m", "headrace.cli.app"]
AXES = {"width": {"w16": [], "w32": ["objective.width=32"]}, "length": {"s6": ["steps=6"], "s12": []}}


@pytest.fixture
def sweep_file(
    tmp_path: Path, run_file: Callable[..., Path], pictures: str, other_pictures: str
) -> Callable[..., Path]:
    """Return a function that writes a sweep of four tiny runs, with changes at its top level."""
    run_file()

    def write(**changes: object) -> Path:
        probe = {"train": pictures, "test": other_pictures, "head": "knn"}
        data = {"run": "run.yaml", "out": str(tmp_path / "sweep"), "axes": AXES, "probes": {"knn": probe}, **changes}
        path = tmp_path / "sweep.yaml"
        path.write_text(yaml.safe_dump(data, sort_keys=False))
        return path

    return write


def test_every_combination_is_a_run_and_parts_share_them(sweep_file: Callable[..., Path]) -> None:
    runs = load_sweep(sweep_file())
    assert [run.name for run in runs] == ["w16-s6", "w16-s12", "w32-s6", "w32-s12"]
    assert [run.config.steps for run in runs] == [6, 12, 6, 12]
    parts = [Part(index, 3).mine(runs) for index in (1, 2, 3)]
    assert sorted(run.name for part in parts for run in part) == sorted(run.name for run in runs)


def test_a_finished_run_is_skipped_and_collected(
    sweep_file: Callable[..., Path], pictures: str, tmp_path: Path
) -> None:
    run = load_sweep(sweep_file())[0]
    assert not is_finished(run)
    assert do_run(run, on_metrics=lambda _: None).finished
    assert is_finished(run)
    (row,) = collect([str(run.folder.parent)])
    told = json.loads((run.folder / "probe-knn.json").read_text())
    last = [json.loads(line) for line in (run.folder / "metrics.jsonl").read_text().splitlines()]
    validation = [line for line in last if line["event"] == "validation"]
    assert (row.name, row.objective, row.steps, row.images, row.samples) == ("w16-s6", "aim", 6, 96, 96)
    assert row.accuracy == told["accuracy"]
    assert row.validation_loss == validation[-1]["loss"]
    assert row.flops is not None
    assert collect([str(run.folder)], accuracy="knn")[0].accuracy == told["accuracy"]
    with pytest.raises(ValueError, match=r"no run has an accuracy called 'linear'; there are probe-knn$"):
        collect([str(run.folder)], accuracy="linear")
    # It may be moved, and what is to be typed next is right where two sweeps have runs of the same names.
    moved = tmp_path / "moved"
    shutil.copytree(run.folder.parent, moved)
    assert is_finished(load_sweep(sweep_file(out=str(moved)))[0])
    words = ["scaling", str(moved), str(run.folder.parent), "--out", str(tmp_path / "page.html")]
    shown = CliRunner().invoke(app, words)
    assert shown.stdout.splitlines()[-1] == f"next: headrace run-report {moved / run.name}"
    # The same folder with other settings: nothing is skipped in silence.
    probe = {"train": pictures, "test": pictures, "head": "knn"}
    for changes, told in (
        ({"overrides": ["optimizer.lr=0.01"]}, r"optimizer\.lr: was 0\.001, is 0\.01"),
        ({"overrides": ["mixture.sources.0.fraction=0.5"]}, r"mixture\.sources\.0\.fraction: was 1\.0, is 0\.5"),
        ({"probes": {"knn": probe}}, r"probes\.knn\.test: was "),
    ):
        other = load_sweep(sweep_file(**changes))[0]
        with pytest.raises(ValueError, match=f"done with other settings: {told}"):
            is_finished(other)
    # How often it is logged changes no result; nor does a setting that a later version brought.
    assert is_finished(load_sweep(sweep_file(overrides=["log_every=2"]))[0])
    config = run.folder / "run.yaml"
    config.write_text(re.sub(r"(?m)^hang_seconds: .*\n", "", config.read_text()))
    assert is_finished(run)


def test_an_unfinished_run_and_a_last_loss_that_is_not_finite_are_told(
    sweep_file: Callable[..., Path], caplog: pytest.LogCaptureFixture
) -> None:
    run = load_sweep(sweep_file(axes={"length": {"s3": ["steps=3"]}}, probes={}))[0]
    do_run(run, on_metrics=lambda _: None)
    path = run.folder / "metrics.jsonl"
    path.write_text(path.read_text() + json.dumps({"event": "validation", "step": 3, "loss": None}) + "\n")
    config = run.folder / "run.yaml"
    config.write_text(re.sub(r"(?m)^steps: 3$", "steps: 9", config.read_text()))
    (row,) = collect([str(run.folder)])
    assert row.curve
    assert row.validation_loss is None
    assert "only 3 of its 9 steps are done" in caplog.text


def test_what_another_process_does_or_has_done_is_left_to_it(sweep_file: Callable[..., Path]) -> None:
    done, left = load_sweep(sweep_file())[:2]
    outcome = _Outcome()
    done.folder.mkdir(parents=True)
    probes = {name: config_to_dict(probe) for name, probe in done.probes.items()}
    (done.folder / "sweep.json").write_text(json.dumps({"probes": probes}))
    write_records(done.config)
    sleeping = [sys.executable, "-c", "import time; time.sleep(60)"]
    with _Children(sleeping, 2, outcome) as children, _Children(sleeping, 1, outcome) as others:
        children.start(done)
        assert (outcome.skipped, children.running) == (1, [])
        children.start(left)
        children.running[0][2].close()  # as where its parent was killed: the run itself still saves
        others.start(left)
        assert (outcome.busy, others.running) == ([left.name], [])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"axes": {"a": {"x": [], "y": []}}}, "x and y are the same run"),
        (
            {"axes": {"a": {"x": [], "x-y": ["steps=6"]}, "b": {"y-z": ["steps=7"], "z": ["steps=8"]}}},
            "the folder 'x-y-z'",
        ),
        ({"axes": {"a": {"../x": []}}}, "'../x' is no part of a folder's name"),
        ({"axes": {"a": {"x": ["out=elsewhere"]}}}, "out=elsewhere: the sweep gives each run its folder"),
        ({"axes": {"a": {"x": ["objective.widht=1"]}}}, "the run x: .*unknown key 'objective.widht'"),
        ({"axes": {}}, "axes must be at least one"),
        ({"leave_out": ["w64-s6"]}, "no run is called 'w64-s6'"),
        ({"run": "other.yaml"}, "other.yaml: no such file"),
        ({"axis": {}}, r"unknown key 'axis'; did you mean 'axes'\? known keys here: run, out, axes"),
    ],
)
def test_a_bad_sweep_is_refused_before_any_run(sweep_file: Callable[..., Path], changes: dict, message: str) -> None:
    path = sweep_file(**changes)
    with pytest.raises(ValueError, match=message):
        load_sweep(path)
    assert not (path.parent / "sweep").exists()


def test_a_plan_names_the_runs_that_would_be_refused_and_writes_nothing(
    sweep_file: Callable[..., Path], tmp_path: Path
) -> None:
    axis = {
        "few": ["mixture.sources.0.fraction=0.02"],  # two of 96 pictures
        "odd": ["objective.width=18", "objective.heads=4"],
        "begun": [f"init_from={tmp_path / 'none'}"],
        "right": ["steps=5"],
    }
    planned = CliRunner().invoke(app, ["sweep", str(sweep_file(axes={"data": axis})), "--dry-run"])
    few, odd, begun, right, last = planned.stdout.splitlines()
    assert re.search(r"refused: source '\w+' has 2 samples for 4 lanes; set lanes to 2", few)
    assert odd.startswith("odd: refused: ")
    assert begun.endswith(f"refused: init_from {tmp_path / 'none'}: no such file or folder")
    assert right.endswith(" FLOPs, to do")
    assert last.startswith("4 runs; to do: ")
    assert str(planned.exception).startswith("3 of 4 runs would be refused; few: source ")
    assert not (tmp_path / "sweep").exists()


@pytest.mark.full
def test_a_killed_sweep_goes_on_and_ends_the_same(sweep_file: Callable[..., Path], tmp_path: Path) -> None:
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    path = str(sweep_file(axes={"width": AXES["width"]}, probes={}))

    def start(out: str) -> "subprocess.Popen[str]":
        command = [*HEADRACE, "sweep", path, f"out={tmp_path / out}", "--json"]
        return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True)

    killed = start("killed")
    lines = tmp_path / "killed" / "w16" / "metrics.jsonl"
    end = time.monotonic() + 120
    while not (lines.exists() and lines.read_text().count('"train"') >= 4):
        assert time.monotonic() < end
        time.sleep(0.02)
    killed.send_signal(signal.SIGKILL)
    killed.communicate()
    # The run itself ends with the sweep: nobody is left at work in the folder.
    again = json.loads(start("killed").communicate(timeout=240)[0])
    while again["busy"]:
        again = json.loads(start("killed").communicate(timeout=240)[0])
    whole = json.loads(start("whole").communicate(timeout=240)[0])
    assert set(whole["finished"]) == {"w16", "w32"}
    assert not again["failed"]
    for name in ("w16", "w32"):
        files = [(tmp_path / out / name / "model.safetensors").read_bytes() for out in ("killed", "whole")]
        assert files[0] == files[1]
    third = json.loads(start("killed").communicate(timeout=240)[0])
    assert (third["skipped"], third["finished"]) == (2, [])


@pytest.mark.full
def test_a_run_that_fails_is_named_and_the_others_are_done(sweep_file: Callable[..., Path], tmp_path: Path) -> None:
    broken = ["mixture.sources.0.url=" + str(tmp_path / "nothing")]
    path = sweep_file(axes={"data": {"gone": broken, "there": ["steps=3"]}}, probes={})
    done = subprocess.run([*HEADRACE, "sweep", str(path)], capture_output=True, text=True, check=False, timeout=240)
    assert done.returncode == 1
    assert "1 of 2 runs failed; gone:" in done.stderr.splitlines()[-1]
    assert (tmp_path / "sweep" / "there" / "sweep.json").exists()
