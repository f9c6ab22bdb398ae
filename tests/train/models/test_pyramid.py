"""Maps lie over the picture as they say, and the pyramids are the published ones."""

import pytest
import torch
from torch import Tensor

from headrace.train.models.backbones import BackboneConfig
from headrace.train.models.encoder import FeatureMaps, TunableEncoder
from headrace.train.models.pyramid import SimplePyramid, TopDownPyramid, build_pyramid
from headrace.train.models.vit import Vit, VitConfig

SIDE = 64


def trunk_of(kind: str) -> TunableEncoder:
    torch.manual_seed(0)
    small = {"model": "tiny", "patch": 16, "width": 16, "depth": 2, "heads": 2}
    if kind == "aim":
        return Vit(VitConfig(image_size=SIDE, patch=16, width=16, depth=2, heads=2))
    given = {"vit": small, "mean": small | {"pool": "mean"}, "resnet": {"model": "resnet18", "width": 8}}
    encoder = BackboneConfig(**given[kind]).build(SIDE)  # type: ignore[arg-type]
    assert isinstance(encoder, TunableEncoder)
    return encoder


@pytest.mark.parametrize("kind", ["aim", "vit", "mean", "resnet"])
def test_maps_are_as_strides_and_channels_say_and_every_weight_learns(kind: str) -> None:
    trunk = trunk_of(kind)
    assert isinstance(trunk, FeatureMaps)
    maps = trunk.feature_maps(torch.randn(2, 3, SIDE, SIDE))
    expected = zip(trunk.feature_strides, trunk.feature_channels, strict=True)
    assert [tuple(one.shape) for one in maps] == [(2, width, SIDE // s, SIDE // s) for s, width in expected]
    pyramid = build_pyramid(trunk, width=8)
    finer = pyramid(maps)
    assert pyramid.strides == (4, 8, 16, 32)
    assert [tuple(one.shape) for one in finer] == [(2, 8, SIDE // stride, SIDE // stride) for stride in (4, 8, 16, 32)]
    sum(one.square().sum() for one in finer).backward()
    lacking = [name for name, weight in (*trunk.named_parameters(), *pyramid.named_parameters()) if weight.grad is None]
    assert lacking == []


@torch.no_grad()
@pytest.mark.parametrize("kind", ["aim", "vit"])
def test_a_map_is_the_tokens_row_by_row(kind: str) -> None:
    trunk = trunk_of(kind)
    images = torch.randn(1, 3, SIDE, SIDE)
    tokens: Tensor = trunk(images)[0, -16:]
    assert isinstance(trunk, FeatureMaps)
    (only,) = trunk.feature_maps(images)
    assert torch.equal(only[0, :, 1, 3], tokens[4 + 3])


@torch.no_grad()
def test_the_feature_pyramid_network_is_torchvisions() -> None:
    ops = pytest.importorskip("torchvision.ops")
    channels = (8, 16, 32, 64)
    own, other = TopDownPyramid(channels, 12, strides=(4, 8, 16, 32)), ops.FeaturePyramidNetwork(channels, 12)
    for level in range(4):
        other.inner_blocks[level][0].load_state_dict(own.lateral[level].state_dict())
        other.layer_blocks[level][0].load_state_dict(own.output[level].state_dict())
    maps = [torch.randn(1, width, 40 >> level, 24 >> level) for level, width in enumerate(channels)]
    published = other(dict(enumerate(maps))).values()
    assert all(torch.equal(a, b) for a, b in zip(own(maps), published, strict=True))


@torch.no_grad()
def test_the_simple_pyramid_keeps_pictures_apart_and_takes_odd_grids() -> None:
    pyramid = SimplePyramid(16, 8, stride=16)
    map_BCHW = torch.randn(2, 16, 7, 7)
    both = pyramid([map_BCHW])
    assert [one.shape[-1] for one in both] == [28, 14, 7, 4]
    alone = pyramid([map_BCHW[1:]])
    assert all(torch.allclose(a[1:], b, atol=1e-6) for a, b in zip(both, alone, strict=True))
