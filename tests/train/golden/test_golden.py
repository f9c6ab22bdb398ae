"""What we compute is what slow code of its own computed once: AIM, its probe, the losses of CLIP and SigLIP, AdamW.

`make.py` beside this file says how, in numpy alone; golden.json is what it printed.
"""

import importlib.util
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from headrace.pipeline import Batch
from headrace.train.models.heads import AttentiveProbes
from headrace.train.models.vit import Vit, VitConfig, prefix_attention
from headrace.train.objectives.aim import Aim, AimConfig
from headrace.train.objectives.pair_loss import Logits, PairLoss, Pairs, pair_losses
from headrace.train.optim.adamw import AdamWConfig
from headrace.train.parallel.ranks import ALONE
from headrace.train.pixels import IMAGENET_MEAN, IMAGENET_STD, Normalise

HERE = Path(__file__).parent
# Positions are computed once in float64 and kept as float32.
TOLERANCE = 2e-7


def _module() -> Any:
    spec = importlib.util.spec_from_file_location("make_golden", HERE / "make.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


make = _module()
GOLDEN = json.loads((HERE / "golden.json").read_text())


def tensors(arrays: dict[str, Any], prefix: str = "") -> dict[str, Tensor]:
    return {prefix + name: torch.from_numpy(np.asarray(array)) for name, array in arrays.items()}


class Given(Normalise):
    """Pixels that are normalised already."""

    def __init__(self, images: Tensor) -> None:
        super().__init__(IMAGENET_MEAN, IMAGENET_STD)
        self.given = images

    def forward(self, _images: Any) -> Tensor:
        return self.given


def close(found: Tensor, wanted: Any, tolerance: float = TOLERANCE) -> bool:
    return bool((found.double() - torch.tensor(wanted, dtype=torch.float64)).abs().max() < tolerance)


@pytest.fixture
def trunk() -> Vit:
    shape = VitConfig(image_size=make.SIDE, patch=make.PATCH, width=make.WIDTH, depth=make.BLOCKS, heads=make.HEADS)
    trunk = Vit(shape).double().eval()
    trunk.load_state_dict(tensors(make.trunk_weights()), strict=True)
    return trunk


def test_the_numbers_are_what_the_slow_code_prints() -> None:
    again = make.golden()
    assert again.keys() == GOLDEN.keys()
    for name, value in again.items():
        parts = zip(value.values(), GOLDEN[name].values(), strict=True) if name == "adamw" else [(value, GOLDEN[name])]
        assert all(np.allclose(one, other, rtol=0, atol=1e-8) for one, other in parts), name


@torch.no_grad()
def test_the_trunk_everywhere_and_behind_a_prefix(trunk: Vit) -> None:
    images = torch.from_numpy(make.images())
    assert close(trunk(images)[:, ::5], GOLDEN["trunk"])
    attend = prefix_attention(torch.tensor(make.PREFIXES), make.PATCHES)
    assert close(trunk(images, attend)[0, ::5], GOLDEN["trunk_with_prefix"])
    assert close(trunk.float()(images.float())[:, ::5], GOLDEN["trunk"], 2e-5)


@pytest.mark.parametrize("identity_residual", [False, True], ids=["mlp", "identity residual"])
def test_the_loss_of_aim(make_batch: Callable[..., Batch], identity_residual: bool) -> None:
    config = AimConfig(
        kind="aim", model="tiny", patch=make.PATCH, width=make.WIDTH, depth=make.BLOCKS, heads=make.HEADS,
        head_width=make.HEAD_WIDTH, head_depth=make.HEAD_BLOCKS, head_identity_residual=identity_residual,
    )  # fmt: skip
    objective = config.build(image_size=make.SIDE, seed=0).double()
    assert isinstance(objective, Aim)
    head = make.head_weights(identity_residual=identity_residual)
    objective.load_state_dict(tensors(make.trunk_weights(), "encoder.") | tensors(head, "head."), strict=True)
    images = torch.from_numpy(make.images())
    objective.normalise = Given(images)
    objective.prefixes = lambda _: np.array(make.PREFIXES)  # type: ignore[method-assign]
    batch = make_batch(2, side=make.SIDE)
    loss, _ = objective(batch)
    name = "aim_loss_identity_residual" if identity_residual else "aim_loss"
    assert close(loss.detach() / objective.num_terms(batch), GOLDEN[name])


@torch.no_grad()
def test_the_probe_in_eval_mode(trunk: Vit) -> None:
    weights = tensors(make.probe_weights())
    probes = AttentiveProbes(width=make.WIDTH, heads=make.HEADS, classes=make.CLASSES, num_probes=1).double().eval()
    for parameter, name in zip(probes.parameters_of(0), ("cls_token", "k", "v", "linear"), strict=True):
        parameter.copy_(weights[name])
    assert probes.norm.running_mean is not None
    assert probes.norm.running_var is not None
    probes.norm.running_mean.copy_(weights["mean"])
    probes.norm.running_var.copy_(weights["variance"])
    mean = torch.stack(list(trunk.block_outputs(torch.from_numpy(make.images())))[-6:]).mean(dim=0)
    assert close(probes(mean)[0], GOLDEN["probe_logits"])


@pytest.mark.parametrize(
    ("loss", "scale", "bias", "name"),
    [("softmax", 2.6593, None, "clip_loss"), ("sigmoid", math.log(10), -10.0, "siglip_loss")],
)
def test_the_losses_of_pairs(loss: PairLoss, scale: float, bias: float | None, name: str) -> None:
    image, text = (functional.normalize(torch.from_numpy(features), dim=1) for features in make.pairs())
    own = Pairs(image, text, torch.ones(len(image), dtype=torch.float64))
    logits = Logits(
        scale=torch.tensor([scale], dtype=torch.float64),
        bias=None if bias is None else torch.tensor([bias], dtype=torch.float64),
    )
    found = pair_losses(own, logits, loss=loss, ranks=ALONE)
    assert close(found.loss_B.mean(), GOLDEN[name], 1e-9)


def test_adamw_with_its_exclusions_and_the_clipped_norm() -> None:
    module = nn.Module()
    module.matrix = nn.Parameter(torch.from_numpy(make.waves("matrix", 4, 3, size=1.0)))
    # A bias by name: what is not decayed is told by names and dimensions.
    module.bias = nn.Parameter(torch.from_numpy(make.waves("vector", 5, size=1.0)))
    optimizer = AdamWConfig(lr=1e-2, weight_decay=0.05, betas=(0.9, 0.95), eps=1e-8).build(module)
    for step in range(1, 21):
        for parameter, name in ((module.matrix, "matrix"), (module.bias, "vector")):
            parameter.grad = torch.from_numpy(make.waves(f"{name} {step}", *parameter.shape, size=1.0))
        torch.nn.utils.clip_grad_norm_(module.parameters(), 1.0)
        optimizer.step()
    assert close(module.matrix.detach(), GOLDEN["adamw"]["matrix"], 1e-9)
    assert close(module.bias.detach(), GOLDEN["adamw"]["vector"], 1e-9)
