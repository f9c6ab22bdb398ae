"""Checkpoints are whole, verified, and hold no code."""

import dataclasses
import hashlib
import json
import os
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from headrace.train.config import RunConfig, load_run
from headrace.train.runs.checkpoint import (
    FILES,
    DamagedError,
    Progress,
    list_checkpoints,
    load_checkpoint,
    newest_checkpoint,
    refuse_other_config,
    remove_old,
    restore,
    save_checkpoint,
)


def trained(seed: int = 0) -> tuple[nn.Module, torch.optim.AdamW]:
    torch.manual_seed(seed)
    module = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2))
    optimizer = torch.optim.AdamW([{"params": [module[0].weight, module[1].weight]}, {"params": [module[0].bias]}])
    module(torch.randn(5, 3)).sum().backward()
    optimizer.step()
    return module, optimizer


@pytest.fixture
def config(run_file: Callable[..., Path]) -> RunConfig:
    return load_run(run_file())


@pytest.fixture
def saved(tmp_path: Path, config: RunConfig) -> Path:
    """A folder of three checkpoints."""
    folder = tmp_path / "checkpoints"
    for step in (5, 10, 15):
        save_checkpoint(
            folder, *trained(step), progress=Progress(step=step, stream={"position": step * 16}), config=config
        )
    return folder


def test_what_is_saved_comes_back_bit_for_bit(saved: Path) -> None:
    module, optimizer = trained(15)
    other, other_optimizer = trained(99)
    checkpoint = newest_checkpoint(saved)
    assert checkpoint is not None
    restore(checkpoint, other, other_optimizer)
    assert checkpoint.progress == Progress(step=15, stream={"position": 240})
    for mine, theirs in zip(module.parameters(), other.parameters(), strict=True):
        assert torch.equal(mine, theirs)
    for mine, theirs in zip(_moments(optimizer), _moments(other_optimizer), strict=True):
        assert torch.equal(mine, theirs)


def _moments(optimizer: torch.optim.Optimizer) -> list[torch.Tensor]:
    return [tensor for state in optimizer.state_dict()["state"].values() for _, tensor in sorted(state.items())]


def test_only_the_newest_stay_and_leftovers_go(saved: Path) -> None:
    (saved / ".00000020.tmp").mkdir()
    (saved / ".00000020.tmp" / "model.safetensors").write_bytes(b"half")
    assert [path.name for path in list_checkpoints(saved)] == ["00000005", "00000010", "00000015"]
    remove_old(saved, keep=2, step=15)
    assert sorted(path.name for path in saved.iterdir()) == ["00000010", "00000015"]


def test_damaged_later_ones_do_not_push_the_whole_ones_out(saved: Path) -> None:
    """The run went on from step 10 and was stopped at 12; with the one it keeps it must go on again."""
    (saved / "00000015" / "model.safetensors").write_bytes(b"")
    newest = newest_checkpoint(saved)
    assert newest is not None
    shutil.copytree(newest.path, saved / "00000012")
    remove_old(saved, keep=1, step=12)
    kept = newest_checkpoint(saved)
    assert kept is not None
    assert kept.path == saved / "00000012"


def test_the_newest_is_that_of_the_most_steps(tmp_path: Path) -> None:
    for name in ("100000000", "99999999", "00000007"):
        (tmp_path / name).mkdir()
    assert [path.name for path in list_checkpoints(tmp_path)] == ["00000007", "99999999", "100000000"]


@pytest.mark.parametrize("name", [*FILES, "state.json"])
@pytest.mark.parametrize("damage", ["flip", "truncate", "remove", "empty"])
def test_a_damaged_newest_falls_back_to_the_one_before(
    saved: Path, name: str, damage: str, caplog: pytest.LogCaptureFixture
) -> None:
    path = saved / "00000015" / name
    data = bytearray(path.read_bytes())
    if damage == "remove":
        path.unlink()
    else:
        data[len(data) // 3] ^= 0xFF
        path.write_bytes({"flip": bytes(data), "truncate": bytes(data[:-7]), "empty": b""}[damage])
    checkpoint = newest_checkpoint(saved)
    assert checkpoint is not None
    assert checkpoint.progress.step == 10
    assert str(path) in caplog.text


def test_when_all_are_damaged_the_run_does_not_start_over_silently(saved: Path) -> None:
    for path in list_checkpoints(saved):
        (path / "model.safetensors").write_bytes(b"")
    with pytest.raises(ValueError, match="all 3 checkpoints are damaged"):
        newest_checkpoint(saved)
    assert newest_checkpoint(saved.parent / "nowhere") is None


class _Payload:
    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return (os.mkdir, (str(self.target),))


@pytest.mark.parametrize("name", [*FILES, "state.json"])
def test_a_pickle_in_a_checkpoint_is_never_run(saved: Path, tmp_path: Path, name: str) -> None:
    folder, target = saved / "00000015", tmp_path / "was-run"
    data = pickle.dumps({"state_dict": _Payload(target)})
    (folder / name).write_bytes(data)
    if name in FILES:  # the attacker also mends the digests
        state = json.loads((folder / "state.json").read_text())
        state["files"][name] = {"bytes": len(data), "blocks": hashlib.sha256(data).digest()[:16].hex()}
        (folder / "state.json").write_text(json.dumps(state))
    with pytest.raises(ValueError, match="damaged checkpoint"):
        load_checkpoint(folder)
    assert not target.exists()
    pickle.loads(data)  # the payload is a real one
    assert target.exists()


@pytest.mark.parametrize("change", [{"step": "15"}, {"stream": []}, {"config": None}, {"version": 0}, {"files": {}}])
def test_a_state_of_another_shape_is_refused(saved: Path, change: dict[str, object]) -> None:
    path = saved / "00000015" / "state.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
    with pytest.raises(ValueError, match=r"state\.json|damaged checkpoint"):
        load_checkpoint(path.parent)


def test_a_checkpoint_of_a_newer_headrace_is_not_passed_over(saved: Path) -> None:
    path = saved / "00000015" / "state.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "version": 99}))
    with pytest.raises(ValueError, match=r"state\.json: a checkpoint of version 99, .*reads 1 to 3") as caught:
        newest_checkpoint(saved)
    assert not isinstance(caught.value, DamagedError)


def test_another_config_is_refused_by_the_name_of_its_field(saved: Path, run_file: Callable[..., Path]) -> None:
    checkpoint = load_checkpoint(saved / "00000015")
    refuse_other_config(checkpoint, load_run(run_file("b", log_every=3)))
    with pytest.raises(ValueError, match=r"seed: was 3, is 4"):
        refuse_other_config(checkpoint, load_run(run_file("b", seed=4)))


@pytest.mark.parametrize("size", [100, 1000])
def test_a_full_disk_is_one_line_and_leaves_the_checkpoints_that_were_there(
    saved: Path, config: RunConfig, no_more_than: Callable[[int], None], size: int
) -> None:
    """At 100 bytes the weights do not fit, at 1000 the moments."""
    before = sorted(saved.rglob("*"))
    no_more_than(size)
    progress = Progress(step=20, stream={})
    with pytest.raises(OSError, match=r"the checkpoint .*00000020 could not be written: .*make room and run") as full:
        save_checkpoint(saved, *trained(20), progress=progress, config=config)
    assert "\n" not in str(full.value)
    assert sorted(saved.rglob("*")) == before


def test_passwords_and_signatures_stay_out_of_checkpoints(saved: Path, config: RunConfig) -> None:
    source = dataclasses.replace(config.mixture.sources[0], url="https://me:pw1@host/d?x=1&X-Amz-Signature=pw2")
    secret = dataclasses.replace(config, mixture=dataclasses.replace(config.mixture, sources=(source,)))
    path = save_checkpoint(saved, *trained(20), progress=Progress(step=20, stream={}), config=secret)
    text = (path / "state.json").read_text()
    assert "https://me:***@host/d?x=1&X-Amz-Signature=***" in text
    assert "pw1" not in text + repr(load_checkpoint(path).config)
    refuse_other_config(load_checkpoint(path), secret)


def test_a_checkpoint_from_before_a_key_existed_goes_on_with_its_default(
    saved: Path, run_file: Callable[..., Path]
) -> None:
    path = saved / "00000015" / "state.json"
    state = json.loads(path.read_text())
    del state["config"]["optimizer"]["kind"], state["config"]["schedule"]["kind"], state["config"]["precision"]
    path.write_text(json.dumps(state))
    refuse_other_config(load_checkpoint(path.parent), load_run(run_file("b")))
    with pytest.raises(ValueError, match=r"precision: was 'auto', is 'fp32'"):
        refuse_other_config(load_checkpoint(path.parent), load_run(run_file("c", precision="fp32")))


def test_weights_of_another_model_are_refused(saved: Path) -> None:
    module = nn.Sequential(nn.Linear(3, 5), nn.Linear(5, 2))
    with pytest.raises(ValueError, match="do not fit the model"):
        restore(load_checkpoint(saved / "00000015"), module, torch.optim.AdamW(module.parameters()))


def test_moments_of_another_shape_are_refused(saved: Path, config: RunConfig) -> None:
    module, optimizer = trained(20)
    optimizer.state[module[0].weight]["exp_avg"] = torch.zeros(4, 4)  # type: ignore[index]
    path = save_checkpoint(saved, module, optimizer, progress=Progress(step=20, stream={}), config=config)
    with pytest.raises(ValueError, match=r"00000020: .*'0\.weight/exp_avg' has the shape \[4, 4\]"):
        restore(load_checkpoint(path), *trained())


@pytest.mark.parametrize("version", [1, 2])
def test_checkpoints_of_earlier_versions_are_read_and_verified(saved: Path, version: int) -> None:
    path = as_version(saved / "00000015", version)
    module, optimizer = trained(15)
    other, other_optimizer = trained(99)
    newest = newest_checkpoint(saved, use=lambda checkpoint: restore(checkpoint, other, other_optimizer))
    assert newest is not None
    assert newest.path == path
    for mine, theirs in zip(module.parameters(), other.parameters(), strict=True):
        assert torch.equal(mine, theirs)
    for mine, theirs in zip(_moments(optimizer), _moments(other_optimizer), strict=True):
        assert torch.equal(mine, theirs)
    flip(path / "optimizer.safetensors", -1)
    newest = newest_checkpoint(saved, use=lambda checkpoint: restore(checkpoint, other, other_optimizer))
    assert newest is not None
    assert newest.path == saved / "00000010"


def as_version(path: Path, version: int) -> Path:
    """Write the checkpoint at `path` anew, as an earlier headrace did."""
    state = json.loads((path / "state.json").read_text())
    state["version"] = version
    del state["block_bytes"]
    for name in FILES:
        save_file(load_file(path / name), path / name)
        data = (path / name).read_bytes()
        state["files"][name] = {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    if version == 1:
        del state["watch"], state["missing"]
    (path / "state.json").write_text(json.dumps(state, indent=1, sort_keys=True) + "\n")
    return path


def flip(path: Path, place: int) -> None:
    data = bytearray(path.read_bytes())
    data[place] ^= 1
    path.write_bytes(data)


def test_damage_that_only_reading_finds_falls_back_too(tmp_path: Path, config: RunConfig) -> None:
    """A flipped bit in the second block of a file: the header is whole, and the weights before it are in place."""
    for step in (1, 2):
        save_checkpoint(tmp_path / "c", *large(step), progress=Progress(step=step, stream={}), config=config)
    flip(tmp_path / "c" / "00000002" / "model.safetensors", (1 << 20) + 7)
    module, optimizer = large(9)
    newest = newest_checkpoint(tmp_path / "c", use=lambda checkpoint: restore(checkpoint, module, optimizer))
    assert newest is not None
    assert newest.progress.step == 1
    for mine, theirs in zip(large(1)[0].parameters(), module.parameters(), strict=True):
        assert torch.equal(mine, theirs)


def large(seed: int) -> tuple[nn.Module, torch.optim.AdamW]:
    """A module of 2.4 MB."""
    torch.manual_seed(seed)
    module = nn.Sequential(nn.Linear(300, 1000), nn.Linear(1000, 300))
    optimizer = torch.optim.AdamW(module.parameters())
    module(torch.randn(2, 300)).sum().backward()
    optimizer.step()
    return module, optimizer


def test_every_other_tool_reads_the_files(saved: Path) -> None:
    module, optimizer = trained(15)
    weights = load_file(saved / "00000015" / "model.safetensors")
    moments = load_file(saved / "00000015" / "optimizer.safetensors")
    assert weights.keys() == module.state_dict().keys()
    assert all(torch.equal(weights[name], tensor) for name, tensor in module.state_dict().items())
    assert torch.equal(moments["0.weight/exp_avg"], optimizer.state[module[0].weight]["exp_avg"])  # type: ignore[index]


def test_steps_that_keep_every_divides_stay(tmp_path: Path) -> None:
    for step in (10, 20, 30, 40, 50, 60):
        (tmp_path / f"{step:08d}").mkdir()
    remove_old(tmp_path, keep=1, step=60, keep_every=20)
    assert [path.name for path in list_checkpoints(tmp_path)] == ["00000020", "00000040", "00000060"]


def test_nothing_of_a_checkpoint_stays_mapped_or_open_after_it_was_read(saved: Path) -> None:
    """On NFS a mapped file that is removed leaves .nfs files, and the next removal of its folder fails."""
    restore(load_checkpoint(saved / "00000015"), *trained())
    assert str(saved) not in Path("/proc/self/maps").read_text()
    assert not [link for link in Path("/proc/self/fd").iterdir() if str(saved) in os.path.realpath(link)]
