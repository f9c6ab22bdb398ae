"""Attention pooling against loops over heads in float64 and against timm's, whose names it has; how it begins."""

import math

import pytest
import torch
from torch import Tensor

from headrace.train.models.trunks.attention_pool import AttentionPool

WIDTH, HEADS, MLP = 24, 3, 40


def pool(**more: object) -> AttentionPool:
    """Return one whose norm and biases are not those of the start, which would hide that they are left out."""
    torch.manual_seed(0)
    made = AttentionPool(WIDTH, HEADS, mlp_width=MLP, **more)  # type: ignore[arg-type]
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.add_(torch.randn(parameter.shape) * 0.1)
    return made


def tokens() -> Tensor:
    return torch.randn(5, 7, WIDTH, generator=torch.Generator().manual_seed(1))


def slow(made: AttentionPool, tokens_LD: Tensor) -> Tensor:
    """One picture, in float64, head by head: no residual around the attention, no norm before it."""
    made, x_LD, each = made.double(), tokens_LD.double(), WIDTH // HEADS
    query_D = made.q.weight @ made.latent[0, 0] + made.q.bias
    read = []
    for head in range(HEADS):
        rows = slice(head * each, (head + 1) * each)
        key_LE, value_LE = (
            x_LD @ weight[rows].T + bias[rows]
            for weight, bias in zip(made.kv.weight.chunk(2), made.kv.bias.chunk(2), strict=True)
        )
        share_L = (key_LE @ query_D[rows] / math.sqrt(each)).softmax(dim=0)
        read.append(share_L @ value_LE)
    x_D = made.proj.weight @ torch.cat(read) + made.proj.bias
    normed_D = (x_D - x_D.mean()) / (x_D.var(correction=0) + 1e-6).sqrt() * made.norm.weight + made.norm.bias
    inside = made.mlp.fc1.weight @ normed_D + made.mlp.fc1.bias
    gelu = 0.5 * inside * (1 + (math.sqrt(2 / math.pi) * (inside + 0.044715 * inside**3)).tanh())
    return x_D + made.mlp.fc2.weight @ gelu + made.mlp.fc2.bias


@torch.no_grad()
def test_it_is_the_slow_loop() -> None:
    out = pool()(tokens())
    expected = torch.stack([slow(pool(), x_LD) for x_LD in tokens()])
    assert (out - expected).abs().max() < 1e-6
    assert (pool(gelu="exact")(tokens()) - expected).abs().max() > 1e-5


@pytest.mark.parametrize("gelu", ["tanh", "exact"])
def test_timm_has_the_same_names_outputs_and_gradients(gelu: str) -> None:
    from functools import partial

    from timm.layers import AttentionPoolLatent

    act = partial(torch.nn.GELU, approximate="tanh") if gelu == "tanh" else torch.nn.GELU
    norm = partial(torch.nn.LayerNorm, eps=1e-6)
    theirs = AttentionPoolLatent(WIDTH, num_heads=HEADS, mlp_ratio=MLP / WIDTH, norm_layer=norm, act_layer=act)
    ours = pool(gelu=gelu)
    theirs.load_state_dict(ours.state_dict(), strict=True)
    outs = [model(tokens()) for model in (ours, theirs)]
    assert (outs[0] - outs[1]).abs().max() < 1e-6
    for out in outs:
        out.square().sum().backward()
    expected = dict(theirs.named_parameters())
    for name, parameter in ours.named_parameters():
        torch.testing.assert_close(parameter.grad, expected[name].grad, atol=1e-4, rtol=1e-5, msg=name)


def test_it_begins_as_big_visions() -> None:
    """Xavier-uniform for all, the query as a matrix of one row, and key and value each as a square."""
    torch.manual_seed(0)
    made, square = AttentionPool(WIDTH, HEADS, mlp_width=MLP), 6 / (2 * WIDTH)
    bounds = {"latent": 6 / (1 + WIDTH), "mlp.fc1.weight": 6 / (WIDTH + MLP), "mlp.fc2.weight": 6 / (WIDTH + MLP)}
    for name, parameter in made.named_parameters():
        if name.endswith("bias") or name == "norm.weight":
            assert torch.equal(parameter, torch.full_like(parameter, float(name == "norm.weight")))
        else:
            bound = math.sqrt(bounds.get(name, square))
            assert 0.85 * bound < float(parameter.detach().abs().max()) <= bound, name
