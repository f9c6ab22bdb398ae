"""An objective of another package: installed, listed, trained, exported and probed, with no line changed here."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from safetensors import safe_open

from headrace.train.runs.metrics import read_metrics

MODULE = '''
from dataclasses import dataclass
from typing import Literal
from torch import nn
from headrace.extensions import Extension
from headrace.train.models.vit import Vit, VitConfig
from headrace.train.objectives.objective import Objective
from headrace.train.pixels import IMAGENET_MEAN, IMAGENET_STD, Normalise


@dataclass(frozen=True, kw_only=True, slots=True)
class ColourConfig:
    """Colour: predict the mean colour of each picture."""

    kind: Literal["colour"]
    """The tag."""
    width: int = 16
    """Channels."""

    def build(self, *, image_size, seed):
        return Colour(self, image_size)


class Colour(Objective):
    released_prefix = "backbone."
    reports = ("squares",)

    def __init__(self, config, image_size):
        super().__init__()
        self.normalise = Normalise(IMAGENET_MEAN, IMAGENET_STD)
        self.backbone = Vit(VitConfig(image_size=image_size, patch=8, width=config.width, depth=1, heads=2))
        self.out = nn.Linear(config.width, 3)

    @property
    def trunk(self):
        return self.backbone

    @property
    def train_flops_per_image(self):
        return 1.0

    def num_terms(self, batch):
        return int(batch.valid.sum())

    def forward(self, batch):
        images = self.normalise(batch.images[batch.valid])
        errors = self.out(self.backbone(images).mean(dim=1)) - images.mean(dim=(2, 3))
        loss = errors.square().sum()
        return loss, {"squares": loss.detach() / len(images)}

    def export_beside(self, folder, tensors):
        (folder / "colour.txt").write_text(f"{len(tensors)} tensors")


EXTENSION = Extension(objectives={"colour": ColourConfig})
'''


@pytest.fixture
def headrace(tmp_path: Path) -> Callable[..., str]:
    """Return a function that runs headrace where the package is installed, and gives its output."""
    info = tmp_path / "site" / "toy-1.0.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: toy\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[headrace.extensions]\ntoy = toy_headrace:EXTENSION\n")
    (tmp_path / "site" / "toy_headrace.py").write_text(MODULE)
    paths = [str(tmp_path / "site"), *filter(None, [os.environ.get("PYTHONPATH")])]

    def run(*arguments: str, code: int = 0) -> str:
        done = subprocess.run(
            [sys.executable, "-c", "from headrace.cli.app import main; main()", *arguments],
            capture_output=True, text=True, timeout=240, check=False,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(paths), "OMP_NUM_THREADS": "1"},
        )  # fmt: skip
        assert done.returncode == code, done.stderr
        return done.stdout + done.stderr

    return run


def test_an_objective_of_another_package_trains_exports_and_is_probed(
    headrace: Callable[..., str], run_file: Callable[..., Path], pictures: str
) -> None:
    assert "colour      Colour: predict the mean colour of each picture." in headrace("objectives")
    path = run_file(objective={"kind": "colour"}, steps=2)
    out = path.parent / "run"
    assert "objective: colour, images of 16 pixels" in headrace("train", str(path), "--dry-run")
    headrace("train", str(path))
    last = read_metrics(out / "metrics.jsonl")[-1]
    assert last["event"] == "validation"
    assert last["squares"] == pytest.approx(last["loss"])
    with safe_open(out / "model.safetensors", "pt") as file:
        assert {"trunk.blocks.0.attn.qkv.weight", "out.weight"} <= set(file.keys())
        assert not any(name.startswith("backbone.") for name in file.keys())  # noqa: SIM118  it is no mapping
        count = len(file.keys())
    assert (out / "colour.txt").read_text() == f"{count} tensors"
    for place in (out, out / "model.safetensors"):
        result = headrace("probe", str(place), "--train", pictures, "--test", pictures, "--epochs", "1")
        assert json.loads(result)["blocks"] == [0]
    assert "unknown key 'objective.widht'; did you mean 'width'? known keys here: kind, width" in headrace(
        "train", str(path), "objective.widht=3", code=1
    )
