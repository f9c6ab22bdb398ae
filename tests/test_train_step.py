"""benchmarks/train_step.py: what is compared computes the same, and what is not measured is said to be so."""

import json
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "benchmarks"))
import train_peer  # noqa: E402
import train_step  # noqa: E402


def test_the_plain_step_has_the_loss_of_ours(monkeypatch: pytest.MonkeyPatch) -> None:
    train_step.show_same_loss()
    monkeypatch.setattr(train_peer.PlainAim, "targets", lambda self, images: torch.zeros(len(images), self.length, 48))
    with pytest.raises(AssertionError, match="the plain step computes"):
        train_step.show_same_loss()


def test_cells_without_time_are_unmeasured_in_lines_and_in_the_json(tmp_path: Path) -> None:
    command = ["benchmarks/train_step.py", "--device", "cpu", "--budget-seconds", "0", "--json", tmp_path / "rows.json"]
    done = subprocess.run([sys.executable, *command], cwd=ROOT, capture_output=True, text=True, check=True)
    rows = json.loads((tmp_path / "rows.json").read_text())["rows"]
    assert len(rows) == len(done.stdout.splitlines()) >= 4
    assert all(row["note"] == "unmeasured: 0 s were left" for row in rows)


@pytest.mark.parametrize("kind", ["cpu", "cuda"])
def test_every_means_is_measured_on_and_off(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.is_bf16_supported", lambda: True)
    monkeypatch.setattr("importlib.util.find_spec", lambda _name: object())
    monkeypatch.setattr("torch.cuda.get_device_properties", lambda _device: SimpleNamespace(total_memory=141e9))
    found = train_step.cells("0.6B", torch.device(kind))
    assert len({cell.name for cell in found}) == len(found)
    ours = next(cell for cell in found if cell.name == "ours")
    assert ours.execution is not None
    assert {cell.everywhere for cell in found} == {True, False}
    others = [cell.execution for cell in found if cell.execution is not None]
    assert {one.recompute for one in others} == {"none", "selective", "full"}
    if kind == "cuda":
        for name in ("compiled", "flex", "residual"):
            assert len({getattr(one, name) for one in others}) == 2, name


def test_a_step_of_each_kind_runs() -> None:
    cpu = torch.device("cpu")
    for cell in train_step.cells("tiny", cpu):
        step, flops = train_step.build_step(cell, cpu, 2)
        step()
        assert 1e9 < flops < 1e11
