"""A trunk goes to AIM's released form and back: every name matches, and so do the numbers.

The classes here stand for the published inference code: its parts and names, nothing else of it.
"""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional

from headrace.pipeline import Batch
from headrace.train.config import load_run
from headrace.train.evaluate.probe_config import ProbeConfig
from headrace.train.evaluate.probe_plan import plan_probe
from headrace.train.evaluate.probes import probe
from headrace.train.loop import train
from headrace.train.objectives.aim import Aim
from headrace.train.runs.weights import read_weights


class ReleasedBlock(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm_1, self.norm_2 = nn.LayerNorm(width, eps=1e-6), nn.LayerNorm(width, eps=1e-6)
        self.attn, self.mlp = nn.Module(), nn.Module()
        self.attn.qkv, self.attn.proj = nn.Linear(width, 3 * width, bias=False), nn.Linear(width, width, bias=False)
        self.mlp.fc1, self.mlp.fc2 = nn.Linear(width, 4 * width, bias=False), nn.Linear(4 * width, width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.attn.qkv(self.norm_1(x)).chunk(3, dim=-1)  # type: ignore[operator]
        x = x + self.attn.proj(attend(q, k, v, self.heads))  # type: ignore[operator]
        return x + self.mlp.fc2(functional.gelu(self.mlp.fc1(self.norm_2(x))))  # type: ignore[operator]


def attend(q: Tensor, k: Tensor, v: Tensor, heads: int) -> Tensor:
    q, k, v = (part.unflatten(-1, (heads, -1)).transpose(1, 2) for part in (q, k, v))
    return functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)


class Released(nn.Module):
    """Preprocessor, trunk and attentive classifier, under the released names."""

    def __init__(self, config: dict[str, Any]) -> None:
        super().__init__()
        width, patch = config["embed_dim"], config["patch_size"]
        self.config = config
        self.preprocessor, self.trunk, self.head = nn.Module(), nn.Module(), nn.Module()
        self.preprocessor.patchifier = nn.Module()
        self.preprocessor.patchifier.proj = nn.Conv2d(3, width, patch, stride=patch)
        self.preprocessor.patchifier.norm = nn.LayerNorm(width, eps=1e-6)
        self.trunk.blocks = nn.ModuleList(
            ReleasedBlock(width, config["num_heads"]) for _ in range(config["num_blocks"])
        )
        self.trunk.post_trunk_norm = nn.LayerNorm(width, eps=1e-6)
        self.head.cls_token = nn.Parameter(torch.zeros(1, 1, width))
        self.head.k, self.head.v = nn.Linear(width, width, bias=False), nn.Linear(width, width, bias=False)
        self.head.linear = nn.Linear(width, config["num_classes"], bias=False)
        self.head.bn = nn.BatchNorm1d(width, affine=False, eps=1e-6)

    def forward(self, images: Tensor, positions: Tensor) -> Tensor:
        patchifier: Any = self.preprocessor.patchifier
        x = patchifier.norm(patchifier.proj(images).flatten(2).transpose(1, 2)) + positions
        outputs = []
        for block in self.trunk.blocks:  # type: ignore[union-attr]
            x = block(x)
            outputs.append(x)
        mean = torch.stack([outputs[number] for number in self.config["probe_layers"]]).mean(dim=0)
        head: Any = self.head
        mean = head.bn(mean.transpose(1, 2)).transpose(1, 2)
        mixed = attend(head.cls_token.expand(len(mean), -1, -1), head.k(mean), head.v(mean), self.config["num_heads"])
        out: Tensor = head.linear(mixed.mean(dim=1))
        return out


CONFIG = {
    "img_size": 16,
    "patch_size": 4,
    "embed_dim": 16,
    "num_blocks": 2,
    "num_heads": 2,
    "num_classes": 3,
    "probe_layers": [0, 1],
}


@pytest.fixture
def run(run_file: Callable[..., Path]) -> Path:
    return train(load_run(run_file(steps=4, validation=None))).out


@torch.no_grad()
def test_a_trunk_with_its_probe_is_a_strict_match_and_gives_the_probes_accuracy(
    run: Path, pictures: str, other_pictures: str, tmp_path: Path, make_batch: Callable[..., Batch]
) -> None:
    config = ProbeConfig(train=pictures, test=other_pictures, epochs=12, images_per_batch=16, lrs=(1e-4, 0.02))
    with torch.enable_grad():
        result = probe(run, config, device="cpu", export=tmp_path / "released")
    told = json.loads((tmp_path / "released" / "config.json").read_text())
    assert told == CONFIG
    model = Released(told).eval()
    model.load_state_dict(load_file(tmp_path / "released" / "model.safetensors"), strict=True)
    objective = read_weights(run).model.build()
    assert isinstance(objective, Aim)
    batch = make_batch(60, first=1000, side=32)
    images = torch.from_numpy(batch.images).float().permute(0, 3, 1, 2)
    small = functional.interpolate(images, (16, 16), mode="bilinear", antialias=True, align_corners=False)
    pixels = objective.normalise(small.round().clamp(0, 255).byte().permute(0, 2, 3, 1).numpy())
    answers = model(pixels, objective.encoder.preprocessor.positions_LD).argmax(dim=1).numpy()
    assert result["accuracy"] > 0.9
    assert np.mean(answers == np.arange(1000, 1060) % 3) == pytest.approx(result["accuracy"], abs=0.1)


@torch.no_grad()
def test_a_released_file_is_read_and_its_classifier_left_out(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, make_batch: Callable[..., Batch]
) -> None:
    caplog.set_level("INFO", logger="headrace")
    torch.manual_seed(3)
    theirs = Released(CONFIG).eval()
    save_file(theirs.state_dict(), tmp_path / "model.safetensors", metadata={"format": "pt"})
    (tmp_path / "config.json").write_text(json.dumps(CONFIG))
    for place in (tmp_path, tmp_path / "model.safetensors"):
        weights = read_weights(place)
        assert (weights.model.image_size, weights.step) == (16, 0)
    assert "its trunk is taken; left out: head" in caplog.text
    objective = weights.model.build()
    assert isinstance(objective, Aim)
    weights.load_into(objective)
    pixels = objective.normalise(make_batch(3).images)
    x = theirs.preprocessor.patchifier.proj(pixels).flatten(2).transpose(1, 2)  # type: ignore[union-attr,operator]
    x = theirs.preprocessor.patchifier.norm(x) + objective.encoder.preprocessor.positions_LD  # type: ignore[union-attr,operator]
    for block, ours in zip(theirs.trunk.blocks, objective.encoder.block_outputs(pixels), strict=True):  # type: ignore[arg-type]
        x = block(x)
        torch.testing.assert_close(ours, x, atol=1e-5, rtol=1e-5)


def test_a_released_trunk_is_probed(tmp_path: Path, pictures: str, other_pictures: str) -> None:
    torch.manual_seed(3)
    save_file(Released(CONFIG).state_dict(), tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text(json.dumps({"config": CONFIG}))
    config = ProbeConfig(train=pictures, test=other_pictures, epochs=2, layers="last1")
    assert "mean of blocks 1 of width 16" in plan_probe(tmp_path, config)[0]
    assert probe(tmp_path, config, device="cpu")["blocks"] == [1]


def test_the_published_sizes_are_known_by_their_shapes(tmp_path: Path) -> None:
    """Without a config.json: heads of 128 channels, images of 224 pixels."""
    from headrace.train.runs.released import released_config

    with torch.device("meta"):
        for width, depth, model, heads in ((1536, 24, "0.6B", 12), (4096, 32, "7B", 32), (256, 1, "tiny", 2)):
            tensors = Released(
                CONFIG | {"embed_dim": width, "num_blocks": depth, "num_heads": heads, "patch_size": 14}
            ).state_dict()
            config, image_size = released_config(tmp_path / "model.safetensors", tensors)
            assert (config.model, image_size, config.patch) == (model, 224, 14)
            assert (config.shape.width, config.shape.depth, config.shape.heads) == (width, depth, heads)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (None, "how many attention heads has it?"),
        ({"num_heads": 2}, "patch 5 does not divide image_size 224.*may say img_size"),
        ({"num_heads": "2"}, "num_heads must be a whole number above 0, got '2'"),
        ([], "not the config of a released model"),
        ({"num_heads": 3, "img_size": 15}, "must be a multiple of 4 and of heads"),
    ],
)
def test_what_a_released_file_does_not_say_is_asked_for(tmp_path: Path, config: Any, message: str) -> None:
    save_file(Released(CONFIG | {"patch_size": 5}).state_dict(), tmp_path / "model.safetensors")
    if config is not None:
        (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match=message) as refused:
        read_weights(tmp_path)
    assert str(tmp_path) in str(refused.value)


@torch.no_grad()
def test_a_released_pth_is_read_and_what_else_a_pickle_says_is_refused(tmp_path: Path) -> None:
    tensors = Released(CONFIG).state_dict()
    torch.save(tensors, tmp_path / "aim.pth")
    (tmp_path / "config.json").write_text(json.dumps(CONFIG))
    found = read_weights(tmp_path / "aim.pth")
    assert torch.equal(found.tensors["trunk.post_trunk_norm.bias"], tensors["trunk.post_trunk_norm.bias"])
    torch.save(tensors | {"extra": Path("x")}, tmp_path / "aim.pth")
    with pytest.raises(ValueError, match="not a file of tensors alone, and nothing else in it is run"):
        read_weights(tmp_path / "aim.pth")


def test_a_released_trunk_that_lacks_a_part_is_refused(tmp_path: Path) -> None:
    tensors = Released(CONFIG).state_dict()
    del tensors["trunk.post_trunk_norm.bias"]
    save_file(tensors, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text(json.dumps(CONFIG))
    with pytest.raises(ValueError, match=r"first difference: trunk\.post_trunk_norm\.bias"):
        read_weights(tmp_path)
