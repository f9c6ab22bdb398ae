"""Several processes compute what one does."""

import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
import yaml
from safetensors import safe_open

from headrace.train.config import RunConfig, load_run
from headrace.train.objectives.build import build_objective
from headrace.train.parallel.ranks import join_ranks
from headrace.train.runs.metrics import read_metrics
from headrace.train.state import open_state
from headrace.train.step import take_step
from tests.ports import free_port

# What each process runs: one step, but instead of moving the weights it writes the gradients.
GRADIENTS = """
import sys
from pathlib import Path
from safetensors.torch import save_file
from headrace.train.config import load_run
from headrace.train.step import take_step
from headrace.train.objectives.build import build_objective
from headrace.train.parallel.ranks import join_ranks
from headrace.train.state import open_state

config = load_run(sys.argv[1], sys.argv[3:])
with join_ranks("cpu") as ranks, open_state(config, ranks) as state:
    kept = {}
    def keep():
        kept.update({name: p.grad.clone() for name, p in state.objective.named_parameters()})
    state.optimizer.step = keep
    step = take_step(config, state, next(state.stream), ranks=ranks, stopping=False)
    save_file(kept, f"{sys.argv[2]}-{ranks.rank}", metadata={"loss": repr(step.loss)})
"""
# Rank 1 spoils its third loss: both ranks must stop, before either moves its weights.
SPOILED = """
import os, sys
from headrace.train.config import load_run
from headrace.train.loop import train
from headrace.train.objectives.aim import Aim
from headrace.train.runs.folder import NonFiniteError

forward, calls = Aim.forward, []

def spoiled(self, batch):
    loss, report = forward(self, batch)
    calls.append(batch)
    return (loss * float("inf") if len(calls) == 3 and os.environ["RANK"] == "1" else loss), report

Aim.forward = spoiled
try:
    train(load_run(sys.argv[1]))
except NonFiniteError as error:
    assert "step 2:" in str(error), error
else:
    sys.exit("this rank went on")
"""
# A tensor in two halves on two ranks: rank 0 gets it whole, rank 1 helps and keeps nothing.
GATHER = """
import torch
from torch.distributed.tensor import Shard, distribute_tensor, init_device_mesh
from headrace.train.parallel.ranks import join_ranks
from headrace.train.runs.tensors import host_tensors

with join_ranks("cpu") as ranks:
    mesh = init_device_mesh("cpu", (2,))
    whole = torch.arange(12.0).reshape(6, 2)
    halves = distribute_tensor(whole, mesh, [Shard(0)])
    assert halves.to_local().shape == (3, 2)
    kept = host_tensors({"a": halves, "b": whole}, keep=ranks.is_first)
    assert set(kept) == ({"a", "b"} if ranks.is_first else set()), kept
    assert all(torch.equal(tensor, whole) for tensor in kept.values())
"""
# Rank 0 cannot write: both ranks say so and leave together.
UNWRITTEN = """
import sys
from headrace.train.parallel.ranks import join_ranks

with join_ranks("cpu") as ranks:
    try:
        with ranks.first_writes("the checkpoint") as writes:
            if writes:
                raise OSError("no space")
    except OSError as error:
        assert str(error) == ("no space" if ranks.is_first else "rank 1: rank 0 could not write the checkpoint"), error
    else:
        sys.exit("this rank went on")
    ranks.wait()
"""
# Rank 1 does not come to the second sum before rank 0 is gone, which says so and leaves by its timeout or by a signal.
HANGING = """
import logging, os, signal, sys, threading, time
from pathlib import Path
from headrace.train.parallel import ranks as module
from headrace.train.parallel.ranks import RankError, join_ranks
from headrace.train.parallel.signals import watch_signals

logging.basicConfig(level=logging.WARNING)
module.FIRST_WARNING_SECONDS, module.GRACE_SECONDS, module.SLICE_SECONDS = 1.0, 2.0, 0.2
signalled, left = sys.argv[1] == "signal", Path(sys.argv[2])
with join_ranks("cpu", timeout_seconds=200.0) as ranks, watch_signals(ranks.stop):
    assert ranks.sum([ranks.rank + 1.0]) == [3.0]
    if ranks.rank == 1:
        while not left.exists():
            time.sleep(0.05)
        os._exit(0)
    if signalled:
        threading.Timer(0.5, os.kill, (os.getpid(), signal.SIGTERM)).start()
    else:
        object.__setattr__(ranks, "timeout_seconds", 3.0)  # not before: one may start much later than the other
    try:
        ranks.sum([1.0], "step 7")
    except RankError as error:
        print(error, file=sys.stderr)
        assert error.signal_number == (signal.SIGTERM if signalled else 0), error.signal_number
        left.touch()  # until then the other rank stands: it was not waited for
        os._exit(0)
"""
# Rank 1 is gone: rank 0 says that in one line, not in a traceback of C++.
GONE = """
import os, sys
from headrace.train.parallel.ranks import RankError, join_ranks

try:
    with join_ranks("cpu") as ranks:
        ranks.wait()
        if ranks.rank == 1:
            os._exit(0)
        ranks.wait("step 7")
except RankError as error:
    assert "rank 0 of 2 has lost the others: " in str(error), error
    assert str(error).endswith("; the rank that failed says why"), error
    assert "\\n" not in str(error)
    os._exit(0)
sys.exit("rank 0 went on")
"""
TRAIN = "from headrace.cli.app import main; main()"
# A pause after each step, and none goes on behind step HOLD_AT: a kill that a busy machine delivers late still finds
# steps left to do.
SLOW_TRAIN = f"""
import os, time
from headrace.train.runs.metrics import MetricsFile
write = MetricsFile.write

def slowly(file, line):
    write(file, line)
    time.sleep(0.2 if line["step"] < int(os.environ["HOLD_AT"]) else 1000)

MetricsFile.write = slowly
{TRAIN}
"""


JOINING = """
from headrace.train.parallel.ranks import join_ranks
for number in range(8):
    with join_ranks("cpu") as ranks:
        assert ranks.sum([ranks.rank + number])[0] == 1 + 2 * number
"""
# One thread and two round differently: what is compared bit for bit must have the same number.
ENVIRONMENT = {"OMP_NUM_THREADS": "1", "PATH": "/usr/bin:/bin", "PYTHONPATH": os.environ.get("PYTHONPATH", "")}


def torchrun(processes: int, program: str, *arguments: str) -> None:
    """Run `program` in that many processes on a free port; one runs without torchrun."""
    command = [sys.executable, "-c", program, *arguments]
    if processes > 1:
        launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"]
        command = [*launcher, "--no-python", *command]
    done = subprocess.run(command, capture_output=True, text=True, timeout=240, check=False, env=ENVIRONMENT)
    assert done.returncode == 0, done.stderr[-3000:]


def two_processes(program: str, *arguments: str) -> list[str]:
    """Run `program` twice with the variables that torchrun would set, and return what each said on stderr."""
    meeting = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port()), "WORLD_SIZE": "2"}
    ranks = [{"RANK": str(rank), "LOCAL_RANK": str(rank)} for rank in range(2)]
    command = [sys.executable, "-W", "error::FutureWarning", "-c", program, *arguments]
    processes = [
        subprocess.Popen(command, env={**ENVIRONMENT, **meeting, **rank}, stderr=subprocess.PIPE, text=True)
        for rank in ranks
    ]
    errors = [process.communicate(timeout=240)[1] for process in processes]
    assert [process.returncode for process in processes] == [0, 0], errors
    return errors


SUPERVISED = {"kind": "supervised", "num_classes": 3, "patch": 4, "width": 16, "depth": 1, "heads": 2}


@pytest.mark.parametrize("kind", ["aim", "supervised"])
def test_two_processes_have_the_gradients_of_one(
    run_file: Callable[..., Path], tmp_path: Path, write_dataset: Callable[..., str], kind: str
) -> None:
    """Each rank has 8 of the 16 images, in micro-batches of 3, 3 and 2; of the supervised ones two thirds count."""

    def change(number: int, columns: dict[str, object]) -> dict[str, object]:
        return columns | ({"label": None} if number % 3 == 0 else {})

    path = run_file(validation=None)
    if kind == "supervised":
        path = run_file(validation=None, objective=SUPERVISED)
        data = yaml.safe_load(path.read_text())
        data["mixture"]["sources"][0]["url"] = write_dataset(tmp_path / "labels", samples=96, change=change)
        path.write_text(yaml.safe_dump(data))
    two_processes(GRADIENTS, str(path), str(tmp_path / "two"), "images_per_micro_batch=3")
    loss, whole = gradients_here(load_run(path))
    assert len(whole) == len(list(parameters_of(path)))
    for rank in range(2):
        with safe_open(tmp_path / f"two-{rank}", "pt") as file:
            assert float(file.metadata()["loss"]) == pytest.approx(loss, abs=1e-6)
            assert set(file.keys()) == set(whole)
            for name, gradient in whole.items():
                torch.testing.assert_close(file.get_tensor(name), gradient, atol=1e-6, rtol=1e-5)


def parameters_of(path: Path) -> Iterator[torch.nn.Parameter]:
    config = load_run(path)
    return build_objective(config.objective, image_size=config.mixture.image_size, seed=0).parameters()


def gradients_here(config: RunConfig) -> tuple[float, dict[str, torch.Tensor]]:
    """The same step in this process alone, as one batch of 16."""
    kept: dict[str, torch.Tensor] = {}
    with join_ranks("cpu") as ranks, open_state(config, ranks) as state:

        def keep() -> None:
            kept.update({name: p.grad.clone() for name, p in state.objective.named_parameters() if p.grad is not None})

        state.optimizer.step = keep  # type: ignore[assignment,method-assign]
        step = take_step(config, state, next(state.stream), ranks=ranks, stopping=False)
    return step.loss, kept


def runs(path: Path, tmp_path: Path, *processes: int) -> dict[int, list[dict[str, object]]]:
    found = {}
    for number in processes:
        out = tmp_path / f"with-{number}"
        torchrun(number, TRAIN, "train", str(path), f"out={out}")
        found[number] = read_metrics(out / "metrics.jsonl")
    return found


@pytest.mark.full
def test_one_two_and_four_processes_see_the_same_global_batches(run_file: Callable[..., Path], tmp_path: Path) -> None:
    found = runs(run_file(), tmp_path, 1, 2, 4)
    digests = {number: [line.get("batch_digest") for line in lines] for number, lines in found.items()}
    assert len(set(digests[1])) == 13  # twelve different batches, and None for validations
    assert digests[1] == digests[2] == digests[4]
    for number in (2, 4):
        for one, other in zip(found[1], found[number], strict=True):
            assert (one["event"], one["step"]) == (other["event"], other["step"])
            assert one["loss"] == pytest.approx(other["loss"], rel=1e-5)


@pytest.mark.full
def test_a_run_of_two_processes_goes_on_with_one_and_with_two(run_file: Callable[..., Path], tmp_path: Path) -> None:
    path = run_file()
    (whole,) = runs(path, tmp_path, 2).values()
    for processes, name in ((2, "again"), (1, "alone")):
        out = tmp_path / name
        shutil.copytree(tmp_path / "with-2", out)
        for step in (9, 12):
            shutil.rmtree(out / "checkpoints" / f"{step:08d}")
        torchrun(processes, TRAIN, "train", str(path), f"out={out}")
        lines = read_metrics(out / "metrics.jsonl")
        losses = [[line["loss"] for line in part] for part in (lines, whole)]
        if processes == 2:
            assert losses[0] == losses[1]
        else:
            assert losses[0] == pytest.approx(losses[1], rel=1e-5)


@pytest.mark.full
def test_a_bad_loss_on_one_rank_stops_all_of_them(run_file: Callable[..., Path], tmp_path: Path) -> None:
    two_processes(SPOILED, str(run_file(validation=None, checkpoint={"every": 1})))
    names = sorted(path.name for path in (tmp_path / "run").glob("nonfinite-*"))
    assert names == ["nonfinite-00000002-rank0.json", "nonfinite-00000002-rank1.json"]
    positions = [json.loads((tmp_path / "run" / name).read_text())["position"] for name in names]
    assert sorted(positions[0] + positions[1]) == list(range(32, 48))
    assert sorted(path.name for path in (tmp_path / "run" / "checkpoints").iterdir()) == ["00000001", "00000002"]


@pytest.mark.full
@pytest.mark.parametrize("program", [GATHER, UNWRITTEN], ids=["gather", "unwritten"])
def test_ranks_save_together(program: str) -> None:
    two_processes(program)


@pytest.mark.parametrize("how", ["signal", "timeout"])
def test_a_rank_that_waits_for_a_lost_one_says_so_and_leaves(how: str, tmp_path: Path) -> None:
    text, _ = two_processes(HANGING, how, str(tmp_path / "left"))
    assert "WARNING" in text
    assert re.search(r"rank 0 of 2 has waited \d+ s for the others in step 7; a rank that says nothing like this", text)
    assert "is the one that hangs: rank 1 did not come" in text.splitlines()[-1]
    end = {"signal": "SIGTERM asked it to stop: it leaves without saving", "timeout": "timeout_seconds is 3;"}
    assert end[how] in text.splitlines()[-1]


def test_who_joins_again_and_again_meets_the_others_each_time() -> None:
    """The library's own keys of the first time made one wait for ever, now and then."""
    torchrun(2, JOINING)


def test_a_rank_that_lost_the_others_says_so_in_one_line() -> None:
    two_processes(GONE)


@pytest.mark.full
def test_a_world_size_that_does_not_fit_is_refused_by_name(run_file: Callable[..., Path]) -> None:
    with pytest.raises(AssertionError, match="lanes"):
        torchrun(3, TRAIN, "train", str(run_file()))


@pytest.mark.full
def test_kill_nine_at_random_moments_changes_no_loss(run_file: Callable[..., Path], tmp_path: Path) -> None:
    """Killed again and again until it gets through; each kill came while steps remained."""
    path = run_file(steps=60, checkpoint={"every": 4, "keep": 2})
    (whole,) = runs(path, tmp_path, 1).values()
    out, rng, kills = tmp_path / "killed", random.Random(11), 0
    while True:
        command = [sys.executable, "-c", SLOW_TRAIN if kills < 5 else TRAIN, "train", str(path), f"out={out}"]
        before = max(_steps(out), default=0)
        held = {**ENVIRONMENT, "HOLD_AT": str(before + 9)}
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=held)
        if kills == 5:
            break
        while max(_steps(out), default=0) <= before:
            assert process.poll() is None, "it ended before it was killed"
            time.sleep(0.01)  # a kill before the first step would prove nothing
        time.sleep(rng.uniform(0, 0.4))
        process.send_signal(signal.SIGKILL)
        process.wait()
        assert max(_steps(out)) < 60, "no work remained at the kill"
        kills += 1
    assert process.wait(timeout=200) == 0
    kept = ("event", "step", "loss", "grad_norm", "batch_digest")
    assert [[line.get(name) for name in kept] for line in read_metrics(out / "metrics.jsonl")] == [
        [line.get(name) for name in kept] for line in whole
    ]
    names = ("model.safetensors", "optimizer.safetensors")
    for name in names:
        last = Path("checkpoints") / "00000060" / name
        assert (out / last).read_bytes() == (tmp_path / "with-1" / last).read_bytes()


def _steps(out: Path) -> list[int]:
    return [int(line["step"]) for line in read_metrics(out / "metrics.jsonl")]
