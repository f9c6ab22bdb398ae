"""A checkpoint that a thread writes is the one that waiting would have written, whatever happens meanwhile."""

import errno
import functools
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import distributed, nn

from headrace.train import boundary
from headrace.train.config import RunConfig, load_run
from headrace.train.loop import train
from headrace.train.parallel.layout import ALL_OF_IT
from headrace.train.parallel.presence import Presence
from headrace.train.parallel.ranks import ALONE, Ranks
from headrace.train.runs import background, saving, staging
from headrace.train.runs.background import BackgroundSaver
from headrace.train.runs.checkpoint import list_checkpoints, load_checkpoint, newest_checkpoint
from headrace.train.runs.loading import read_tensors
from headrace.train.runs.metrics import read_metrics
from headrace.train.runs.saving import Save, contents_of
from headrace.train.runs.staging import Arena, flat_bytes
from headrace.train.runs.state_file import Progress

BACKGROUND = "checkpoint.asynchronous=true"


class Gate:
    """Lets threads write their part when it is opened."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.open, self.error = threading.Event(), None
        write = Save.write_part

        def waiting(save: Save, *given: Any) -> None:
            self.open.wait(60)
            if self.error is not None:
                raise self.error
            write(save, *given)

        monkeypatch.setattr(Save, "write_part", waiting)


@pytest.fixture
def gate(monkeypatch: pytest.MonkeyPatch) -> Gate:
    return Gate(monkeypatch)


@pytest.fixture
def config(run_file: Callable[..., Path]) -> RunConfig:
    return load_run(run_file())


@pytest.fixture
def model() -> tuple[nn.Module, torch.optim.AdamW]:
    torch.manual_seed(0)
    module = nn.Sequential(nn.Linear(30, 40), nn.BatchNorm1d(40), nn.Linear(40, 2))
    optimizer = torch.optim.AdamW(module.parameters(), lr=0.1)
    step(module, optimizer)
    return module, optimizer


def step(module: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    module(torch.randn(5, 30)).square().sum().backward()
    optimizer.step()
    optimizer.zero_grad()


@pytest.fixture
def saver(tmp_path: Path, model: tuple[nn.Module, torch.optim.AdamW]) -> Iterator[BackgroundSaver]:
    made = BackgroundSaver(tmp_path / "c", *model, ranks=ALONE, layout=ALL_OF_IT)
    yield made
    made.close()


def test_what_is_written_is_the_step_at_which_it_was_asked_for(
    saver: BackgroundSaver, model: tuple[nn.Module, torch.optim.AdamW], config: RunConfig, gate: Gate, tmp_path: Path
) -> None:
    before = {name: tensor.clone() for name, tensor in model[0].state_dict().items()}
    moments = {name: piece.local.clone() for name, piece in contents_of(*model, ALL_OF_IT)["optimizer"].items()}
    saver.save(progress=Progress(step=1, stream={}), config=config)
    step(*model)
    assert not saver.poll()
    assert list_checkpoints(tmp_path / "c") == []
    gate.open.set()
    saver.finish()
    assert saver.poll()
    checkpoint = load_checkpoint(tmp_path / "c" / "00000001")
    for kind, expected in (("model", before), ("optimizer", moments)):
        found = read_tensors(checkpoint, kind)
        assert found.keys() == expected.keys()
        assert all(torch.equal(found[name], tensor) for name, tensor in expected.items())
    assert any(not torch.equal(before[name], tensor) for name, tensor in model[0].state_dict().items())


def test_a_save_waits_for_the_one_before(saver: BackgroundSaver, config: RunConfig, gate: Gate, tmp_path: Path) -> None:
    saver.save(progress=Progress(step=1, stream={}), config=config)
    threading.Timer(0.3, gate.open.set).start()
    saver.save(progress=Progress(step=2, stream={}), config=config)
    saver.finish()
    assert [path.name for path in list_checkpoints(tmp_path / "c")] == ["00000001", "00000002"]


def test_a_part_that_cannot_be_written_is_said_by_the_next_poll_and_leaves_nothing(
    saver: BackgroundSaver, config: RunConfig, gate: Gate, tmp_path: Path
) -> None:
    gate.error = OSError(errno.ENOSPC, "No space left on device")
    gate.open.set()
    saver.save(progress=Progress(step=1, stream={}), config=config)
    with pytest.raises(OSError, match=r"00000001 could not be written: .*No space left on device.*make room"):
        saver.finish()
    assert list((tmp_path / "c").iterdir()) == []
    gate.error = None
    saver.save(progress=Progress(step=2, stream={}), config=config)
    saver.finish()
    assert [path.name for path in list_checkpoints(tmp_path / "c")] == ["00000002"]


def test_a_save_that_a_fault_leaves_to_be_finished_is_no_step_that_stands_still(
    model: tuple[nn.Module, torch.optim.AdamW], config: RunConfig, gate: Gate, tmp_path: Path
) -> None:
    presence, phases = Presence(0, 1, distributed.HashStore(), tell_after_seconds=60), []
    ranks = Ranks(rank=0, size=1, device=torch.device("cpu"), presence=presence)
    saver = BackgroundSaver(tmp_path / "c", *model, ranks=ranks, layout=ALL_OF_IT)
    saver.save(progress=Progress(step=1, stream={}), config=config)
    presence.enters("forward", 1)

    def look() -> None:
        end = time.monotonic() + 30
        while presence.at.phase != "saving" and time.monotonic() < end:
            time.sleep(0.01)
        phases.append(presence.at.phase)
        gate.open.set()

    threading.Thread(target=look).start()
    saver.close()
    assert phases == ["saving"]


def test_runs_that_save_in_the_background_are_the_same_runs(run_file: Callable[..., Path]) -> None:
    path = run_file(checkpoint={"every": 1, "keep": 2, "keep_every": 4})
    waiting, beside = load_run(path), load_run(path, [BACKGROUND, f"out={path.parent / 'beside'}"])
    train(waiting)
    train(beside)
    for config in (waiting, beside):
        names = [folder.name for folder in (Path(config.out) / "checkpoints").iterdir()]
        assert sorted(names) == ["00000004", "00000008", "00000011", "00000012"]
    for name in ("model.safetensors", "optimizer.safetensors"):
        name = f"checkpoints/00000012/{name}"
        assert (Path(waiting.out) / name).read_bytes() == (Path(beside.out) / name).read_bytes()


def test_a_fault_of_the_validation_costs_nothing_that_was_trained(
    run_file: Callable[..., Path], monkeypatch: pytest.MonkeyPatch, gate: Gate
) -> None:
    path = run_file(checkpoint={"every": 4})
    config = load_run(path, [BACKGROUND])
    values = boundary.validation_values

    def failing(*given: Any) -> dict[str, float]:
        if (Path(config.out) / "checkpoints").exists():
            threading.Timer(0.3, gate.open.set).start()
            raise OSError("the validation set is gone")
        return values(*given)

    monkeypatch.setattr(boundary, "validation_values", failing)
    with pytest.raises(OSError, match="the validation set is gone"):
        train(config)
    assert [path.name for path in list_checkpoints(Path(config.out) / "checkpoints")] == ["00000004"]


# Every write is slow, so that a kill finds one under way.
SLOW = """
import sys, time
from headrace.train.config import load_run
from headrace.train.loop import train
from headrace.train.runs import tensor_file

blocks = tensor_file._BlockDigester.blocks

def slow(self, view):
    for taken in blocks(self, view):
        time.sleep(0.002)
        yield taken

tensor_file._BlockDigester.blocks = slow
train(load_run(sys.argv[1], sys.argv[2:]))
"""


@pytest.mark.full
@pytest.mark.parametrize("asynchronous", ["true", "false"])
def test_a_kill_at_any_instant_leaves_whole_checkpoints_and_the_same_run(
    run_file: Callable[..., Path], asynchronous: str
) -> None:
    path = run_file(checkpoint={"every": 1, "keep": 3}, steps=30, validation=None)
    whole, killed = load_run(path), load_run(path, [f"out={path.parent / 'killed'}"])
    train(whole)
    for number in range(3):
        command = [
            sys.executable,
            "-c",
            SLOW,
            str(path),
            f"out={killed.out}",
            f"checkpoint.asynchronous={asynchronous}",
        ]
        process = subprocess.Popen(command, env={**os.environ, "OMP_NUM_THREADS": "1"})
        wait_for_a_step(Path(killed.out), number)
        threading.Event().wait(0.1 * number)
        process.send_signal(signal.SIGKILL)
        process.wait()
        folder = Path(killed.out) / "checkpoints"
        for checkpoint in list_checkpoints(folder)[-2:]:
            for kind in ("model", "optimizer"):
                read_tensors(load_checkpoint(checkpoint), kind)
    assert train(killed).finished
    lines = [read_metrics(Path(run.out) / "metrics.jsonl") for run in (whole, killed)]
    assert [line["loss"] for line in lines[0]] == [line["loss"] for line in lines[1]]
    assert not list((Path(killed.out) / "checkpoints").glob(".*"))


def wait_for_a_step(out: Path, number: int) -> None:
    wanted = 3 * (number + 1)
    for _ in range(10_000):
        lines = read_metrics(out / "metrics.jsonl")
        if lines and lines[-1]["step"] >= wanted:
            return
        threading.Event().wait(0.02)
    raise AssertionError(f"step {wanted} never came")


def test_an_arena_gives_back_the_bytes_across_its_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(staging, "CHUNK_BYTES", 64)
    tensors = {
        "a": torch.arange(50, dtype=torch.int64),
        "turned": torch.arange(12.0).reshape(3, 4).T,
        "empty": torch.zeros(0),
        "half": torch.arange(7).to(torch.bfloat16),
        "scalar": torch.tensor(3.0),
    }
    arena = Arena(torch.device("cpu"))
    for _ in range(2):
        places = arena.fill(tensors)
        for name, tensor in tensors.items():
            assert b"".join(arena.views([places[name]])) == flat_bytes(tensor).numpy().tobytes()


class Stream:
    """Stands in for a stream of a device: what is asked for is done later, in its order, or when one waits for it."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.queue: list[Callable[[], object]] = []
        empty, copy = torch.empty, torch.Tensor.copy_

        def not_pinned(*given: Any, **options: Any) -> torch.Tensor:
            assert options.pop("pin_memory")
            return empty(*given, **options)

        def later(target: torch.Tensor, source: torch.Tensor, non_blocking: bool = False) -> torch.Tensor:
            assert non_blocking
            self.queue.append(lambda: copy(target, source))
            return target

        monkeypatch.setattr(staging.torch, "empty", not_pinned)
        monkeypatch.setattr(torch.Tensor, "copy_", later)
        monkeypatch.setattr(torch.cuda, "current_stream", lambda _: self)

    def synchronize(self) -> None:
        while self.queue:
            self.queue.pop(0)()


def test_a_thread_finds_the_weights_of_the_step_in_the_arena_of_a_device(monkeypatch: pytest.MonkeyPatch) -> None:
    """The kernels of the step are still queued when the copy is asked for; a thread reads the arena right behind it."""
    monkeypatch.setattr(staging, "CHUNK_BYTES", 64)
    weights = {"a": torch.zeros(50), "scalar": torch.zeros(())}
    stream = Stream(monkeypatch)
    arena = Arena(torch.device("cuda", 0))
    for step in range(1, 4):
        for tensor in weights.values():
            stream.queue.append(functools.partial(tensor.fill_, step))
        places = arena.fill(weights)
        found = {name: b"".join(arena.views([places[name]])) for name in weights}
        for name, tensor in weights.items():
            assert found[name] == torch.full(tensor.shape, float(step)).numpy().tobytes(), name


@pytest.mark.cuda
def test_what_is_saved_on_a_gpu_are_the_weights_before_they_move(tmp_path: Path, config: RunConfig) -> None:
    torch.manual_seed(0)
    module = nn.Sequential(*(nn.Linear(4096, 4096) for _ in range(8))).cuda()
    optimizer = torch.optim.AdamW(module.parameters(), lr=1e-3, fused=True)
    for _ in range(2):
        module(torch.randn(64, 4096, device="cuda")).square().sum().backward()
        optimizer.step()
    saver = BackgroundSaver(tmp_path, module, optimizer, ranks=cuda_alone(), layout=ALL_OF_IT)
    for number in range(1, 3):
        expected = {name: tensor.cpu() for name, tensor in module.state_dict().items()}
        saver.save(progress=Progress(step=number, stream={}), config=config)
        optimizer.step()
        saver.finish()
        newest = newest_checkpoint(tmp_path)
        assert newest is not None
        found = read_tensors(newest, "model")
        assert all(torch.isfinite(tensor).all() for tensor in expected.values())
        assert [name for name, tensor in expected.items() if not torch.equal(found[name], tensor)] == []
    saver.close()


def cuda_alone() -> Any:
    from headrace.train.parallel.ranks import Ranks

    return Ranks(rank=0, size=1, device=torch.device("cuda", 0))


def test_what_the_parts_of_lost_processes_cost(
    saver: BackgroundSaver, config: RunConfig, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """A run that ends by a fault does not wait for ever for a process that is gone."""
    monkeypatch.setattr(saving.Save, "is_written", lambda _: False)
    monkeypatch.setattr(background, "LAST_PARTS_SECONDS", 0.2)
    saver.save(progress=Progress(step=1, stream={}), config=config)
    saver.close()
    assert list_checkpoints(tmp_path / "c") == []
