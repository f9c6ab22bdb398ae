"""The transformer with a class token computes what timm's does, and begins as MoCo v3's."""

import math

import numpy as np
import pytest
import torch

from headrace.train.models.backbones import BackboneConfig
from headrace.train.models.trunks.standard_vit import StandardVit

SMALL = {"model": "tiny", "patch": 4, "width": 48, "depth": 2, "heads": 4}


def small(image_size: int = 16, **more: object) -> StandardVit:
    torch.manual_seed(0)
    return BackboneConfig(**SMALL | more).build(image_size)  # type: ignore[arg-type]


def images(side: int = 16) -> torch.Tensor:
    return torch.randn(3, 3, side, side, generator=torch.Generator().manual_seed(1))


def test_timm_has_the_same_names_outputs_and_gradients() -> None:
    from timm.models.vision_transformer import VisionTransformer

    ours = small()
    theirs = VisionTransformer(img_size=16, patch_size=4, embed_dim=48, depth=2, num_heads=4, num_classes=0)
    theirs.load_state_dict(ours.state_dict(), strict=True)
    ours.load_state_dict(theirs.state_dict(), strict=True)
    for model, out in ((ours, ours.pooled(images())), (theirs, theirs(images()))):
        out.square().sum().backward()
        model.got = out.detach()
    torch.testing.assert_close(ours.got, theirs.got, atol=1e-6, rtol=0)
    expected = {name: parameter.grad for name, parameter in theirs.named_parameters() if name != "pos_embed"}
    for name, parameter in ours.named_parameters():
        torch.testing.assert_close(parameter.grad, expected[name], atol=1e-5, rtol=1e-5, msg=name)


def test_positions_are_mocos_row_first_with_none_for_the_class_token() -> None:
    table, quarter = small().pos_embed[0], 12
    assert not table[0].any()
    for row in range(4):
        for column in range(4):
            expected = []
            for place in (row, column):
                angles = [place / 10000 ** (i / quarter) for i in range(quarter)]
                expected += [math.sin(a) for a in angles] + [math.cos(a) for a in angles]
            np.testing.assert_allclose(table[1 + row * 4 + column].numpy(), expected, atol=1e-7)


def test_weights_begin_as_mocos() -> None:
    encoder = small()
    bounds = {"patch_embed.proj.weight": 6 / (3 * 4 * 4 + 48), "attn.proj.weight": 6 / (48 + 48)}
    # q, k and v are three matrices of their own: as one of 144 rows the bound would be smaller.
    bounds |= {"attn.qkv.weight": 6 / (48 + 48), "fc1.weight": 6 / (48 + 192), "fc2.weight": 6 / (48 + 192)}
    for name, parameter in encoder.named_parameters():
        parameter = parameter.detach()
        square = next((bound for end, bound in bounds.items() if name.endswith(end)), None)
        if square is not None:
            assert 0.97 * math.sqrt(square) < float(parameter.abs().max()) <= math.sqrt(square), name
            assert float(parameter.std()) == pytest.approx(math.sqrt(square / 3), rel=0.03), name
        elif name == "cls_token":
            assert 0 < float(parameter.abs().max()) < 5e-6
        else:
            assert torch.equal(parameter, torch.full_like(parameter, float("norm" in name and "weight" in name))), name


def test_a_frozen_projection_gets_no_gradient_and_is_in_the_state() -> None:
    encoder = small(patch_projection="frozen")
    encoder.pooled(images()).sum().backward()
    trained = {name for name, parameter in encoder.named_parameters() if parameter.grad is not None}
    everything = {name for name, _ in encoder.named_parameters()}
    assert everything - trained == {"patch_embed.proj.weight", "patch_embed.proj.bias"}
    assert everything - trained < encoder.state_dict().keys()


def test_images_of_another_side_have_their_own_positions() -> None:
    encoder, other = small(), small(24)
    other.load_state_dict(encoder.state_dict() | {"pos_embed": other.pos_embed})
    torch.testing.assert_close(encoder.pooled(images(24)), other.pooled(images(24)))
    with pytest.raises(ValueError, match="images of 18x18 pixels are not whole patches of 4"):
        encoder.pooled(images(18))


def test_probes_read_the_class_token_of_each_block() -> None:
    from headrace.train.evaluate.trunk import means_of_blocks

    encoder = small()
    outputs = list(encoder.block_outputs(images()))
    assert [out.shape for out in outputs] == [(3, encoder.shape.num_patches, 48)] * 2
    pooled = means_of_blocks(encoder, images(), [(0, 1), (1,)], pooled=True)
    torch.testing.assert_close(pooled[0], (outputs[0] + outputs[1])[:, 0] / 2)
    torch.testing.assert_close(encoder.norm(pooled[1]), encoder.pooled(images()))
    depths = {encoder.depth_of(name) for name, _ in encoder.named_parameters()}
    assert depths == {0, 1, 2, 3}


def test_what_is_learned_is_interpolated_for_images_of_another_side() -> None:
    encoder = small(positions="learned")
    encoder.pooled(images(24)).square().sum().backward()
    assert encoder.pos_embed.grad.shape == (1, 17, 48)
    assert bool((encoder.pos_embed.grad != 0).all())
    other = small(24, positions="learned")
    table = other.fitted("pos_embed", encoder.pos_embed.detach())
    other.load_state_dict(encoder.state_dict() | {"pos_embed": table})
    torch.testing.assert_close(encoder.pooled(images(24)), other.pooled(images(24)))


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        ({"pool": "mean"}, {"class_token": False, "global_pool": "avg", "fc_norm": False}),
        ({"pool": "mean", "last_norm": False}, {"class_token": False, "global_pool": "avg", "final_norm": False}),
        ({"positions": "learned"}, {}),
        ({"positions": "none"}, {"pos_embed": "none"}),
        ({"patch_projection": "batch_norm"}, {}),
        ({"patch_projection": "weight_norm"}, {}),
    ],
)
def test_every_choice_is_one_of_timms(ours: dict[str, object], theirs: dict[str, object]) -> None:
    from timm.models.vision_transformer import VisionTransformer

    encoder = small(**ours)
    for _ in range(3):  # BatchNorm sees something
        encoder.pooled(images(16) + 1)
    if encoder.patch_embed.length is not None:
        torch.nn.init.uniform_(encoder.patch_embed.length, 0.5, 2)
    timms = VisionTransformer(
        img_size=16, patch_size=4, embed_dim=48, depth=2, num_heads=4, num_classes=0, **theirs
    ).eval()
    timms.load_state_dict(encoder.plain_state(), strict=True)
    torch.testing.assert_close(encoder.eval().pooled(images()), timms(images()), atol=2e-6, rtol=0)


def test_a_weight_normed_projection_begins_as_a_plain_one() -> None:
    torch.testing.assert_close(small(patch_projection="weight_norm").pooled(images()), small().pooled(images()))


def test_the_first_layers_gradient_alone_is_clipped() -> None:
    plain, clipped = small(), small(patch_projection="clipped", patch_clip=0.01)
    for encoder in (plain, clipped):
        (encoder.pooled(images()) ** 3).sum().backward()
        encoder.before_update()
    for (name, whole), cut in zip(plain.named_parameters(), clipped.parameters(), strict=True):
        if not name.startswith("patch_embed."):
            torch.testing.assert_close(cut.grad, whole.grad)
    gradients = [parameter.grad.flatten() for parameter in clipped.patch_embed.parameters()]
    assert float(torch.cat(gradients).norm()) == pytest.approx(0.01, rel=1e-3)


def test_positions_of_a_file_must_be_what_is_computed() -> None:
    encoder = small(24)
    assert torch.equal(encoder.fitted("pos_embed", small().pos_embed), encoder.pos_embed)
    with pytest.raises(ValueError, match=r"not MoCo's sines and cosines, but up to .* away: set positions: learned"):
        encoder.fitted("pos_embed", torch.randn(1, 17, 48))
