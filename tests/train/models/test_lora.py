"""Adapters: how many parameters, that they begin as nothing, and that the merged matrix is the same function."""

import pytest
import torch

from headrace.train.models.lora import LoraConfig, LoraLinear, add_lora, is_lora, merge_lora
from headrace.train.models.vit import Vit, VitConfig


def trunk(width: int = 32, depth: int = 3) -> Vit:
    torch.manual_seed(0)
    return Vit(VitConfig(image_size=16, patch=4, width=width, depth=depth, heads=4))


@pytest.mark.parametrize("width", [32, 64])
def test_rank_8_trains_48_times_the_width_in_each_block(width: int) -> None:
    encoder = trunk(width)
    add_lora(encoder, LoraConfig())
    for block in encoder.trunk.blocks:
        trained = {name: p.numel() for name, p in block.named_parameters() if p.requires_grad}
        assert sum(trained.values()) == 48 * width
        assert all(is_lora(f".{name}") for name in trained)
    assert all(is_lora(name) for name, p in encoder.named_parameters() if p.requires_grad)


def test_aim_7b_trains_a_thousandth() -> None:
    with torch.device("meta"):
        encoder = Vit(VitConfig(image_size=224, patch=14, width=4096, depth=32, heads=32))
        add_lora(encoder, LoraConfig())
    trained = sum(p.numel() for p in encoder.parameters() if p.requires_grad)
    assert trained == 6_291_456
    assert trained / sum(p.numel() for p in encoder.parameters()) == pytest.approx(0.00098, rel=0.01)


@torch.no_grad()
def test_adapters_begin_as_nothing_and_merge_to_the_same_outputs() -> None:
    config = LoraConfig(rank=4, alpha=2.0)
    plain, adapted, merged = trunk(), trunk(), trunk()
    images = torch.randn(3, 3, 16, 16)
    add_lora(adapted, config)
    assert torch.equal(adapted(images), plain(images))
    torch.manual_seed(1)
    for name, parameter in adapted.named_parameters():
        if is_lora(name):
            parameter.copy_(0.3 * torch.randn_like(parameter))
    tensors = merge_lora(adapted.state_dict(), config)
    assert tensors.keys() == plain.state_dict().keys()
    merged.load_state_dict(tensors)
    assert (adapted(images) - plain(images)).abs().max() > 0.1
    assert (adapted(images) - merged(images)).abs().max() < 1e-6 * adapted(images).abs().max() + 1e-6


@torch.no_grad()
def test_q_and_v_change_and_k_does_not() -> None:
    """The layer against the formula of the paper, part by part."""
    linear = torch.nn.Linear(6, 18, bias=False)
    layer = LoraLinear(linear, LoraConfig(rank=2), parts=3, adapted=(0, 2))
    layer.lora_B.normal_()
    x = torch.randn(5, 6)
    q, k, v = linear(x).chunk(3, dim=-1)
    got_q, got_k, got_v = layer(x).chunk(3, dim=-1)
    assert torch.equal(got_k, k)
    for got, base, rows in ((got_q, q, slice(0, 2)), (got_v, v, slice(2, 4))):
        ups = layer.lora_B[:6] if rows.start == 0 else layer.lora_B[6:]
        assert torch.allclose(got, base + (x @ layer.lora_A[rows].T @ ups.T) / 2, atol=1e-6)
