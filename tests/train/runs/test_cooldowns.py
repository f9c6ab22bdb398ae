"""One run cooled down at several points, by one command: each branch is a run planned with that end from the start."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from headrace.cli.app import app
from headrace.train.config import RunConfig, load_run
from headrace.train.loop import train
from headrace.train.runs.checkpoint import list_checkpoints
from headrace.train.runs.cooldowns import Cooldown, branches, cooled_down
from headrace.train.runs.metrics import read_metrics
from tests.train.parallel.test_strategy import processes

OBJECTIVE = {"kind": "supervised", "num_classes": 3, "patch": 8, "width": 16, "depth": 1, "heads": 2, "vit": {}}
SHORT: dict[str, Any] = {
    "objective": OBJECTIVE | {"pixels": "centred"},
    "optimizer": {"kind": "adafactor", "lr": 0.003},
    "schedule": {"kind": "rsqrt", "warmup_steps": 2, "timescale_steps": 3, "cooldown_steps": 2},
    "steps": 8,
    "validation": None,
    "checkpoint": {"every": 2, "keep": 10},
}


def saved(config: RunConfig) -> bytes:
    newest = list_checkpoints(Path(config.out) / "checkpoints")[-1]
    return b"".join((newest / name).read_bytes() for name in ("model.safetensors", "optimizer.safetensors"))


def steps(config: RunConfig) -> list[tuple[float, ...]]:
    lines = read_metrics(Path(config.out) / "metrics.jsonl")
    return [(line["step"], line["lr"], line["loss"]) for line in lines if line["event"] == "train"]


@pytest.mark.full
def test_every_branch_is_the_run_that_planned_its_end_from_the_start(run_file: Callable[..., Path]) -> None:
    path = run_file(**SHORT)
    trunk = load_run(path)
    train(trunk)
    before, runner = saved(trunk), CliRunner()
    command = ["train", str(path), "--cooldown", "6:3", "--cooldown", "4:2", "--json"]
    first = runner.invoke(app, command)
    assert first.exit_code == 0, first.output
    told = json.loads(first.stdout)["cooldowns"]
    assert [(Path(one["out"]).name, one["step"]) for one in told] == [
        ("run-cooled-00000004", 6),
        ("run-cooled-00000006", 9),
    ]
    for branch, end in zip(branches(trunk, ["4:2", "6:3"]), (6, 9), strict=True):
        # Nothing of a change is in its file: its end and its cooldown are what it was begun with.
        planned = run_file(f"planned-{end}", **SHORT | {"steps": end} | {"schedule": SHORT["schedule"] | {
            "cooldown_steps": {6: 2, 9: 3}[end]}})  # fmt: skip
        whole = load_run(planned)
        train(whole)
        assert steps(branch) == steps(whole)
        assert saved(branch) == saved(whole)
    assert saved(trunk) == before
    times = [path.stat().st_mtime_ns for path in Path(trunk.out).parent.glob("run-cooled-*/model.safetensors")]
    again = runner.invoke(app, command)
    assert json.loads(again.stdout)["cooldowns"] == told
    assert len(times) == 2


def test_a_branch_that_was_killed_goes_on(run_file: Callable[..., Path]) -> None:
    path = run_file(**SHORT)
    trunk = load_run(path)
    train(trunk)
    (branch,) = branches(trunk, ["4:4"])

    def stop(line: dict[str, Any]) -> None:
        if line["step"] == 7:
            raise KeyboardInterrupt  # as hard as a kill

    with pytest.raises(KeyboardInterrupt):
        train(branch, on_metrics=stop)
    assert CliRunner().invoke(app, ["train", str(path), "--cooldown", "4:4"]).exit_code == 0
    whole = load_run(run_file("whole", **SHORT | {"schedule": SHORT["schedule"] | {"cooldown_steps": 4}}))
    train(whole)
    assert saved(branch) == saved(whole)


COOLED = """
import sys
from headrace.cli.app import app
app(sys.argv[1:], standalone_mode=False)
"""


@pytest.mark.full
def test_two_processes_train_several_branches_in_one_command(run_file: Callable[..., Path]) -> None:
    path = run_file(**SHORT)
    trunk = load_run(path)
    train(trunk)
    processes(2, COOLED, "train", str(path), "--cooldown", "4:2", "--cooldown", "6:3")
    for branch, end in zip(branches(trunk, ["4:2", "6:3"]), (6, 9), strict=True):
        assert steps(branch)[-1][0] == end
        assert (Path(branch.out) / "model.safetensors").is_file()


def test_changes_before_the_branch_stay_and_those_behind_it_go(run_file: Callable[..., Path]) -> None:
    changes = {2: {"optimizer.lr": 0.002}, 4: {"clip_grad_norm": 0.5}, 6: {"optimizer.lr": 0.001}}
    branch = cooled_down(load_run(run_file(**SHORT, changes_at=changes)), Cooldown(4, 2))
    assert branch.changes_at == {
        "2": {"optimizer.lr": 0.002},
        "4": {"clip_grad_norm": 0.5, "steps": 6, "schedule.cooldown_steps": 2},
    }


@pytest.mark.parametrize(
    ("given", "texts", "message"),
    [
        ({}, ["7:2"], "--cooldown 7:2: the run's own cooldown has begun at step 6; take a checkpoint of that step"),
        ({}, ["9:2"], "--cooldown 9:2: the run has 8 steps"),
        ({}, ["4"], "--cooldown '4': expected STEP:STEPS, a checkpoint's step and how long to cool down"),
        ({}, ["0:3"], "--cooldown '0:3': expected STEP:STEPS"),
        ({}, ["4:2", "4:3"], "--cooldown: two leave the run at step 4, and would write into one folder"),
        (
            {"schedule": {"kind": "cosine"}},
            ["4:2"],
            "--cooldown 4:2: schedule cosine has no cooldown; rsqrt and constant",
        ),
    ],
)
def test_what_cannot_be_cooled_down_is_one_line(
    run_file: Callable[..., Path], given: dict[str, Any], texts: list[str], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        branches(load_run(run_file(**SHORT | given)), texts)


def test_a_plan_names_each_branch_and_a_checkpoint_that_is_missing(run_file: Callable[..., Path]) -> None:
    path, runner = run_file(**SHORT), CliRunner()
    missing = runner.invoke(app, ["train", str(path), "--cooldown", "3:2", "--dry-run"])
    assert "continue_from" in str(missing.exception)
    train(load_run(path))
    missing = runner.invoke(app, ["train", str(path), "--cooldown", "3:2", "--dry-run"])
    assert "name one of those there, such as 00000002, 00000004, 00000006, 00000008" in str(missing.exception)
    planned = runner.invoke(app, ["train", str(path), "--cooldown", "4:2", "--cooldown", "6:3", "--dry-run"])
    assert planned.exit_code == 0, planned.output
    for step, end in ((4, 6), (6, 9)):
        assert f"run-cooled-{step:08d}: steps: {end} of 16 images" in planned.stdout
        assert f"checkpoints/{step:08d}, {step} steps are done" in planned.stdout
