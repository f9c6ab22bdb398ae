"""The trunk computes what the reference text says, with as many parameters as published."""

import math

import numpy as np
import pytest
import torch

from headrace.train.models.vit import (
    SelfAttention,
    Vit,
    VitConfig,
    patch_product,
    prefix_attention,
    sincos_positions,
)

TINY = VitConfig(image_size=12, patch=4, width=16, depth=2, heads=2)


def test_positions_encode_the_column_first() -> None:
    rows, columns, width = 3, 5, 16
    table = sincos_positions(rows, columns, width)
    for row in range(rows):
        for column in range(columns):
            expected = []
            for place in (column, row):
                angles = [place / 10000 ** (i / (width / 4)) for i in range(width // 4)]
                expected += [math.sin(a) for a in angles] + [math.cos(a) for a in angles]
            np.testing.assert_allclose(table[row * columns + column].numpy(), expected, atol=1e-7)


def test_prefix_mask_is_the_rule_of_the_paper() -> None:
    length = 6
    mask = prefix_attention(torch.arange(1, length), length)
    for sample, prefix in enumerate(range(1, length)):
        for i in range(length):
            for j in range(length):
                assert bool(mask[sample, i, j]) == (j < prefix or j <= i)


@torch.no_grad()
def test_attention_is_a_masked_softmax() -> None:
    torch.manual_seed(0)
    attention, length, width, heads = SelfAttention(8, 2), 5, 8, 2
    x = torch.randn(3, length, width)
    mask = prefix_attention(torch.tensor([1, 3, 4]), length)
    got = attention(x, mask[:, None])
    query, key, value = (x @ part.T for part in attention.qkv.weight.chunk(3))
    for sample in range(3):
        for i in range(length):
            outputs = []
            for head in range(heads):
                part = slice(head * width // heads, (head + 1) * width // heads)
                scores = [
                    float(query[sample, i, part] @ key[sample, j, part]) / math.sqrt(width // heads)
                    if mask[sample, i, j]
                    else -math.inf
                    for j in range(length)
                ]
                weights = torch.softmax(torch.tensor(scores), 0)
                outputs.append(sum(weights[j] * value[sample, j, part] for j in range(length)))
            expected = attention.proj.weight @ torch.cat(outputs)
            torch.testing.assert_close(got[sample, i], expected, atol=1e-6, rtol=1e-5)


def test_a_patch_behind_the_prefix_cannot_see_later_patches() -> None:
    torch.manual_seed(0)
    vit, images = Vit(TINY), torch.randn(1, 3, 12, 12)
    mask = prefix_attention(torch.tensor([2]), 9)
    changed = images.clone()
    changed[:, :, 8:, 8:] += 1.0  # the last patch
    before, after = vit(images, mask), vit(changed, mask)
    assert torch.equal(before[:, :8], after[:, :8])
    assert not torch.allclose(before[:, 8], after[:, 8])


def test_the_patch_product_is_the_convolution() -> None:
    torch.manual_seed(0)
    proj, images = torch.nn.Conv2d(3, 16, 4, stride=4), torch.randn(2, 3, 12, 20)
    torch.testing.assert_close(patch_product(images, proj.weight, proj.bias), proj(images).flatten(2).transpose(1, 2))


def test_block_outputs_end_before_the_last_norm() -> None:
    torch.manual_seed(0)
    vit, images = Vit(TINY), torch.randn(2, 3, 12, 12)
    outputs = list(vit.block_outputs(images))
    assert len(outputs) == 2
    torch.testing.assert_close(vit.trunk.post_trunk_norm(outputs[-1]), vit(images))


def test_parameter_names_are_the_released_ones() -> None:
    names = set(Vit(TINY).state_dict())
    stem = {f"preprocessor.patchifier.{part}.{kind}" for part in ("proj", "norm") for kind in ("weight", "bias")}
    last = {"trunk.post_trunk_norm.weight", "trunk.post_trunk_norm.bias"}
    parts = ("attn.qkv.weight", "attn.proj.weight", "mlp.fc1.weight", "mlp.fc2.weight")
    norms = [f"norm_{number}.{kind}" for number in (1, 2) for kind in ("weight", "bias")]
    blocks = {f"trunk.blocks.{block}.{part}" for block in range(2) for part in (*parts, *norms)}
    assert names == stem | last | blocks


@torch.no_grad()
def test_initial_weights_are_xavier_with_query_key_and_value_apart() -> None:
    torch.manual_seed(0)
    vit = Vit(VitConfig(image_size=8, patch=4, width=64, depth=1, heads=2))
    block = vit.trunk.blocks[0]
    for weight in (*block.attn.qkv.weight.chunk(3), block.attn.proj.weight, block.mlp.fc1.weight, block.mlp.fc2.weight):
        bound = math.sqrt(6 / sum(weight.shape))
        assert 0.95 * bound < float(weight.abs().max()) <= bound
    kernel = vit.preprocessor.patchifier.proj.weight
    bound = math.sqrt(6 / (64 + 48))
    assert 0.95 * bound < float(kernel.abs().max()) <= bound
    assert torch.equal(block.norm_1.weight, torch.ones(64))
    assert torch.equal(block.norm_1.bias, torch.zeros(64))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"patch": 5}, "patch 5 does not divide"),
        ({"width": 18}, "multiple of 4"),
        ({"depth": 0}, "depth must be at least 1"),
    ],
)
def test_a_shape_that_cannot_be_is_refused(change: dict[str, int], message: str) -> None:
    good = {"image_size": 12, "patch": 4, "width": 16, "depth": 2, "heads": 2}
    with pytest.raises(ValueError, match=message):
        VitConfig(**{**good, **change})
