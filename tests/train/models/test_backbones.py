"""What a run file says of a backbone is what is built, or refused in one line."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from headrace.train.config import load_run
from headrace.train.loop import train
from headrace.train.models.backbones import BackboneConfig
from headrace.train.runs.metrics import read_metrics
from tests.train.objectives.contrastive.test_runs import file_of
from tests.train.objectives.test_clip_ranks import together
from tests.train.parallel.test_strategy import TRAIN


# Parameters of timm's models of the same name, without a classifier, less the positions, which are no parameters here.
@pytest.mark.parametrize(
    ("model", "millions"),
    [("Ti", 5.49), ("S", 21.59), ("B", 85.65), ("L", 303.10), ("H", 630.43), ("resnet18", 11.18), ("resnet50", 23.51)],
)
def test_sizes_are_the_published_ones(model: str, millions: float) -> None:
    with torch.device("meta"):
        config = BackboneConfig(model=model, **({"patch": 14} if model == "H" else {}))
        encoder = config.build(224)
    assert sum(parameter.numel() for parameter in encoder.parameters()) / 1e6 == pytest.approx(millions, abs=0.01)
    assert encoder.shape.heads == {"Ti": 3, "S": 12, "B": 12, "L": 16, "H": 16, "resnet18": 4, "resnet50": 16}[model]


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (
            {"model": "XL"},
            "unknown model 'XL'; known models: tiny, Ti, S, B, L, H, resnet18, resnet50, swinv2-mini, swinv2-t, "
            "swinv2-s, swinv2-b, swinv2-l, swinv2-h, swinv2-g",
        ),
        ({"model": "B", "window": 12}, "model B has no window; leave it out"),
        ({"model": "swinv2-b", "patch": 4}, "model swinv2-b has no patch; leave it out"),
        ({"model": "swinv2-b", "width": 100, "heads": 3}, "width 100 must be a multiple of heads (3)"),
        ({"model": "swinv2-b", "bias_windows": (12, 6)}, "bias_windows must be 4 numbers above 0, got [12, 6]"),
        ({"model": "resnet50", "patch_projection": "frozen"}, "model resnet50 has no patch_projection; leave it out"),
        ({"model": "B", "small_images": True}, "model B has no small_images; leave it out"),
        ({"patch_clip": 1.0}, "patch_clip is for patch_projection clipped, not learned"),
        ({"patch_clip": 0.0}, "patch_clip must be above 0 and finite, got 0.0"),
        ({"patch": 15}, "patch 15 does not divide image_size 32"),
    ],
)
def test_what_does_not_fit_is_refused(given: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        BackboneConfig(**given).build(32)


@pytest.mark.full
def test_a_spread_run_of_every_kind_is_the_run_of_one_process(run_file: Callable[..., Path], tmp_path: Path) -> None:
    """Losses and the exported weights and statistics: BatchNorm behind the patches, a clipped gradient, a ResNet."""
    small = {"model": "tiny", "patch": 8, "width": 16, "depth": 2, "heads": 2}
    kinds: dict[str, dict[str, Any]] = {
        "norm": small | {"pool": "mean", "patch_projection": "batch_norm", "positions": "learned"},
        "clip": small | {"patch_projection": "clipped", "patch_clip": 0.001},
        "resnet": {"model": "resnet18", "width": 8, "small_images": True},
    }
    files = {}
    for kind, backbone in kinds.items():
        objective = {"kind": "moco", "backbone": backbone, "hidden_width": 24, "feature_width": 8}
        files[kind] = file_of(run_file, "moco", kind, steps=3, validation=None, objective=objective)
        train(load_run(files[kind]))
    given = [[str(path), f"out={tmp_path / kind}-spread", "parallel.strategy=fsdp"] for kind, path in files.items()]
    together(2, TRAIN, *map(json.dumps, given))
    for kind in kinds:
        alone, spread = tmp_path / kind, tmp_path / f"{kind}-spread"
        losses = [[line["loss"] for line in read_metrics(out / "metrics.jsonl")] for out in (alone, spread)]
        assert losses[1] == pytest.approx(losses[0], rel=1e-4)
        one, two = (load_file(out / "model.safetensors") for out in (alone, spread))
        for name, tensor in one.items():
            torch.testing.assert_close(two[name], tensor, atol=1e-4, rtol=1e-3, msg=f"{kind}: {name}")
