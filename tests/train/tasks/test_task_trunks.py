"""Every kind of trunk carries the heads of segmentation and detection, and every weight learns."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from headrace.config import build_config
from headrace.pipeline import Mixture, Source, open_stream
from headrace.train.objectives.build import build_objective
from headrace.train.objectives.dense.detect import DetectConfig
from headrace.train.objectives.dense.masks import MaskRules
from headrace.train.objectives.dense.segment import SegmentConfig
from headrace.train.objectives.objective import Objective
from headrace.train.tasks.coco import read_coco
from headrace.train.tasks.pack import pack
from headrace.train.tasks.pairs import find_pairs

VIT = {"model": "tiny", "patch": 16, "width": 16, "depth": 2, "heads": 2}
OF: dict[str, dict[str, Any]] = {
    "aim": {"kind": "aim", **VIT, "head_width": 16, "head_depth": 1},
    "class-token": {"kind": "simclr", "backbone": VIT},
    "swin": {"kind": "simmim", "backbone": {"model": "swinv2-s", "width": 16}},
    "resnet": {"kind": "simclr", "backbone": {"model": "resnet18", "width": 8}},
}
HEADS: dict[str, dict[str, Any]] = {
    "upernet": {"kind": "segment", "num_classes": 4, "width": 16},
    "linear": {"kind": "segment", "num_classes": 4, "head": "linear"},
    "detect": {"kind": "detect", "num_classes": 3, "width": 16, "anchors": 32, "regions": 16, "proposals": 50},
}


@pytest.fixture(scope="module")
def packed(masked: Path, boxed: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Datasets of the tests: of masks and of boxes."""
    root = tmp_path_factory.mktemp("packed")
    coco = read_coco(f"{boxed}/test/instances.json", f"{boxed}/test/images")
    masks = find_pairs(str(masked / "test"), "", MaskRules(num_classes=4))
    return {"segment": pack(masks, root / "masks"), "detect": pack(coco, root / "boxes")}


def built(trunk: str, head: str) -> Objective:
    config = {"segment": SegmentConfig, "detect": DetectConfig}[HEADS[head]["kind"]]
    return build_objective(build_config(config, {"of": OF[trunk], **HEADS[head]}), image_size=64, seed=2)


@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize("trunk", OF)
def test_every_weight_of_every_trunk_learns(trunk: str, head: str, packed: dict[str, str]) -> None:
    objective = built(trunk, head)
    source = Source(name="a", url=packed[HEADS[head]["kind"]])
    mixture = Mixture(lanes=1, image_size=64, sources=(source,))
    with open_stream(mixture, global_batch=3, columns=objective.columns, map=objective.sample_map(mixture)) as stream:
        batch = next(stream)
    with torch.no_grad():
        for weight in objective.parameters():
            if not weight.any():  # norms that begin at 0 keep what lies before them from learning in the first step
                weight.fill_(0.1)
    loss, report = objective(batch)
    loss.backward()
    assert np.isfinite(loss.item())
    assert set(report) == set(objective.reports)
    trained = {name: weight.grad for name, weight in objective.named_parameters() if weight.requires_grad}
    assert [name for name, gradient in trained.items() if gradient is None] == []
    # No region of so small a picture may be of the coarsest scale.
    read = {name: one for name, one in trained.items() if head != "detect" or not name.startswith("pyramid.")}
    still = [name for name, gradient in read.items() if gradient is not None and not gradient.any()]
    assert still == [], "what nothing reads learns nothing"
    assert objective.train_flops_per_image > 0


def test_heads_that_cannot_be_are_refused() -> None:
    for change, message in (
        ({"num_classes": 1}, "num_classes must be 2"),
        ({"width": 4}, "width must be at least 8"),
        ({"drop_path": 1.0}, "drop_path in"),
    ):
        with pytest.raises(ValueError, match=message):
            build_config(SegmentConfig, {"of": OF["aim"], **HEADS["upernet"], **change})
    config = build_config(SegmentConfig, {"of": OF["resnet"], **HEADS["linear"], "drop_path": 0.1})
    with pytest.raises(ValueError, match="a ResNet has no `drop_path`"):
        build_objective(config, image_size=64, seed=0)
    with pytest.raises(ValueError, match="unknown"):
        build_config(DetectConfig, {"of": {"of": OF["aim"], **HEADS["linear"]}, **HEADS["detect"]})
