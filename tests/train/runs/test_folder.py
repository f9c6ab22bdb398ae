"""The folder of a run tells of what was done in it, and of nothing else."""

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from safetensors import safe_open

from headrace.train.config import load_run
from headrace.train.loop import train
from headrace.train.parallel.ranks import ALONE
from headrace.train.runs.folder import own_run
from headrace.train.runs.tensor_files import CONFIG_KEY
from headrace.train.runs.weights import read_weights


@pytest.mark.parametrize("bad", ["global_batch=9", "mixture.sources.0.url=nowhere", "validation.dataset=nowhere"])
def test_a_start_that_is_refused_leaves_no_folder(run_file: Callable[..., Path], tmp_path: Path, bad: str) -> None:
    out = tmp_path / "new" / "run"
    with pytest.raises((ValueError, OSError), match=r"9|nowhere"):
        train(load_run(run_file(), [bad, f"out={out}"]))
    assert not (tmp_path / "new").exists()
    (tmp_path / "new" / "run").mkdir(parents=True)  # what a user made stays
    with pytest.raises((ValueError, OSError), match=r"9|nowhere"):
        train(load_run(run_file(), [bad, f"out={out}"]))
    assert out.is_dir()


def test_a_lock_that_was_taken_away_is_not_held(run_file: Callable[..., Path], monkeypatch: pytest.MonkeyPatch) -> None:
    config = load_run(run_file())
    lock = Path(config.out) / ".lock"
    from headrace.train.runs import folder

    flock, calls = folder.fcntl.flock, []

    def late(file: Any, how: int) -> None:
        calls.append(how)
        if len(calls) == 1:
            lock.unlink()  # as a refused start does between open and lock
        flock(file, how)

    monkeypatch.setattr(folder.fcntl, "flock", late)
    with own_run(config, ALONE):
        assert len(calls) == 2
        assert lock.exists()


def test_each_start_is_added_to_the_versions(run_file: Callable[..., Path]) -> None:
    path = run_file(steps=6, validation=None)

    def stop(line: dict[str, Any]) -> None:
        if line["step"] == 4:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(load_run(path), on_metrics=stop)
    file = Path(load_run(path).out) / "versions.json"
    old = json.loads(file.read_text())
    file.write_text(json.dumps({name: old[name] for name in old if name != "starts"} | {"torch": "2.0"}))
    train(load_run(path))
    new = json.loads(file.read_text())
    assert new["torch"] == old["torch"]
    assert [start["torch"] for start in new["starts"]] == ["2.0", old["torch"]]
    assert (new["starts"][1]["step"], new["starts"][1]["processes"]) == (3, 1)
    train(load_run(path))  # a finished run starts nothing
    assert json.loads(file.read_text()) == new


def test_published_weights_hold_no_local_path(run_file: Callable[..., Path], tmp_path: Path) -> None:
    path = run_file(steps=2, changes_at={1: {"steps": 3}})
    config = load_run(path, [f"mixture.quarantine={tmp_path}/bad.jsonl", f"init_from={_weights(run_file)}"])
    train(config)
    with safe_open(Path(config.out) / "model.safetensors", "pt") as file:
        text = file.metadata()[CONFIG_KEY]
    assert str(tmp_path) not in text
    assert "/" not in text
    told = json.loads(text)
    assert (told["out"], told["mixture"]["sources"][0]["url"]) == ("run", Path(config.mixture.sources[0].url).name)
    assert told["mixture"]["quarantine"] == "bad.jsonl"
    assert read_weights(Path(config.out) / "model.safetensors").step == 3


def _weights(run_file: Callable[..., Path]) -> Path:
    return train(load_run(run_file("first", steps=1, validation=None))).out


def test_a_resumed_run_holds_on_to_no_file_of_the_old_checkpoint(run_file: Callable[..., Path]) -> None:
    path = run_file(steps=9, validation=None, checkpoint={"every": 3, "keep": 1})

    def stop(line: dict[str, Any]) -> None:
        if line["step"] == 4:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(load_run(path), on_metrics=stop)
    held = []

    def look(_: dict[str, Any]) -> None:
        maps = Path("/proc/self/maps").read_text()
        files = [os.readlink(file) for file in Path("/proc/self/fd").iterdir() if file.is_symlink() and file.exists()]
        held.append(str(path.parent / "run" / "checkpoints") in maps + "\n".join(files))

    train(load_run(path), on_metrics=look)
    assert held
    assert not any(held)
