"""Drawn pictures with masks and boxes, and a trunk that has learnt some of them."""

from pathlib import Path

import pytest

from headrace.config import build_config
from headrace.demo.truth_files import write_coco, write_masked
from headrace.train.config import RunConfig
from headrace.train.loop import train
from headrace.train.objectives.dense.masks import MaskRules
from headrace.train.tasks.pack import pack
from headrace.train.tasks.pairs import find_pairs
from tests.train.tasks.drawn import TRUNK


@pytest.fixture(scope="session")
def masked(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folders few and test, each with images/ and masks/."""
    root = tmp_path_factory.mktemp("masked")
    for name, seed, count in (("few", 11, 48), ("test", 2, 24)):
        write_masked(root / name, seed=seed, count=count)
    return root


@pytest.fixture(scope="session")
def boxed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folders train and test, each with images/ and instances.json."""
    root = tmp_path_factory.mktemp("boxed")
    for name, seed, count in (("train", 3, 64), ("test", 4, 24)):
        write_coco(root / name, seed=seed, count=count)
    return root


def trunk_run(folder: Path, *, steps: int, pictures: int) -> Path:
    """Return a run whose trunk has learnt for so many steps to tell the colours of drawn things."""
    write_masked(folder / "more", seed=1, count=pictures)
    dataset = pack(find_pairs(str(folder / "more"), "", MaskRules(num_classes=4)), folder / "packed")
    content = {
        "out": str(folder / "run"),
        "seed": 0,
        "steps": steps,
        "global_batch": 16,
        "mixture": {"lanes": 4, "image_size": 64, "sources": [{"name": "more", "url": dataset}]},
        "objective": {"kind": "segment", "of": TRUNK, "num_classes": 4, "head": "linear"},
        "optimizer": {"lr": 0.003},
        "checkpoint": {"every": steps},
        "device": "cpu",
    }
    return train(build_config(RunConfig, content)).out


@pytest.fixture(scope="session")
def young(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of one step: weights of the form that tests of commands need."""
    return trunk_run(tmp_path_factory.mktemp("young"), steps=1, pictures=16)


@pytest.fixture(scope="session")
def knowing(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of some seconds: a trunk that is worth to begin with."""
    return trunk_run(tmp_path_factory.mktemp("knowing"), steps=150, pictures=160)
