"""SwinV2 is timm's in names and outputs, of the published sizes, for images and windows of every size."""

from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from torch import Tensor
from torch._dynamo.testing import CompileCounterWithBackend

from headrace.train.config import load_run, run_digest
from headrace.train.execution import Execution
from headrace.train.models.backbones import BackboneConfig
from headrace.train.models.encoder import FeatureMaps
from headrace.train.models.trunks.swin_v2 import SwinV2, SwinV2Config
from headrace.train.optim.groups import is_decayed

SMALL: dict[str, Any] = {"embed_width": 16, "depths": (2, 2, 3, 1), "first_heads": 2}


def drawn(config: SwinV2Config) -> SwinV2:
    """Return a network all of whose parts do something: as it is drawn, its blocks are nothing."""
    network = SwinV2(config)
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.normal_(std=0.2)
    return network.eval()


def images(height: int, width: int = 0, *, batch: int = 2) -> Tensor:
    return torch.randn(batch, 3, height, width or height, generator=torch.Generator().manual_seed(2))


@pytest.mark.parametrize(
    ("side", "given"),
    [
        (64, {"window": 4}),
        (72, {"window": 4}),  # grids of 18, 9, 5 and 3: filled up at windows, and where they are halved
        (64, {"window": 6, "bias_windows": (12, 12, 6, 3)}),
        (32, {"patch": 2}),
        (48, {"window": 16, "depths": (1, 2)}),
    ],
)
@torch.no_grad()
def test_names_and_outputs_are_timms_both_ways(side: int, given: dict[str, Any]) -> None:
    from timm.models.swin_transformer_v2 import SwinTransformerV2

    config = SwinV2Config(image_size=side, **SMALL | given)
    theirs = SwinTransformerV2(
        img_size=side,
        patch_size=config.patch,
        embed_dim=config.embed_width,
        depths=config.depths,
        num_heads=[config.first_heads << stage for stage in range(len(config.depths))],
        window_size=config.window_side,
        pretrained_window_sizes=config.bias_windows or (0,) * len(config.depths),
        num_classes=0,
    ).eval()
    ours = drawn(config)
    theirs.load_state_dict(ours.state_dict(), strict=True)
    x = images(side)
    torch.testing.assert_close(ours.pooled(x), theirs(x), atol=2e-6, rtol=1e-5)
    maps = theirs.forward_intermediates(x, intermediates_only=True, norm=True)
    for own, other in zip(ours.feature_maps(x), maps, strict=True):
        torch.testing.assert_close(own, other, atol=5e-6, rtol=1e-5)
    again = SwinV2(config)
    again.load_state_dict(theirs.state_dict(), strict=True)
    assert torch.equal(again.pooled(x), ours.pooled(x))


# arXiv:2206.04664's table of models, in its own figures; S and B are timm's exact counts.
@pytest.mark.parametrize(
    ("model", "published", "unit"),
    [("s", 48_959_418, 1), ("b", 86_893_816, 1), ("l", 195, 1e6), ("h", 655, 1e6), ("g", 1.06, 1e9)],
)
def test_sizes_are_the_published_ones(model: str, published: float, unit: float) -> None:
    with torch.device("meta"):
        network = BackboneConfig(model=f"swinv2-{model}").build(192)
    count = sum(parameter.numel() for parameter in network.parameters())
    assert count / unit == pytest.approx(published, rel=2e-3 if unit > 1 else 0)
    assert isinstance(network, SwinV2)
    assert network.config.measures == (12, 12, 12, 6)
    norms = {name for name, _ in network.named_parameters() if "norm3.weight" in name}
    widest = {f"layers.2.blocks.{number}.norm3.weight" for number in (5, 11, 17)}
    assert norms == (widest if model in "hg" else set())


@torch.no_grad()
def test_blocks_begin_as_nothing_and_drop_path_leaves_them_out() -> None:
    config = SwinV2Config(image_size=32, **SMALL)
    network, x = SwinV2(config), images(32)
    first = network.patch_embed(x)
    *_, (_, end, _) = network._blocks(first, (8, 8))
    plain = first
    for stage, grid in zip(network.layers, ((8, 8), (8, 8), (4, 4), (2, 2)), strict=True):
        plain = stage.downsample(plain, grid) if stage is not network.layers[0] else plain
    assert torch.equal(end, plain)
    network = drawn(config)
    kept_NB2 = torch.ones(config.depth, 2, 2)
    assert torch.equal(network.pooled(x, kept_NB2), network.pooled(x))
    kept_NB2[3:, 0] = 0.0
    left = list(network.block_outputs(x, kept_NB2))
    assert torch.equal(left[5][0], left[4][0])
    assert not torch.equal(left[5][1], left[4][1])


@torch.no_grad()
def test_probes_read_the_last_stage_and_maps_have_the_pyramids_sizes() -> None:
    network, x = drawn(SwinV2Config(image_size=64, **SMALL)), images(64)
    outputs = list(network.block_outputs(x))
    assert [tuple(one.shape[1:]) for one in outputs] == [(256, 16)] * 2 + [(64, 32)] * 2 + [(16, 64)] * 3 + [(4, 128)]
    assert (network.first_read, network.shape.depth, network.shape.num_patches) == (7, 8, 4)
    assert (network.shape.width, network.shape.heads) == (128, 16)
    assert isinstance(network, FeatureMaps)
    assert network.feature_strides == (4, 8, 16, 32)
    assert [tuple(one.shape) for one in network.feature_maps(images(64, 96))] == [
        (2, 16, 16, 24),
        (2, 32, 8, 12),
        (2, 64, 4, 6),
        (2, 128, 2, 3),
    ]
    assert torch.equal(network.pooled(x), network(x).mean(dim=1))
    with pytest.raises(ValueError, match="images of 66x64 pixels are not whole patches of 4"):
        network.pooled(images(64, 66))


@torch.no_grad()
def test_weights_work_at_another_side_with_places_measured_as_in_training() -> None:
    """What a network of 64 pixels makes of 96 is what one for 96 pixels does that knows of its windows."""
    small = drawn(SwinV2Config(image_size=64, window=4, **SMALL))
    large = SwinV2(SwinV2Config(image_size=96, window=4, bias_windows=small.config.measures, **SMALL))
    large.load_state_dict(small.state_dict())
    x = images(96)
    assert torch.equal(small.pooled(x), large.pooled(x))
    other = SwinV2(SwinV2Config(image_size=96, **SMALL))
    other.load_state_dict(small.state_dict())
    assert not torch.allclose(small.pooled(x), other.pooled(x), atol=1e-4)


def test_depths_are_those_of_simmims_fine_tuning() -> None:
    """Its `get_swin_layer`: what halves a grid has the rate of the block before it."""
    network = SwinV2(SwinV2Config(image_size=32, **SMALL))
    found = {name: network.depth_of(name) for name, _ in network.named_parameters()}
    assert found["patch_embed.proj.weight"] == 0
    assert found["layers.0.blocks.1.mlp.fc1.bias"] == 2
    assert found["layers.1.downsample.reduction.weight"] == 2
    assert found["layers.2.blocks.0.attn.logit_scale"] == 5
    assert found["layers.3.downsample.norm.weight"] == 7
    assert (found["layers.3.blocks.0.norm2.weight"], found["norm.bias"]) == (8, 9)


def test_no_decay_where_simmim_has_none() -> None:
    network = SwinV2(SwinV2Config(image_size=32, **SMALL))
    left = {name for name, parameter in network.named_parameters() if not is_decayed(name, parameter)}
    for name, parameter in network.named_parameters():
        out = parameter.ndim < 2 or name.endswith(".bias") or "cpb_mlp" in name or "logit_scale" in name
        assert (name in left) == out, name


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor")
@pytest.mark.parametrize("recompute", ["none", "full"])
def test_compiled_and_computed_again_it_is_the_same(monkeypatch: pytest.MonkeyPatch, recompute: Any) -> None:
    """Two graphs a stage serve blocks of all depths: those that move their windows, and those that do not."""
    torch._dynamo.reset()
    counter, compiled = CompileCounterWithBackend("aot_eager"), torch.compile
    monkeypatch.setattr(torch, "compile", lambda function, **how: compiled(function, backend=counter, **how))
    config = SwinV2Config(image_size=32, **SMALL | {"depths": (2, 3), "main_norms": 2})
    plain, fast = drawn(config), drawn(config)
    Execution(compiled=True, recompute=recompute).apply(fast)
    for network in (plain, fast):
        loss: Any = network.pooled(images(32)).square().sum()
        loss.backward()
    for (name, one), other in zip(plain.named_parameters(), fast.parameters(), strict=True):
        assert one.grad is not None, name
        torch.testing.assert_close(one.grad, other.grad, atol=1e-5, rtol=1e-4, msg=name)
    assert counter.frame_count <= 4


def test_a_run_from_before_keeps_its_digest(tmp_path: Path) -> None:
    """Keys of SwinV2 are in no digest of a run that has none of them; the digests were taken before there were any."""
    moco = {"kind": "moco", "backbone": {"model": "tiny", "patch": 8}}
    mixture = {"seed": 5, "lanes": 4, "image_size": 16, "sources": [{"name": "p", "url": "data"}]}
    for objective, digest in (
        (moco, "f258abbbab11845304326b8dfd3b539068d6d072415760519a31e354e76ca360"),
        (
            {"kind": "finetune", "num_classes": 3, "of": moco},
            "72b63ed1e22451b433693a8a515e97bc66f9d146b6388e84e5853a0b112f1199",
        ),
    ):
        run = {"out": "x", "seed": 3, "steps": 12, "global_batch": 16, "mixture": mixture, "objective": objective}
        (tmp_path / "run.yaml").write_text(yaml.safe_dump(run))
        assert run_digest(load_run(tmp_path / "run.yaml")) == digest


@pytest.mark.cuda
def test_a_device_gives_the_outputs_and_gradients_of_the_cpu() -> None:
    """Attention has another kernel there, which must give a gradient to what is added to logits; bf16 is near."""
    config = SwinV2Config(image_size=64, **SMALL | {"window": 4})
    on_cpu, on_device = drawn(config), drawn(config).cuda()
    for network, x in ((on_cpu, images(64)), (on_device, images(64).cuda())):
        loss: Any = network.pooled(x).square().sum()
        loss.backward()
    for (name, one), other in zip(on_cpu.named_parameters(), on_device.parameters(), strict=True):
        assert one.grad is not None, name
        assert other.grad is not None, name
        scale = float(one.grad.abs().max())
        torch.testing.assert_close(other.grad.cpu(), one.grad, atol=1e-4 * scale + 1e-7, rtol=1e-3, msg=name)
    with torch.no_grad(), torch.autocast("cuda", torch.bfloat16):
        near = on_device.pooled(images(64).cuda()).float().cpu()
        torch.testing.assert_close(near, on_cpu.pooled(images(64)), atol=0.05, rtol=0.05)
