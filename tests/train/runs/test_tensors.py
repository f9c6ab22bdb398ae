"""Tensors reach the file whole, and a file that cannot be written is named."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from headrace.train.runs.tensors import host_tensors, num_bytes, save_tensors


def test_tensors_that_share_memory_are_saved_each_for_itself(tmp_path: Path) -> None:
    base = torch.arange(12.0).reshape(3, 4)
    tensors = host_tensors({"whole": base, "column": base[:, 1], "turned": base.T})
    save_tensors(tmp_path / "x.safetensors", tensors, {"note": "a"})
    read = load_file(tmp_path / "x.safetensors")
    assert torch.equal(read["column"], base[:, 1])
    assert torch.equal(read["turned"], base.T)
    assert num_bytes(read) == 4 * (12 + 3 + 12)


def test_a_rank_that_does_not_write_keeps_nothing() -> None:
    assert host_tensors({"a": torch.zeros(3)}, keep=False) == {}


def test_a_file_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    with pytest.raises(OSError, match=r"nowhere/x\.safetensors: cannot be written: "):
        save_tensors(tmp_path / "nowhere" / "x.safetensors", {"a": torch.zeros(3)})
