"""Unhappy runs: what the user sees, and that the run ends with the weights of one that nothing befell.

Each is the command line in processes of its own, alone or two by two.
"""

import json
import random
import shutil
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from headrace.train.runs.checkpoint import list_checkpoints
from headrace.train.runs.metrics import read_metrics

pytestmark = pytest.mark.full

TRAIN = "from headrace.cli.app import main; main()"
# A pause after each line of metrics, and all ranks stand at the step (0-based) HOLD_AT until the file GO is there: what
# is sent to a process finds steps left to do, however late it is sent.
SLOW = f"""
import os, time
from headrace.train.objectives.aim import Aim
from headrace.train.runs.metrics import MetricsFile

write, onward = MetricsFile.write, Aim.forward

def held(self, batch):
    while self.training and int(batch.position[0]) // 16 == int(os.environ["HOLD_AT"]):
        if os.path.exists(os.environ["GO"]):
            break
        time.sleep(0.02)
    return onward(self, batch)

MetricsFile.write = lambda *given: (write(*given), time.sleep(0.15))
Aim.forward = held
{TRAIN}
"""
# Batches whose loss is not a number: steps 7 and 13 (0-based).
SPOILED = """
from headrace.train.objectives.aim import Aim
forward = Aim.forward

def spoiled(self, batch):
    loss, report = forward(self, batch)
    return (loss * float("nan") if self.training and int(batch.position[0]) // 16 in (7, 13) else loss), report

Aim.forward = spoiled
"""
# The disk is full from the second checkpoint on.
FULL = f"""
import errno
from headrace.train.runs import saving
write = saving.write_tensor_file

def failing(path, *given):
    if path.parent.name != ".00000005.tmp":
        path.write_bytes(b"half")
        raise OSError(errno.ENOSPC, "No space left on device")
    return write(path, *given)

saving.write_tensor_file = failing
{TRAIN}
"""
# The rank that HANGS names hangs at step 7 (0-based), while the other comes to exchange gradients, or waits for it.
HANGS = """
import ctypes, os, signal, time
from headrace.torch import DeviceBatches
from headrace.train.objectives.aim import Aim
from headrace.cli.app import main

how, forward, following = os.environ["HANGS"], Aim.forward, DeviceBatches.__next__

def hanging(self, batch):
    if self.training and int(batch.position[0]) // 16 == 7:
        if how == "stopped":
            os.kill(os.getpid(), signal.SIGSTOP)
        elif how == "held":  # nothing of Python runs any more
            ctypes.PyDLL(None).sleep(300)
    return forward(self, batch)

def standing(self):
    if how == "loader" and self.position == 7 * 16:
        time.sleep(300)
    return following(self)

if os.environ["RANK"] == os.environ["HANGING"]:
    Aim.forward, DeviceBatches.__next__ = hanging, standing
main()
"""
STEPS = 20


class Job:
    """A run under way, in one process or several."""

    def __init__(self, out: Path, processes: list[Any], go: Path) -> None:
        self.out, self.processes, self._go = out, processes, go

    def until(self, step: int) -> None:
        """Return when the metrics tell of `step`."""
        while all(process.poll() is None for process in self.processes) and max(steps_of(self.out), default=0) < step:
            time.sleep(0.02)
        assert max(steps_of(self.out), default=0) < STEPS, "no work remained"

    def go(self) -> None:
        """Let those that are held go on."""
        self._go.touch()

    def ends(self, seconds: float = 200.0) -> list[tuple[int, str]]:
        """Return exit code and what was said on stderr, by rank."""
        said = [process.says(seconds) for process in self.processes]
        return [(process.returncode, text) for process, text in zip(self.processes, said, strict=True)]


def steps_of(out: Path) -> list[int]:
    return [line["step"] for line in read_metrics(out / "metrics.jsonl") if line["event"] == "train"]


@pytest.fixture
def start(run_file: Callable[..., Path], job_of: Callable[..., list[Any]], tmp_path: Path) -> Callable[..., Job]:
    """Return a function that starts the same run in a folder of its own, or continues it."""
    path = run_file(steps=STEPS, checkpoint={"every": 5, "keep": 10}, validation=None)

    def begin(name: str, *options: str, program: str = TRAIN, hold_at: int = STEPS, **more: Any) -> Job:
        out, go = tmp_path / name, tmp_path / f"{name}.go"
        go.unlink(missing_ok=True)
        more |= {"HOLD_AT": str(hold_at), "GO": str(go)}
        return Job(out, job_of(program, ["train", str(path), f"out={out}", *options], **more), go)

    return begin


@pytest.fixture(scope="module")
def known() -> dict[tuple[Any, ...], Any]:
    """What undisturbed runs gave, by their options."""
    return {}


@pytest.fixture
def undisturbed(start: Callable[..., Job], known: dict[tuple[Any, ...], Any]) -> Callable[..., Any]:
    """Return a function that gives the result of a run that nothing befalls."""

    def whole(*options: str, ranks: int = 1, program: str = TRAIN) -> Any:
        key = (*options, ranks, program)
        if key not in known:
            known[key] = result(start("whole", *options, ranks=ranks, program=program))
        return known[key]

    return whole


def result(job: Job) -> tuple[list[dict[str, Any]], bytes]:
    """The lines of a finished run without what time decides, and its last weights and moments."""
    ended = job.ends()
    assert [code for code, _ in ended] == [0] * len(ended), ended
    kept = ("event", "step", "loss", "lr", "grad_norm", "batch_digest", "positions")
    lines = [{name: line.get(name) for name in kept} for line in read_metrics(job.out / "metrics.jsonl")]
    newest = list_checkpoints(job.out / "checkpoints")[-1]
    assert newest.name == f"{STEPS:08d}"
    return lines, b"".join((newest / name).read_bytes() for name in ("model.safetensors", "optimizer.safetensors"))


def last_line(text: str) -> str:
    return [line for line in text.splitlines() if line][-1]


def test_kill_nine_at_random_steps_over_skipped_steps_and_a_change(
    start: Callable[..., Job], undisturbed: Callable[..., Any]
) -> None:
    options = ("on_non_finite=skip", "changes_at.10.optimizer.lr=0.0005")
    whole = undisturbed(*options, program=SPOILED + TRAIN)
    assert [line["step"] for line in whole[0] if line["event"] == "skipped"] == [8, 14]
    rng = random.Random(5)
    for step in (3, 9, 12, 16):
        job = start("killed", *options, program=SPOILED + SLOW, hold_at=step + 2)
        job.until(step)
        time.sleep(rng.uniform(0, 0.3))
        job.processes[0].send_signal(signal.SIGKILL)
        assert job.ends()[0][0] == -signal.SIGKILL
    # The cause of the bad steps is gone, and they stay skipped if they were before the kill.
    assert result(start("killed", *options)) == whole


def test_a_signal_to_one_rank_saves_and_ends_all(
    start: Callable[..., Job], undisturbed: Callable[..., Any], tmp_path: Path
) -> None:
    whole = undisturbed(ranks=2)
    for number in (signal.SIGTERM, signal.SIGUSR1):
        step = max(steps_of(tmp_path / "stopped"), default=0) + 3
        job = start("stopped", ranks=2, program=SLOW, hold_at=step)
        job.until(step)
        job.processes[1].send_signal(number)
        job.go()
        ended = job.ends()
        assert [code for code, _ in ended] == [128 + number] * 2, ended
        assert all("Traceback" not in text for _, text in ended)
        saved = int(list_checkpoints(job.out / "checkpoints")[-1].name)
        assert saved == max(steps_of(job.out))
    assert result(start("stopped", ranks=2)) == whole


@pytest.mark.parametrize("lost", [0, 1])
def test_a_rank_that_hangs_ends_the_run_in_the_stated_time_and_is_named(
    start: Callable[..., Job], undisturbed: Callable[..., Any], lost: int
) -> None:
    whole = undisturbed(ranks=2)
    job = start("hung", "timeout_seconds=8", ranks=2, program=SLOW, hold_at=6)
    job.until(6)
    job.processes[lost].send_signal(signal.SIGSTOP)
    job.go()
    said = job.processes[1 - lost].says(90)
    assert job.processes[1 - lost].returncode == 1
    assert f"rank {lost} did not come" in last_line(said), said
    assert last_line(said).startswith(f"headrace: rank {1 - lost} of 2 has "), said
    assert "Traceback" not in said
    job.processes[lost].send_signal(signal.SIGKILL)
    job.processes[lost].says(90)
    assert result(start("hung", ranks=2)) == whole


@pytest.mark.parametrize(
    ("how", "hanging", "named"),
    [
        ("stopped", 0, "rank 0 does not answer"),
        ("stopped", 1, "rank 1 does not answer"),
        ("held", 1, "rank 1 does not answer"),
        ("loader", 1, "held up by rank 1 in data of step 8 at <string>:"),
    ],
)
def test_a_rank_that_hangs_in_a_step_ends_the_run_in_the_stated_time_and_is_named(
    start: Callable[..., Job], undisturbed: Callable[..., Any], how: str, hanging: int, named: str
) -> None:
    whole = undisturbed(ranks=2)
    # A thread that says where the rank is may stand for a third of it before the rank counts as silent.
    seconds = 15 if how == "loader" else 6
    options = (f"hang_seconds={seconds}", "mixture.read_patience_seconds=0", "mixture.read_timeout_seconds=1")
    job = start("hung", *options, ranks=2, program=HANGS, HANGS=how, HANGING=str(hanging))
    job.until(7)
    other, lost = job.processes[1 - hanging], job.processes[hanging]
    said = other.says(90)  # what hangs does so for longer
    assert other.returncode == 1
    assert f"rank {1 - hanging} of 2: the run has stood still for" in last_line(said), said
    assert f"hang_seconds is {seconds}: {named}" in last_line(said), said
    assert "Traceback" not in said
    if how != "loader":  # which ends by itself
        lost.send_signal(signal.SIGKILL)
    own = lost.says(90)
    if how == "held":
        assert "in hanging" in own, own  # its stacks, by a thread of C
    if how == "loader":
        assert lost.returncode == 1
        (dump,) = job.out.glob("hang-*")
        assert dump.name == "hang-00000007-rank1.txt"
        assert "in standing" in dump.read_text()
        assert str(dump) in own
    assert [path.name for path in list_checkpoints(job.out / "checkpoints")] == ["00000005"]
    assert result(start("hung", ranks=2)) == whole


@pytest.mark.parametrize("lost", [0, 1])
def test_a_rank_that_is_killed_ends_the_others_in_one_line(
    start: Callable[..., Job], undisturbed: Callable[..., Any], lost: int
) -> None:
    whole = undisturbed(ranks=2)
    job = start("lost", ranks=2, program=SLOW, hold_at=7)
    job.until(7)
    job.processes[lost].send_signal(signal.SIGKILL)
    job.go()
    code, text = job.ends()[1 - lost]
    assert code == 1
    assert "has lost the others" in last_line(text), text
    assert "Traceback" not in text
    assert result(start("lost", ranks=2)) == whole


def test_a_full_disk_is_one_line_on_each_rank_and_costs_one_save(
    start: Callable[..., Job], undisturbed: Callable[..., Any]
) -> None:
    whole = undisturbed(ranks=2)
    job = start("full", ranks=2, program=FULL)
    ended = job.ends()
    assert [code for code, _ in ended] == [1, 1]
    for _, text in ended:
        assert "00000010 could not be written" in last_line(text), text
        assert "make room" in last_line(text)
        assert "Traceback" not in text
    assert [path.name for path in (job.out / "checkpoints").iterdir()] == ["00000005"]
    assert result(start("full", ranks=2)) == whole


def test_a_full_disk_may_be_passed(start: Callable[..., Job], undisturbed: Callable[..., Any]) -> None:
    whole = undisturbed(ranks=2)
    program = FULL.replace('!= ".00000005.tmp"', 'in (".00000005.tmp", ".00000010.tmp")')
    job = start("full", "checkpoint.on_full_disk=keep_training", ranks=2, program=program)
    assert result(job) == whole
    assert [path.name for path in list_checkpoints(job.out / "checkpoints")] == ["00000015", "00000020"]


def test_a_vanished_validation_set_costs_nothing_that_was_trained(
    start: Callable[..., Job], undisturbed: Callable[..., Any], other_pictures: str, tmp_path: Path
) -> None:
    held_out = tmp_path / "held-out"
    shutil.copytree(other_pictures, held_out)
    options = (f"validation={{dataset: {held_out}, every: 10}}",)
    whole = undisturbed(*options)
    job = start("run", *options, program=SLOW, hold_at=6)
    job.until(6)
    held_out.rename(tmp_path / "gone")
    job.go()
    ((code, text),) = job.ends()
    assert code == 1
    assert "held-out" in last_line(text), text
    assert "Traceback" not in text
    assert list_checkpoints(job.out / "checkpoints")[-1].name == "00000010"
    ((code, text),) = start("run", *options).ends()
    assert code == 1
    assert last_line(text).startswith("headrace: validation.dataset: "), text
    (tmp_path / "gone").rename(held_out)
    assert result(start("run", *options)) == whole


def test_damaged_checkpoints_are_named_and_the_one_before_is_taken(start: Callable[..., Job]) -> None:
    job = start("run")
    whole = result(job)
    folder = job.out / "checkpoints"
    damages: list[Callable[[Path], object]] = [
        lambda path: (path / "model.safetensors").write_bytes(b"nothing"),
        lambda path: (path / "optimizer.safetensors").unlink(),
        lambda path: (path / "state.json").write_text('{"version": 1'),
    ]
    for damage, name in zip(damages, ("00000020", "00000015", "00000010"), strict=True):
        damage(folder / name)
    job = start("run")
    assert result(job) == whole
    for path in folder.iterdir():
        (path / "model.safetensors").write_bytes(b"nothing")
    ((code, text),) = start("run").ends()
    assert code == 1
    assert "checkpoints are damaged" in last_line(text), text


def test_a_bad_step_stops_or_is_skipped_on_all_ranks(
    start: Callable[..., Job], undisturbed: Callable[..., Any]
) -> None:
    job = start("run", ranks=2, program=SPOILED + TRAIN)
    ended = job.ends()
    assert [code for code, _ in ended] == [1, 1]
    for _, text in ended:
        assert "step 7: loss nan" in last_line(text), text
        assert "the run is saved at step 7" in last_line(text)
    skip = result(start("run", "on_non_finite=skip", ranks=2, program=SPOILED + TRAIN))
    assert skip == undisturbed("on_non_finite=skip", ranks=2, program=SPOILED + TRAIN)
    journal = [json.loads(line) for line in (job.out / "skipped.jsonl").read_text().splitlines()]
    assert [(line["step"], len(line["samples"])) for line in journal] == [(8, 16), (14, 16)]


def test_the_folder_of_another_run_is_left_as_it_is(start: Callable[..., Job]) -> None:
    job = start("run", "steps=6")
    assert job.ends()[0][0] == 0
    before = {path: path.stat().st_mtime_ns for path in sorted(job.out.rglob("*"))}
    for option in ("seed=4", "optimizer.lr=0.5", "global_batch=8", "mixture.seed=9", "objective.depth=1"):
        ((code, text),) = start("run", "steps=6", option).ends()
        assert code == 1
        assert " was " in last_line(text), text
        assert "Traceback" not in text
    assert {path: path.stat().st_mtime_ns for path in sorted(job.out.rglob("*"))} == before
