"""Projectors and predictors have the layers of the papers' codes, in their order and under their names."""

import pytest
from torch import nn

from headrace.train.models import mlp_heads
from headrace.train.models.backbones import BackboneConfig
from headrace.train.models.mlp_heads import MlpHead

WIDTHS = {"hidden": 64, "out": 16}


def described(head: MlpHead) -> str:
    """Linear layers as in>out (+ for a bias), norms as N (n without affine), ReLUs as R."""
    words = []
    for layer in head:
        if isinstance(layer, nn.Linear):
            words.append(f"{layer.in_features}>{layer.out_features}" + "+" * (layer.bias is not None))
        else:
            words.append("R" if isinstance(layer, nn.ReLU) else "N" if layer.affine else "n")
    return " ".join(words)


@pytest.mark.parametrize(
    ("name", "transformer", "resnet"),
    [
        ("moco_projector", "48>64 N R 64>64 N R 64>16 n", "2048>64 N R 64>16 n"),
        ("moco_predictor", "16>64 N R 64>16 n", "16>64 N R 64>16"),
        ("simclr_projector", "48>64 N R 64>16 N", "2048>64 N R 64>16 N"),
        ("byol_projector", "48>64 N R 64>16", "2048>64 N R 64>16"),
        ("swav_projector", "48>64 N R 64>16+", "2048>64 N R 64>16+"),
    ],
)
def test_heads_are_those_of_the_codes(name: str, transformer: str, resnet: str) -> None:
    vit = BackboneConfig(model="tiny", patch=4, width=48, depth=1, heads=2).build(8)
    build = getattr(mlp_heads, name)
    assert described(build(vit, **WIDTHS)) == transformer
    assert described(build(BackboneConfig(model="resnet50").build(32), **WIDTHS)) == resnet


def test_byols_predictor_has_the_form_of_its_projector() -> None:
    assert described(mlp_heads.byol_predictor(**WIDTHS)) == "16>64 N R 64>16"
