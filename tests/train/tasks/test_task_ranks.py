"""One process and two compute the same steps of segmentation and detection; several pack once."""

import json
import threading
from pathlib import Path
from typing import Any

import pytest
import yaml
from safetensors.torch import load_file

from headrace.shards.dataset import open_dataset
from headrace.train.objectives.dense.masks import MaskRules
from headrace.train.runs.metrics import read_metrics
from headrace.train.tasks.coco import read_coco
from headrace.train.tasks.pack import pack
from headrace.train.tasks.pairs import find_pairs
from tests.train.objectives.test_clip_ranks import together
from tests.train.parallel.test_strategy import TRAIN
from tests.train.tasks.drawn import TRUNK

SMALL: dict[str, dict[str, Any]] = {
    "segment": {"num_classes": 4, "width": 16, "drop_path": 0.3},
    "detect": {"num_classes": 3, "width": 16, "anchors": 32, "regions": 16, "proposals": 50, "drop_path": 0.3},
}


RUNS = (("one", 1, None, "ddp"), ("two", 2, 2, "ddp"), ("spread", 2, 2, "fsdp"))
"""Name, processes, images of a micro-batch, strategy."""


@pytest.mark.full
@pytest.mark.parametrize("kind", SMALL)
def test_two_processes_train_what_one_does(kind: str, masked: Path, boxed: Path, tmp_path: Path) -> None:
    """Losses, mIoU of the validation, and the exported weights; with micro-batches, and spread by FSDP too."""
    if kind == "segment":
        url = pack(find_pairs(str(masked / "test"), "", MaskRules(num_classes=4)), tmp_path / "packed")
    else:
        url = pack(read_coco(f"{boxed}/test/instances.json", f"{boxed}/test/images"), tmp_path / "packed")
    for name, processes, parts, strategy in RUNS:
        content = {
            "out": str(tmp_path / name),
            "seed": 3,
            "steps": 3,
            "global_batch": 8,
            "images_per_micro_batch": parts,
            "mixture": {"lanes": 2, "image_size": 64, "sources": [{"name": "a", "url": url}]},
            "objective": {"kind": kind, "of": TRUNK, **SMALL[kind]},
            "optimizer": {"lr": 1e-4},
            "parallel": {"strategy": strategy},
            "validation": {"dataset": url, "every": 3},
            "device": "cpu",
            "log_every": 1,
        }
        (tmp_path / f"{name}.yaml").write_text(yaml.safe_dump(content))
        together(processes, TRAIN, json.dumps([str(tmp_path / f"{name}.yaml")]))
    for other in ("two", "spread"):
        _check_same(tmp_path / "one", tmp_path / other)


def _check_same(one: Path, other: Path) -> None:
    runs = [read_metrics(folder / "metrics.jsonl") for folder in (one, other)]
    for event in ("train", "validation"):
        losses = [[line["loss"] for line in lines if line["event"] == event] for lines in runs]
        assert losses[0] == pytest.approx(losses[1], rel=2e-4)
        assert len(losses[0]) >= 2
    mious = [[line["miou"] for line in lines if "miou" in line] for lines in runs]
    assert mious[0] == pytest.approx(mious[1], abs=1e-3)
    weights = [load_file(folder / "model.safetensors") for folder in (one, other)]
    for name, tensor in weights[0].items():
        # Three steps of Adam at 1e-4: a gradient of the other sign would be 6e-4 away.
        assert (tensor - weights[1][name]).abs().max() < 3e-4, name


def test_several_processes_pack_once(masked: Path, tmp_path: Path) -> None:
    """Whoever comes second waits for the first, and finds it done."""
    pairs = find_pairs(str(masked / "test"), "", MaskRules(num_classes=4))
    found: list[str] = []
    workers = [threading.Thread(target=lambda: found.append(pack(pairs, tmp_path / "packed"))) for _ in range(3)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(timeout=300)
    assert found == [str(tmp_path / "packed")] * 3
    assert open_dataset(found[0]).num_samples == 24


def test_a_packing_that_was_cut_goes_on_and_one_of_other_files_begins_anew(
    masked: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("headrace.train.tasks.pack.SAMPLES_PER_SHARD", 5)
    pairs = find_pairs(str(masked / "test"), "", MaskRules(num_classes=4))
    whole = pack(pairs, tmp_path / "whole")
    real, read = type(pairs).sample, []

    def cut(self: Any, number: int) -> Any:
        read.append(number)
        if number == 12:
            raise KeyboardInterrupt
        return real(self, number)

    monkeypatch.setattr("headrace.train.tasks.pack.READ_AHEAD", 1)
    monkeypatch.setattr(type(pairs), "sample", cut)
    with pytest.raises(KeyboardInterrupt):
        pack(pairs, tmp_path / "cut")
    read.clear()
    monkeypatch.setattr(type(pairs), "sample", lambda self, number: read.append(number) or real(self, number))
    pack(pairs, tmp_path / "cut")
    assert min(read) == 10, "shards that are whole are not read again"
    names = sorted(path.relative_to(tmp_path / "cut") for path in (tmp_path / "cut").rglob("*") if path.is_file())
    assert all((tmp_path / "cut" / name).read_bytes() == (Path(whole) / name).read_bytes() for name in names)
    (tmp_path / "cut" / "dataset.json").unlink()
    other = find_pairs(str(masked / "few"), "", MaskRules(num_classes=4))
    assert open_dataset(pack(other, tmp_path / "cut")).num_samples == 48
