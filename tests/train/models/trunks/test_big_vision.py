"""The shapes of "Scaling Vision Transformers": published counts, timm's names and outputs, first weights."""

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from headrace.train.models.trunks.big_vision import SHAPES, BigVisionConfig
from headrace.train.models.trunks.standard_vit import StandardVit, StandardVitConfig
from headrace.train.models.vit import VitConfig
from headrace.train.objectives.build import build_objective
from headrace.train.objectives.objective import released_names
from headrace.train.objectives.supervised import Supervised, SupervisedConfig
from headrace.train.runs.formats import export_weights
from headrace.train.runs.initial import initial_weights
from headrace.train.runs.weights import ModelRecord, Weights

# Table 2 of arXiv:2106.04560: millions of parameters without pooling and classes, GFLOPs of 224 x 224 pixels forward.
PUBLISHED = {
    "s/28": (5.4, 0.7),
    "s/16": (5.0, 2.2),
    "S/32": (22, 2.3),
    "Ti/16": (5.5, 2.5),
    "B/32": (87, 8.7),
    "S/16": (22, 9.2),
    "B/28": (87, 11.3),
    "B/16": (86, 35.1),
    "L/16": (303, 122.9),
    "g/14": (1011, 533.1),
    "G/14": (1843, 965.3),
}
# Of timm's entries that hold big_vision's weights with attention pooling, at 224 pixels.
OF_TIMM = {"B/16": "vit_base_patch16_siglip_224", "L/16": "vit_large_patch16_siglip_256"}


def supervised(variant: str = "", *, side: int = 224, num_classes: int = 2, **changes: Any) -> Supervised:
    model, _, patch = variant.partition("/")
    given: dict[str, Any] = {"model": model, "patch": int(patch)} if variant else {"patch": 8, "width": 24, "depth": 2}
    given |= {} if variant else {"heads": 3}
    vit = BigVisionConfig(**changes.pop("vit", {}))
    config = SupervisedConfig(kind="supervised", num_classes=num_classes, vit=vit, pixels="centred", **given, **changes)
    objective = build_objective(config, image_size=side, seed=3)
    assert isinstance(objective, Supervised)
    return objective


def counted(width: int, depth: int, mlp: int, *, tokens: int, patch: int, pool: str) -> int:
    """Return the parameters of big_vision's modules, added up by hand."""
    attention, inside, norm = 4 * (width * width + width), 2 * width * mlp + mlp + width, 2 * width
    total = 3 * patch * patch * width + width + tokens * width + depth * (attention + inside + 2 * norm) + norm
    return total + {"mean": 0, "class_token": width, "map": width + attention + norm + inside}[pool]


@pytest.mark.parametrize("variant", PUBLISHED)
def test_parameters_are_big_visions_and_the_papers(variant: str) -> None:
    model, _, patch = variant.partition("/")
    shape, tokens = SHAPES[model], (224 // int(patch)) ** 2
    for pool in ("mean", "class_token", "map"):
        with torch.device("meta"):
            objective = supervised(variant, vit={"pool": pool})
        found = sum(parameter.numel() for parameter in objective.encoder.parameters())
        expected = counted(shape.width, shape.depth, shape.mlp, tokens=tokens, patch=int(patch), pool=pool)
        # Here the class token has a position, as in ViT's first code and timm's; big_vision's has none.
        assert found == expected + (shape.width if pool == "class_token" else 0)
        if pool == "mean":
            millions, gigaflops = PUBLISHED[variant]
            assert found / 1e6 == pytest.approx(millions, abs=0.6 if millions > 10 else 0.05)
            assert objective.train_flops_per_image / 3e9 == pytest.approx(gigaflops, rel=0.01, abs=0.06)


@pytest.mark.parametrize("variant", OF_TIMM)
def test_parameters_are_those_of_timms_entries(variant: str) -> None:
    import timm

    with torch.device("meta"):
        theirs = timm.create_model(OF_TIMM[variant])
        side = theirs.patch_embed.img_size[0]
        ours = supervised(variant, side=side).encoder
    shapes = [{name: x.shape for name, x in model.state_dict().items()} for model in (ours, theirs)]
    assert shapes[0] == shapes[1]


@pytest.mark.parametrize("model", ["g", "G"])
def test_the_giants_are_timms_giants(model: str) -> None:
    """Theirs have a class token."""
    import timm

    with torch.device("meta"):
        name = {"g": "vit_giant_patch14_224", "G": "vit_gigantic_patch14_224"}[model]
        theirs = timm.create_model(name, num_classes=0)
        ours = supervised(f"{model}/14", vit={"pool": "class_token"}).encoder
    shapes = [{name: x.shape for name, x in model.state_dict().items()} for model in (ours, theirs)]
    assert shapes[0] == shapes[1]


def images(side: int = 16) -> Tensor:
    return torch.randn(3, 3, side, side, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize(
    "vit", [{}, {"pool": "mean"}, {"pool": "class_token", "gelu": "exact"}, {"bias": False, "mlp_width": 44}]
)
@torch.no_grad()
def test_timm_gives_the_same_logits_and_its_file_comes_back(vit: dict[str, Any], tmp_path: Path) -> None:
    import timm

    objective = supervised(side=16, num_classes=3, vit=vit)
    for parameter in objective.parameters():
        parameter.add_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(2)) * 0.05)
    record = ModelRecord(objective=objective.config, image_size=16, seed=3)
    tensors = {name: x.detach() for name, x in released_names(objective, objective.state_dict()).items()}
    export_weights(Weights(path=tmp_path, model=record, step=1, tensors=tensors), tmp_path, form="timm")
    theirs = timm.create_model(f"local-dir:{tmp_path}", pretrained=True).eval()
    theirs.load_state_dict(load_file(tmp_path / "model.safetensors"), strict=True)
    expected = objective.head(objective.encoder.pooled(images()))
    assert (theirs(images()) - expected).abs().max() < 2e-6
    assert list(timm.data.resolve_model_data_config(theirs)["mean"]) == [0.5, 0.5, 0.5]
    again = supervised(side=16, num_classes=3, vit=vit)
    initial = initial_weights(again, tmp_path, {})
    assert not initial.left_out
    initial.load_into(again)
    assert torch.equal(again.head(again.encoder.pooled(images())), expected)


def test_weights_begin_as_big_visions() -> None:
    encoder = supervised(side=64, vit={"pool": "class_token"}).encoder
    assert isinstance(encoder, StandardVit)
    positions, kernel = encoder.pos_embed.detach(), encoder.patch_embed.proj.weight.detach()
    assert float(positions[:, 1:].std()) == pytest.approx(1 / math.sqrt(24), rel=0.06)
    assert not positions[:, 0].any()
    assert not encoder.cls_token.any()
    deviation = 1 / math.sqrt(3 * 8 * 8)
    assert float(kernel.std()) == pytest.approx(deviation, rel=0.03)
    assert float(kernel.abs().max()) <= 2 * deviation / 0.8796
    biases = torch.cat(
        [p.detach() for name, p in encoder.named_parameters() if name.endswith(("fc1.bias", "fc2.bias"))]
    )
    assert float(biases.std()) == pytest.approx(1e-6, rel=0.15)
    for name, parameter in encoder.named_parameters():
        if name.endswith(("qkv.bias", "attn.proj.bias", "patch_embed.proj.bias")):
            assert not parameter.any(), name


def test_a_shape_without_the_new_options_is_named_as_it_was() -> None:
    """Files of features hold the name: those from before must be found again."""
    grid = VitConfig(image_size=16, patch=4, width=24, depth=2, heads=3)
    plain = "patch_projection='learned', patch_clip=inf)"
    assert repr(StandardVitConfig(grid=grid)).endswith(plain)
    assert repr(StandardVitConfig(grid=grid, gelu="tanh")).endswith("patch_clip=inf, gelu='tanh')")
    assert repr(StandardVitConfig(grid=grid)).startswith(f"StandardVitConfig(grid={grid!r}, pool='class_token'")
