"""Parts of a batch hold every row of everything, all views too; a decoder of a package feeds a run two views."""

import dataclasses
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from headrace.pipeline import Batch, Mixture, Source, View
from headrace.train.batches import micro_batches
from headrace.train.evaluate.passes import PLAIN, same_reading
from headrace.train.runs.metrics import read_metrics

MODULE = '''
import dataclasses
from typing import Literal

import numpy as np
import torch
from torch import nn

from headrace.extensions import Extension
from headrace.pipeline.decode.turbo import Turbo
from headrace.train.objectives.objective import Objective
from headrace.train.pixels import IMAGENET_MEAN, IMAGENET_STD, Normalise


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class PairConfig:
    """Pair: the mean colours of two views of a picture, brought together."""

    kind: Literal["pair"]
    """The tag."""

    def build(self, *, image_size, seed):
        return Pair()


class Pair(Objective):
    def __init__(self):
        super().__init__()
        self.normalise = Normalise(IMAGENET_MEAN, IMAGENET_STD)
        self.out = nn.Linear(3, 4)

    @property
    def train_flops_per_image(self):
        return 1.0

    def num_terms(self, batch):
        return int(batch.valid.sum())

    def forward(self, batch):
        one, two = (self.out(self.normalise(view[batch.valid]).mean(dim=(2, 3))) for view in batch.views)
        assert [view.shape[1] for view in batch.views] == [16, 8]
        return (one - two).square().sum(), {}


class WholeBatches(Turbo):
    """The pixels of turbo, a whole batch a call."""

    def __init__(self, mixture):
        super().__init__(mixture)
        self.items_per_call, self.calls_at_once = 1000, 1

    def decode(self, items, windows_per_view, out):
        assert len(items) in (16, 45 % 16), len(items)  # 45 samples are validated
        return super().decode(items, windows_per_view, out)


EXTENSION = Extension(objectives={"pair": PairConfig}, decoders={"whole": WholeBatches})
'''


@pytest.mark.parametrize("images", [1, 3, 5, 8])
def test_parts_hold_every_row_of_every_view_once(images: int) -> None:
    rows = np.arange(8)
    batch = Batch(
        images=np.broadcast_to(rows[:, None, None, None], (8, 4, 4, 3)).astype(np.uint8),
        other_views=(np.broadcast_to(rows[:, None, None, None] + 100, (8, 2, 2, 3)).astype(np.uint8),),
        columns={"label": rows, "caption": [str(row) for row in rows]},
        position=rows + 1000,
        source=rows.astype(np.int32),
        key=[f"{row}" for row in rows],
        valid=rows % 3 > 0,
    )
    parts = micro_batches(batch, images)
    assert [len(part.position) for part in parts][:-1] == [images] * (len(parts) - 1)
    for number in range(2):
        assert np.array_equal(np.concatenate([part.views[number] for part in parts]), batch.views[number])
    assert all(part.views[0] is part.images for part in parts)
    assert [key for part in parts for key in part.key] == batch.key
    assert np.concatenate([part.position for part in parts]).tolist() == batch.position.tolist()
    assert np.concatenate([part.valid for part in parts]).tolist() == batch.valid.tolist()


def test_parts_share_the_memory_of_arrays_and_of_tensors(make_batch: Callable[..., Batch]) -> None:
    batch = make_batch(8)
    tensors = dataclasses.replace(batch, images=torch.from_numpy(batch.images), columns={"x": torch.arange(8)})
    for number, part in enumerate(tensors.split(3)):
        assert part.images.data_ptr() == tensors.images[3 * number].data_ptr()
        assert part.columns["x"].tolist() == list(range(8))[3 * number : 3 * number + 3]
    for part in batch.split(5):
        assert np.shares_memory(part.images, batch.images)
        assert np.shares_memory(part.position, batch.position)
        assert np.shares_memory(part.columns["label"], batch.columns["label"])


def test_validation_sees_plain_pictures_unless_the_loss_compares_views() -> None:
    mixture = Mixture(sources=(Source(name="a", url="b"),), quarantine="damaged")
    plain = same_reading(mixture, "c")
    assert (plain.augment, plain.views, plain.sources[0].url, plain.quarantine) == (PLAIN, (), "c", "")
    views = (View(count=2),)
    compared = same_reading(Mixture(sources=mixture.sources, views=views), "c")
    assert (compared.augment, compared.views, compared.sources[0].url) == (mixture.augment, views, "c")


def test_a_decoder_of_a_package_feeds_a_run_two_views(run_file: Callable[..., Path], tmp_path: Path) -> None:
    info = tmp_path / "site" / "toy-1.0.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: toy\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[headrace.extensions]\ntoy = toy_views:EXTENSION\n")
    (tmp_path / "site" / "toy_views.py").write_text(MODULE)
    paths = os.pathsep.join([str(tmp_path / "site"), *filter(None, [os.environ.get("PYTHONPATH")])])
    path = run_file(objective={"kind": "pair"}, steps=4)
    program = (
        "import sys\nfrom headrace.train.config import load_run\nfrom headrace.train.loop import train\n"
        "for more in sys.argv[2:]:\n"
        "    train(load_run(sys.argv[1], ['mixture.views=[{}, {image_size: 8}]', *more.split()]))\n"
    )
    runs = {
        "turbo": f"out={tmp_path}/turbo",
        "whole": f"out={tmp_path}/whole mixture.decoder=whole",
        "parts": f"out={tmp_path}/parts mixture.decoder=whole images_per_micro_batch=5",
    }
    done = subprocess.run(
        [sys.executable, "-c", program, str(path), *runs.values()],
        capture_output=True, text=True, timeout=240, check=False,
        env={**os.environ, "PYTHONPATH": paths, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    losses = {}
    for name in runs:
        losses[name] = [line["loss"] for line in read_metrics(tmp_path / name / "metrics.jsonl")]
        state = json.loads((tmp_path / name / "checkpoints" / "00000004" / "state.json").read_text())
        assert state["stream"]["decoder"] == ("turbo" if name == "turbo" else "whole")
    assert losses["turbo"] == losses["whole"]
    assert losses["parts"] == pytest.approx(losses["whole"])
    assert min(losses["whole"]) > 0
