"""ResNets compute what torchvision's do, and begin as theirs."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from headrace.train.evaluate.trunk import means_of_blocks, read_layers
from headrace.train.execution import Execution
from headrace.train.models.backbones import BackboneConfig
from headrace.train.models.encoder import Encoder


def network(side: int = 32, **more: Any) -> Encoder:
    torch.manual_seed(0)
    return BackboneConfig(**{"model": "resnet18"} | more).build(side)


def images(side: int = 32, number: int = 2) -> Tensor:
    return torch.randn(number, 3, side, side, generator=torch.Generator().manual_seed(1))


def torchvisions(name: str, *, small_images: bool = False) -> nn.Module:
    import torchvision

    model = getattr(torchvision.models, name)()
    model.fc = nn.Identity()
    if small_images:
        model.conv1, model.maxpool = nn.Conv2d(3, 64, 3, padding=1, bias=False), nn.Identity()
    return model


@pytest.mark.parametrize(
    ("name", "small_images", "side"), [("resnet50", False, 64), ("resnet18", False, 48), ("resnet18", True, 16)]
)
def test_torchvision_has_the_same_names_outputs_gradients_and_statistics(
    name: str, small_images: bool, side: int
) -> None:
    ours, theirs = network(side, model=name, small_images=small_images), torchvisions(name, small_images=small_images)
    theirs.load_state_dict(ours.state_dict(), strict=True)
    for module in (ours, theirs):
        for norm in [child for child in module.modules() if isinstance(child, nn.modules.batchnorm._BatchNorm)]:
            nn.init.constant_(norm.weight, 0.5)
    out, expected = ours.pooled(images(side, 3)), theirs(images(side, 3))
    assert torch.equal(out, expected)
    out.square().sum().backward()
    expected.square().sum().backward()
    for (key, one), other in zip(ours.named_parameters(), theirs.parameters(), strict=True):
        scale = float(other.grad.abs().max())
        torch.testing.assert_close(one.grad, other.grad, atol=1e-5 * scale, rtol=1e-5, msg=key)
    for (key, one), other in zip(ours.named_buffers(), theirs.buffers(), strict=True):
        torch.testing.assert_close(one, other, msg=key)
    assert torch.equal(ours.eval().pooled(images(side)), theirs.eval()(images(side)))


def test_stages_are_the_blocks_that_probes_read() -> None:
    encoder = network(32, small_images=True)
    outputs = list(encoder.block_outputs(images()))
    assert [out.shape[1:] for out in outputs] == [(1024, 64), (256, 128), (64, 256), (16, 512)]
    assert (encoder.shape.num_patches, encoder.shape.width, encoder.first_read) == (16, 512, 3)
    assert [read_layers(text, encoder) for text in ("last6", "all", "3")] == [(3,)] * 3
    with pytest.raises(ValueError, match=r"layers '2,3': the blocks before 3 of this trunk .* take 3, or last1"):
        read_layers("2,3", encoder)
    torch.testing.assert_close(means_of_blocks(encoder, images(), [(3,)], pooled=True)[0], encoder.pooled(images()))
    torch.testing.assert_close(outputs[-1].mean(dim=1), encoder.pooled(images()))
    assert {encoder.depth_of(name) for name, _ in encoder.named_parameters()} == {0, 1, 2, 3, 4}
    assert network(50).shape.num_patches == next(reversed(list(network(50).block_outputs(images(50))))).shape[1]


def test_blocks_begin_as_nothing_where_the_recipe_wants_it() -> None:
    for wanted in (True, False):
        encoder = network(zero_init=wanted)
        last = [module.last_norm.weight for module in encoder.modules() if hasattr(module, "last_norm")]
        assert len(last) == 8
        assert all(bool((weight == (0 if wanted else 1)).all()) for weight in last)
    kernel = encoder.layer4[0].conv1.weight.detach()
    assert float(kernel.std()) == pytest.approx(math.sqrt(2 / (512 * 9)), rel=0.01)


@pytest.mark.parametrize("recompute", ["selective", "full"])
def test_what_is_computed_again_counts_once(recompute: Any) -> None:
    plain, again = network(small_images=True), network(small_images=True)
    Execution(recompute=recompute).apply(again)
    for encoder in (plain, again):
        encoder.pooled(images()).square().sum().backward()
    for (key, one), other in zip(plain.named_parameters(), again.parameters(), strict=True):
        assert torch.equal(one.grad, other.grad), key
    for (key, one), other in zip(plain.named_buffers(), again.buffers(), strict=True):
        assert torch.equal(one, other), key
