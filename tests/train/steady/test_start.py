"""What would end a run later ends it before its first step; a full disk ends it only where it must."""

import errno
import shutil
from collections import namedtuple
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from headrace.shards.write import finish_dataset, write_shard
from headrace.train.config import RunConfig, load_run
from headrace.train.loop import train
from headrace.train.objectives.build import build_objective
from headrace.train.runs import saving
from headrace.train.runs.checkpoint import list_checkpoints
from headrace.train.runs.metrics import read_metrics
from headrace.train.steady import start
from headrace.train.steady.start import bytes_of_checkpoint

Usage = namedtuple("Usage", "total used free")


def steps_with(config: RunConfig, event: str) -> list[int]:
    return [line["step"] for line in read_metrics(Path(config.out) / "metrics.jsonl") if line["event"] == event]


def checkpoints(config: RunConfig) -> list[str]:
    return [path.name for path in list_checkpoints(Path(config.out) / "checkpoints")]


def test_a_validation_set_is_looked_at_before_the_first_step(run_file: Callable[..., Path], tmp_path: Path) -> None:
    write_shard(str(tmp_path / "empty"), "00000", [])
    finish_dataset(str(tmp_path / "empty"), recipe_digest="test")
    for name, message in (("nowhere", r"validation\.dataset: .*nowhere"), ("empty", "has no samples")):
        config = load_run(run_file(validation={"dataset": str(tmp_path / name), "every": 1000}))
        with pytest.raises(ValueError, match=message):
            train(config)
        assert not Path(config.out).exists()


def test_a_vanished_validation_set_is_said_when_a_run_goes_on(
    run_file: Callable[..., Path], other_pictures: str, tmp_path: Path
) -> None:
    shutil.copytree(other_pictures, tmp_path / "held-out")
    config = load_run(run_file(validation={"dataset": str(tmp_path / "held-out"), "every": 100}))

    def stop(line: dict[str, Any]) -> None:
        if line["step"] == 4:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(config, on_metrics=stop)
    (tmp_path / "held-out").rename(tmp_path / "gone")
    with pytest.raises(ValueError, match=r"validation\.dataset: .*held-out"):
        train(config)
    assert train(load_run(run_file(validation=None))).finished  # validation is free to change


@pytest.mark.parametrize("optimizer", ["adamw", "lars"])
def test_a_checkpoint_must_fit_the_disk(
    run_file: Callable[..., Path], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, optimizer: str
) -> None:
    config = load_run(run_file(validation=None, steps=3, optimizer={"kind": optimizer, "lr": 0.001}))
    size = bytes_of_checkpoint(config, build_objective(config.objective, image_size=16, seed=0))
    monkeypatch.setattr(start.shutil, "disk_usage", lambda _: Usage(0, 0, size - 1))
    with pytest.raises(OSError, match=rf"a checkpoint takes {size:,} bytes, and {size - 1:,} are free there"):
        train(config)
    assert not Path(config.out).exists()
    monkeypatch.setattr(start.shutil, "disk_usage", lambda _: Usage(0, 0, size))
    assert train(config).finished
    assert "lower checkpoint.keep" in caplog.text
    step = Path(config.out) / "checkpoints" / "00000003"
    written = sum((step / name).stat().st_size for name in ("model.safetensors", "optimizer.safetensors"))
    assert written == pytest.approx(size, rel=0.2)  # names and step counts of a model this small


def fill(monkeypatch: pytest.MonkeyPatch, full: Callable[[], bool]) -> None:
    """Let saving fail as on a full disk, for as long as it is `full`."""
    write = saving.write_tensor_file

    def failing(path: Path, *given: Any) -> Any:
        if full():
            path.write_bytes(b"half")
            raise OSError(errno.ENOSPC, "No space left on device")
        return write(path, *given)

    monkeypatch.setattr(saving, "write_tensor_file", failing)


def test_a_full_disk_stops_with_the_last_checkpoint_whole(
    run_file: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    config = load_run(run_file(validation=None))
    fill(monkeypatch, lambda: bool(checkpoints(config)))
    with pytest.raises(
        OSError, match=r"00000006 could not be written: .*No space left on device; .*make room"
    ) as caught:
        train(config)
    assert caught.value.errno == errno.ENOSPC
    assert "\n" not in str(caught.value)
    assert [path.name for path in (Path(config.out) / "checkpoints").iterdir()] == ["00000003"]
    monkeypatch.undo()
    assert train(config).finished


def test_keep_training_goes_on_without_room_and_saves_when_there_is_some(
    run_file: Callable[..., Path], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    path = run_file(validation=None, checkpoint={"every": 3, "keep": 9, "on_full_disk": "keep_training"})
    whole = load_run(path, [f"out={path.parent / 'whole'}"])
    train(whole)
    config = load_run(path)
    fill(monkeypatch, lambda: len(steps_with(config, "train")) in range(3, 9))
    assert train(config).finished
    assert checkpoints(config) == ["00000009", "00000012"]
    assert caplog.text.count("training goes on (checkpoint.on_full_disk)") == 2
    weights = [Path(one.out) / "checkpoints" / "00000012" / "model.safetensors" for one in (config, whole)]
    assert weights[0].read_bytes() == weights[1].read_bytes()


def test_the_last_save_must_be(run_file: Callable[..., Path], monkeypatch: pytest.MonkeyPatch) -> None:
    config = load_run(run_file(validation=None, checkpoint={"every": 3, "keep": 9, "on_full_disk": "keep_training"}))
    fill(monkeypatch, lambda: len(steps_with(config, "train")) > 3)
    with pytest.raises(OSError, match="00000012 could not be written"):
        train(config)
    assert checkpoints(config) == ["00000003"]


def test_another_error_of_a_save_ends_the_run(run_file: Callable[..., Path], monkeypatch: pytest.MonkeyPatch) -> None:
    config = load_run(run_file(validation=None, checkpoint={"every": 3, "on_full_disk": "keep_training"}))

    def failing(*_: Any, **__: Any) -> None:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(saving, "write_tensor_file", failing)
    with pytest.raises(OSError, match="Input/output error"):
        train(config)
