"""A branch is what a run with its config would be that had done all its steps itself."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from headrace.pipeline.seen import read_record
from headrace.train.config import RunConfig, load_run
from headrace.train.loop import train
from headrace.train.runs.checkpoint import list_checkpoints
from headrace.train.runs.metrics import read_metrics
from headrace.train.runs.plan import plan_run

KEPT = ("event", "step", "loss", "lr", "grad_norm", "batch_digest", "changes")
OPEN_ENDED = {"kind": "constant", "warmup_steps": 2}


def lines(config: RunConfig) -> list[dict[str, Any]]:
    read = read_metrics(Path(config.out) / "metrics.jsonl")
    return [{name: line[name] for name in KEPT if name in line} for line in read]


def weights(config: RunConfig) -> bytes:
    newest = list_checkpoints(Path(config.out) / "checkpoints")[-1]
    return b"".join((newest / name).read_bytes() for name in ("model.safetensors", "optimizer.safetensors"))


def cooled(at: int, steps: int) -> dict[str, Any]:
    return {"changes_at": {at: {"steps": at + steps, "schedule.cooldown_steps": steps}}}


def test_one_run_is_cooled_down_at_several_points(run_file: Callable[..., Path]) -> None:
    """Each is, to the last bit, the run that planned its cooldown from the start."""
    trunk = load_run(run_file("trunk", steps=12, schedule=OPEN_ENDED))
    train(trunk)
    before = weights(trunk)
    for at in (3, 6):
        checkpoint = f"{trunk.out}/checkpoints/{at:08d}"
        branch = load_run(
            run_file(f"branch-{at}", steps=12, schedule=OPEN_ENDED, continue_from=checkpoint, **cooled(at, 4))
        )
        planned = load_run(run_file(f"planned-{at}", steps=12, schedule=OPEN_ENDED, **cooled(at, 4)))
        assert train(branch).step == train(planned).step == at + 4
        assert lines(branch) == lines(planned)
        assert weights(branch) == weights(planned)
        records = [read_record(Path(config.out) / "samples.jsonl") for config in (branch, planned)]
        assert [digest for line in records[0] for digest in line["digests"]] == [
            digest for line in records[1] for digest in line["digests"]
        ]
        rates = [line["lr"] for line in lines(branch) if line["event"] == "train"][at:]
        assert rates == pytest.approx([1e-3, 1e-3 * 0.5, 1e-3 * (1 - 0.5**0.5), 1e-3 * (1 - 0.75**0.5)])
    assert weights(trunk) == before


def test_a_branch_tells_of_its_own_change_at_the_step_of_a_change_of_its_parent(run_file: Callable[..., Path]) -> None:
    changes = {3: {"steps": 5, "optimizer.lr": 0.5}}
    trunk = load_run(run_file("trunk", steps=6, schedule=OPEN_ENDED, changes_at={3: {"clip_grad_norm": 0.5}}))
    train(trunk)
    branch = load_run(
        run_file(
            "branch",
            steps=6,
            schedule=OPEN_ENDED,
            changes_at=changes,
            continue_from=f"{trunk.out}/checkpoints/00000003",
        )
    )
    planned = load_run(run_file("planned", steps=6, schedule=OPEN_ENDED, changes_at=changes))
    train(branch)
    train(planned)
    assert lines(branch) == lines(planned)


def test_a_branch_killed_before_its_first_checkpoint_begins_again(run_file: Callable[..., Path]) -> None:
    trunk = load_run(run_file("trunk", steps=6))
    train(trunk)
    branch = load_run(run_file("branch", steps=6, continue_from=f"{trunk.out}/checkpoints/00000003"))

    def stop(line: dict[str, Any]) -> None:
        if line["step"] == 5:
            raise KeyboardInterrupt  # as hard as a kill

    with pytest.raises(KeyboardInterrupt):
        train(branch, on_metrics=stop)
    assert list_checkpoints(Path(branch.out) / "checkpoints") == []
    train(branch)
    assert lines(branch) == lines(trunk)
    assert weights(branch) == weights(trunk)


def test_a_branch_with_a_checkpoint_of_its_own_needs_the_other_no_more(run_file: Callable[..., Path]) -> None:
    trunk = load_run(run_file("trunk", steps=3))
    train(trunk)
    given = {"continue_from": f"{trunk.out}/checkpoints/00000003", "changes_at": {3: {"steps": 6}}}
    train(load_run(run_file("branch", steps=3, **given)))
    shutil.rmtree(trunk.out)
    longer = load_run(run_file("branch", steps=3, **{**given, "changes_at": {3: {"steps": 6}, 6: {"steps": 8}}}))
    assert not any(line.startswith("continue_from") for line in plan_run(longer))
    assert train(longer).step == 8


def test_a_branch_skips_the_steps_again_that_its_parent_skipped(run_file: Callable[..., Path]) -> None:
    trunk = load_run(run_file("trunk", steps=6, on_spike="skip", spike={"window": 2, "z": 0.01}))
    train(trunk)
    state = json.loads(Path(f"{trunk.out}/checkpoints/00000003/state.json").read_text())
    assert [line for line in lines(trunk) if line["event"] == "skipped"], "the window is so narrow that steps are"
    branch = load_run(
        run_file(
            "branch",
            steps=6,
            on_spike="skip",
            spike={"window": 2, "z": 0.01},
            continue_from=f"{trunk.out}/checkpoints/00000003",
        )
    )
    train(branch)
    assert state["step"] == 3
    assert weights(branch) == weights(trunk)
    assert lines(branch) == lines(trunk)


def test_a_branch_that_would_rewrite_the_past_is_refused(run_file: Callable[..., Path], tmp_path: Path) -> None:
    trunk = load_run(run_file("trunk", steps=6))
    train(trunk)
    checkpoint = f"{trunk.out}/checkpoints/00000003"
    for changes, message in (
        ({"seed": 4}, r"00000003 was written by another config: seed: was 3, is 4"),
        ({"optimizer": {"lr": 0.5}}, r"optimizer\.lr: was 0\.001, is 0\.5; .*changes_at: \{3: \{optimizer\.lr:"),
        ({"changes_at": {2: {"optimizer.lr": 0.5}}}, r"changes_at\.2: was None.*and 3 steps are done"),
    ):
        wrong = load_run(run_file("branch", continue_from=checkpoint, **{"steps": 6, **changes}))
        with pytest.raises(ValueError, match=message):
            train(wrong)
        with pytest.raises(ValueError, match=message):
            plan_run(wrong)
        assert not Path(wrong.out).exists()
    with pytest.raises(ValueError, match=r"continue_from .*00000003 is a checkpoint of `out` itself; choose another"):
        load_run(run_file("trunk", steps=6, continue_from=checkpoint))
    for path, message in (
        (trunk.out, r"expected the folder of one checkpoint .*such as 00000003, 00000006"),
        (f"{trunk.out}/checkpoints", "such as 00000003, 00000006"),
        (str(tmp_path / "nothing"), r"expected the folder of one checkpoint \(RUN/checkpoints/STEP\)$"),
    ):
        with pytest.raises(ValueError, match=message):
            train(load_run(run_file("branch", steps=6, continue_from=path)))
    damaged = Path(checkpoint) / "model.safetensors"
    damaged.write_bytes(damaged.read_bytes()[:-1] + b"x")
    with pytest.raises(ValueError, match=r"model\.safetensors: damaged checkpoint"):
        train(load_run(run_file("branch", steps=6, continue_from=checkpoint)))


def test_the_plan_tells_where_a_branch_begins(run_file: Callable[..., Path]) -> None:
    trunk = load_run(run_file("trunk", steps=6, schedule=OPEN_ENDED))
    train(trunk)
    checkpoint = f"{trunk.out}/checkpoints/00000003"
    plan = plan_run(
        load_run(run_file("branch", steps=6, schedule=OPEN_ENDED, continue_from=checkpoint, **cooled(3, 9)))
    )
    assert f"continue_from: {checkpoint}, 3 steps are done" in plan
    assert "learning rate: constant, 0 at 0, 0.001 at 3, 0.000423 at 6, 0.000184 at 9, 5.72e-05 at 11" in plan
    assert not any("jumps" in line for line in plan)
    late = load_run(run_file("late", steps=12, schedule=OPEN_ENDED, changes_at={6: {"schedule.cooldown_steps": 8}}))
    assert "at step 6: the learning rate jumps, 0.001 -> 0.0005" in plan_run(late)
