"""A run is a function of its config: killed, cut or spread, it gives the same losses."""

import json
import os
import shutil
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from headrace.pipeline import Batch, Stream
from headrace.train import boundary
from headrace.train.config import RunConfig, load_run
from headrace.train.loop import train
from headrace.train.objectives.aim import Aim
from headrace.train.parallel.ranks import Ranks
from headrace.train.runs.checkpoint import list_checkpoints
from headrace.train.runs.folder import NonFiniteError
from headrace.train.runs.metrics import read_metrics

KEPT = ("event", "step", "samples", "loss", "lr", "grad_norm", "batch_digest")


def lines(config: RunConfig) -> list[dict[str, object]]:
    """The lines of a run without what time and machine decide."""
    read = read_metrics(Path(config.out) / "metrics.jsonl")
    return [{name: line[name] for name in KEPT if name in line} for line in read]


def test_resume_from_every_checkpoint_gives_the_same_tail(run_file: Callable[..., Path], tmp_path: Path) -> None:
    path = run_file()
    config = load_run(path)
    assert train(config).finished
    whole = lines(config)
    assert [line["step"] for line in whole if line["event"] == "train"] == list(range(1, 13))
    assert [line["step"] for line in whole if line["event"] == "validation"] == [0, 4, 8, 12]
    for step in (3, 6, 9, 12):
        again = load_run(path, [f"out={tmp_path / f'from-{step}'}"])
        shutil.copytree(config.out, again.out)
        for later in range(step + 3, 13, 3):
            shutil.rmtree(Path(again.out) / "checkpoints" / f"{later:08d}")
        (Path(again.out) / "model.safetensors").unlink()
        assert train(again).finished
        assert lines(again) == whole
        for name in ("model.safetensors", "optimizer.safetensors"):
            last = Path("checkpoints") / "00000012" / name
            assert (Path(again.out) / last).read_bytes() == (Path(config.out) / last).read_bytes()


def test_two_runs_are_bitwise_equal_and_seeds_differ(run_file: Callable[..., Path], tmp_path: Path) -> None:
    path = run_file(steps=3)
    configs = [
        load_run(path, [f"out={tmp_path / name}", f"seed={seed}"]) for name, seed in (("a", 1), ("b", 1), ("c", 2))
    ]
    for config in configs:
        train(config)
    assert lines(configs[0]) == lines(configs[1])
    assert lines(configs[0])[1]["loss"] != lines(configs[2])[1]["loss"]
    assert lines(configs[0])[1]["batch_digest"] == lines(configs[2])[1]["batch_digest"]


def test_validation_and_checkpoints_do_not_change_training(run_file: Callable[..., Path]) -> None:
    plain = load_run(run_file("plain", steps=6, validation=None, checkpoint={"every": 100}))
    busy = load_run(run_file("busy", steps=6))
    train(plain)
    train(busy)
    assert [line for line in lines(busy) if line["event"] == "train"] == lines(plain)


def test_accumulation_is_the_large_batch(run_file: Callable[..., Path]) -> None:
    whole, parts = load_run(run_file("whole")), load_run(run_file("parts", images_per_micro_batch=3))
    train(whole)
    train(parts)
    for one, other in zip(lines(whole), lines(parts), strict=True):
        assert one["loss"] == pytest.approx(other["loss"], rel=1e-5)
        assert one.get("batch_digest") == other.get("batch_digest")


def test_a_run_learns(run_file: Callable[..., Path]) -> None:
    config = load_run(
        run_file(steps=40, optimizer={"lr": 0.01}, validation={"dataset": _dataset(run_file), "every": 40})
    )
    train(config)
    before, after = (line["loss"] for line in lines(config) if line["event"] == "validation")
    assert isinstance(before, float)
    assert isinstance(after, float)
    assert after < 0.8 * before


def _dataset(run_file: Callable[..., Path]) -> str:
    validation = load_run(run_file("named")).validation
    assert validation is not None
    return validation.dataset


def test_validation_is_a_number_of_its_own_set_alone(run_file: Callable[..., Path]) -> None:
    """45 samples in batches of 16: the last batch is padded; `samples` takes the first of the pass."""
    losses = {}
    for batch, samples in ((16, 0), (4, 0), (16, 20), (4, 20)):
        validation = {"dataset": _dataset(run_file), "every": 1, "samples": samples}
        config = load_run(run_file(f"v{batch}-{samples}", steps=1, global_batch=batch, validation=validation))
        train(config)
        losses[batch, samples] = lines(config)[0]["loss"]
    assert losses[16, 0] == pytest.approx(losses[4, 0], rel=1e-6)
    assert losses[16, 20] == pytest.approx(losses[4, 20], rel=1e-6)
    assert losses[16, 0] != pytest.approx(losses[16, 20], rel=1e-6)


def test_a_signal_saves_and_the_same_command_continues(run_file: Callable[..., Path]) -> None:
    path = run_file(checkpoint={"every": 100})
    whole, stopped = load_run(path), load_run(path, ["out=" + str(path.parent / "stopped")])
    handler = signal.getsignal(signal.SIGTERM)  # not always the default: Ray, in a test before, leaves its own
    train(whole)

    def stop_at_five(line: dict[str, object]) -> None:
        if line["event"] == "train" and line["step"] == 5:
            os.kill(os.getpid(), signal.SIGTERM)

    result = train(stopped, on_metrics=stop_at_five)
    assert not result.finished
    assert 5 <= result.step < 12
    assert not (Path(stopped.out) / "model.safetensors").exists()
    assert signal.getsignal(signal.SIGTERM) == handler
    assert train(stopped).finished
    assert lines(stopped) == lines(whole)


@pytest.mark.parametrize("taken", [False, True])
def test_a_signal_ends_the_wait_for_data_and_loses_no_batch(
    run_file: Callable[..., Path], monkeypatch: pytest.MonkeyPatch, taken: bool
) -> None:
    """The sixth batch does not come; or it came, and the signal with it."""
    path = run_file(checkpoint={"every": 100})
    whole, stopped = load_run(path), load_run(path, ["out=" + str(path.parent / "stopped")])
    train(whole)
    forward = Stream.__next__

    def stalling(stream: Stream) -> Batch:
        if stream.position == 5 * stopped.global_batch:
            if taken:
                forward(stream)
            threading.Timer(0.2, os.kill, (os.getpid(), signal.SIGTERM)).start()
            time.sleep(300)
        return forward(stream)

    monkeypatch.setattr(Stream, "__next__", stalling)
    began = time.monotonic()
    result = train(stopped)
    assert time.monotonic() - began < 200
    assert (result.step, result.stopped_by) == (5, signal.SIGTERM)
    monkeypatch.undo()
    assert train(stopped).finished
    assert lines(stopped) == lines(whole)


def test_a_fault_of_the_validation_costs_no_step(
    run_file: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    config = load_run(run_file(checkpoint={"every": 4}, validation={"dataset": _dataset(run_file), "every": 4}))
    values = boundary.validation_values

    def failing(objective: Aim, run: RunConfig, ranks: Ranks) -> dict[str, float]:
        if list_checkpoints(Path(run.out) / "checkpoints"):
            raise OSError("the validation set is gone")
        return values(objective, run, ranks)

    monkeypatch.setattr(boundary, "validation_values", failing)
    with pytest.raises(OSError, match="the validation set is gone"):
        train(config)
    assert [path.name for path in list_checkpoints(Path(config.out) / "checkpoints")] == ["00000004"]


def test_a_loss_that_is_not_finite_stops_before_the_weights_move(
    run_file: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    config = load_run(run_file(validation=None, checkpoint={"every": 2}))
    forward, calls = Aim.forward, []

    def spoiled(self: Aim, batch: object) -> object:
        loss, report = forward(self, batch)  # type: ignore[arg-type]
        calls.append(batch)
        return (loss * float("nan") if len(calls) == 5 else loss), report

    monkeypatch.setattr(Aim, "forward", spoiled)
    with pytest.raises(NonFiniteError, match=r"step 4: loss nan.*weights were not changed"):
        train(config)
    record = json.loads((Path(config.out) / "nonfinite-00000004-rank0.json").read_text())
    assert record["position"] == list(range(64, 80))
    assert len(record["key"]) == 16
    assert all(np.isfinite(line["loss"]) for line in read_metrics(Path(config.out) / "metrics.jsonl"))
    monkeypatch.undo()
    assert train(config).finished  # from step 4, as the weights are sound


def test_a_gradient_that_is_not_finite_is_caught_too(
    run_file: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    config = load_run(run_file(validation=None))
    forward = Aim.forward

    def spoiled(self: Aim, batch: object) -> object:
        loss, report = forward(self, batch)  # type: ignore[arg-type]
        zero = self.head.decoder_pred.bias.sum() * 0
        return loss + (zero.sqrt() - zero.detach().sqrt()), report  # finite, with an infinite slope

    monkeypatch.setattr(Aim, "forward", spoiled)
    with pytest.raises(NonFiniteError, match=r"gradient norm (nan|inf)"):
        train(config)


def test_a_folder_has_one_run_at_a_time(run_file: Callable[..., Path]) -> None:
    config, errors = load_run(run_file(steps=2)), []

    def train_again(line: dict[str, object]) -> None:
        if line["step"] == 1:
            thread = threading.Thread(target=lambda: errors.append(_error_of(config)))
            thread.start()
            thread.join()

    train(config, on_metrics=train_again)
    assert len(errors) == 1
    assert "is in use by another training process" in errors[0]


def _error_of(config: RunConfig) -> str:
    try:
        train(config)
    except ValueError as error:
        return str(error)
    return "no error"


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("optimizer.lr=0.5", r"another config: optimizer\.lr: was 0\.001, is 0\.5"),
        ("objective.depth=1", r"objective\.depth: was 2, is 1"),
        ("mixture.seed=6", "seed was 5, this stream has 6"),
        ("mixture.sources.0.chunk_samples=8", "chunk_samples was 4"),
        ("global_batch=8", "global_batch: was 16, is 8"),
    ],
)
def test_a_changed_run_is_not_continued(run_file: Callable[..., Path], override: str, message: str) -> None:
    path = run_file(steps=3, validation=None)
    train(load_run(path))
    with pytest.raises(ValueError, match=message):
        train(load_run(path, [override]))


def test_a_refused_start_leaves_the_records_of_the_run(run_file: Callable[..., Path]) -> None:
    path = run_file(steps=3, validation=None)
    out = train(load_run(path)).out
    before = {}
    for name in ("run.yaml", "versions.json", "metrics.jsonl"):
        (out / name).write_text("as it was")
        before[name] = (out / name).stat().st_mtime_ns
    for override in ("optimizer.lr=0.5", "mixture.seed=6", "global_batch=9", "objective.width=32"):
        with pytest.raises(ValueError, match=r".+"):
            train(load_run(path, [override]))
    assert {name: (out / name).stat().st_mtime_ns for name in before} == before


def test_a_damaged_newest_checkpoint_costs_only_its_steps(
    run_file: Callable[..., Path], caplog: pytest.LogCaptureFixture
) -> None:
    path = run_file()
    config = load_run(path)
    train(config)
    whole = lines(config)
    damaged = Path(config.out) / "checkpoints" / "00000012" / "optimizer.safetensors"
    damaged.write_bytes(damaged.read_bytes()[:-100])
    assert train(config).finished
    assert lines(config) == whole
    assert "damaged checkpoint" in caplog.text


def test_a_checkpoint_whose_stream_stands_elsewhere_is_refused(run_file: Callable[..., Path]) -> None:
    config = load_run(run_file(steps=3, validation=None))
    train(config)
    path = Path(config.out) / "checkpoints" / "00000003" / "state.json"
    state = json.loads(path.read_text())
    state["stream"]["position"] += config.global_batch
    path.write_text(json.dumps(state))
    with pytest.raises(ValueError, match="step 3 does not belong to position 64"):
        train(config)


def test_lines_that_are_no_metrics_are_passed_over(run_file: Callable[..., Path]) -> None:
    config = load_run(run_file(steps=3, validation=None))
    train(config)
    whole = lines(config)
    with (Path(config.out) / "metrics.jsonl").open("a") as file:
        file.write('7\n[1]\n{"step": "2"}\n{"event": "train", "st')
    assert lines(config) == whole
    train(config)
    assert lines(config) == whole


def test_the_run_folder_says_what_it_was(run_file: Callable[..., Path]) -> None:
    config = load_run(run_file(steps=2))
    train(config)
    out = Path(config.out)
    assert load_run(out / "run.yaml") == config
    versions = json.loads((out / "versions.json").read_text())
    assert versions["torch"] == torch.__version__.split("+")[0]
    line = read_metrics(out / "metrics.jsonl")[1]
    for name in (
        "images_per_second",
        "wall_seconds",
        "data_wait_seconds",
        "data_wait_percent",
        "memory_bytes",
        "tflops",
        "needed_tflops",
        "unix_seconds",
        "step_seconds",
        "step_seconds_worst",
        "data_wait_seconds_worst",
        "memory_allocated_bytes",
        "memory_allocated_bytes_worst",
    ):
        assert isinstance(line[name], int | float)
    assert line["memory_allocated_bytes_worst_rank"] == line["step_seconds_worst_rank"] == 0
    assert line["data_bound_by"] is None  # one step says nothing
    line = [line for line in read_metrics(out / "metrics.jsonl") if line["event"] == "train"][-1]
    assert line["data_bound_by"] in ("compute", "plan", "read", "decode", "augment")
    assert {path.name for path in (out / "checkpoints").iterdir()} == {"00000002"}


def test_cuda_that_is_not_there_is_said(run_file: Callable[..., Path]) -> None:
    if torch.cuda.is_available():
        config = load_run(run_file(steps=1, device="cuda"))
        assert train(config).finished
        return
    with pytest.raises(ValueError, match="no usable CUDA device"):
        train(load_run(run_file(device="cuda")))
