"""Weights go into the form of other programs and come back: the same numbers, the same features."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from headrace.train.config import load_run
from headrace.train.loop import train
from headrace.train.models.vit import Vit
from headrace.train.objectives.build import build_objective
from headrace.train.objectives.objective import Objective
from headrace.train.runs.formats import FORMATS, export_weights
from headrace.train.runs.initial import initial_weights
from headrace.train.runs.weights import Weights, averaged, read_weights

CLIP = {
    "kind": "clip",
    "model_cfg": {
        "embed_dim": 16,
        "vision_cfg": {"image_size": 16, "patch_size": 4, "width": 16, "layers": 1, "head_width": 8},
        "text_cfg": {"width": 16, "layers": 1, "heads": 2, "context_length": 8},
    },
}
SUPERVISED = {"kind": "supervised", "num_classes": 3, "patch": 4, "width": 16, "depth": 2, "heads": 2}


@pytest.fixture
def run(run_file: Callable[..., Path]) -> Path:
    return train(load_run(run_file(steps=3, validation=None), ["checkpoint.every=1"])).out


@pytest.fixture
def supervised(run_file: Callable[..., Path]) -> Path:
    return train(load_run(run_file("labels", steps=3, validation=None, objective=SUPERVISED))).out


def objective_of(weights: Weights) -> Objective:
    objective = weights.model.build()
    weights.load_into(objective)
    return objective.eval()


def images() -> Tensor:
    return torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(1))


@torch.no_grad()
def features(weights: Weights) -> Tensor:
    trunk = objective_of(weights).trunk
    assert isinstance(trunk, Vit)
    out: Tensor = trunk(images())
    return out


@pytest.mark.parametrize("form", ["safetensors", "torch", "ml-aim", "timm"])
def test_what_is_exported_comes_back_with_the_same_features(run: Path, tmp_path: Path, form: str) -> None:
    first = read_weights(run)
    done = export_weights(first, tmp_path / "a", form=form)
    again = read_weights(tmp_path / "a")
    assert torch.equal(features(again), features(first))
    assert (again.model.image_size, done.format) == (16, form)
    export_weights(again, tmp_path / "b", form=form)
    names = sorted(path.name for path in (tmp_path / "a").iterdir())
    assert names == sorted(path.name for path in (tmp_path / "b").iterdir())
    if "model.safetensors" in names:
        first_bytes, again_bytes = ((tmp_path / one / "model.safetensors").read_bytes() for one in "ab")
        assert first_bytes == again_bytes


@pytest.mark.parametrize("form", ["safetensors", "torch"])
def test_our_own_forms_keep_the_head_and_the_step(supervised: Path, tmp_path: Path, form: str) -> None:
    first = read_weights(supervised / "checkpoints" / "00000003")
    export_weights(first, tmp_path, form=form)
    again = read_weights(tmp_path)
    assert again.tensors.keys() == first.tensors.keys()
    assert all(torch.equal(again.tensors[name], tensor) for name, tensor in first.tensors.items())
    assert (again.step, again.model) == (3, first.model)


def test_ml_aims_names_and_shapes_are_a_strict_match(run: Path, tmp_path: Path) -> None:
    export_weights(read_weights(run), tmp_path, form="ml-aim")
    width, depth = 16, 2
    # ml-aim's `_aim(img_size=16, patch_size=4, embed_dim=16, num_blocks=2, num_heads=2)`: names as its state dict has.
    wanted = {
        "preprocessor.patchifier.proj.weight": (width, 3, 4, 4),
        "preprocessor.patchifier.proj.bias": (width,),
        "trunk.post_trunk_norm.weight": (width,),
        "trunk.post_trunk_norm.bias": (width,),
        "head.cls_token": (1, 1, width),
        "head.k.weight": (width, width),
        "head.v.weight": (width, width),
        "head.linear.weight": (1000, width),
        "head.bn.running_mean": (width,),
        "head.bn.running_var": (width,),
        "head.bn.num_batches_tracked": (),
    }
    wanted |= {f"preprocessor.patchifier.norm.{kind}": (width,) for kind in ("weight", "bias")}
    for block in range(depth):
        stem = f"trunk.blocks.{block}."
        wanted |= {f"{stem}norm_{one}.{kind}": (width,) for one in (1, 2) for kind in ("weight", "bias")}
        wanted |= {
            f"{stem}attn.qkv.weight": (3 * width, width),
            f"{stem}attn.proj.weight": (width, width),
            f"{stem}mlp.fc1.weight": (4 * width, width),
            f"{stem}mlp.fc2.weight": (width, 4 * width),
        }
    found = load_file(tmp_path / "model.safetensors")
    assert {name: tuple(tensor.shape) for name, tensor in found.items()} == wanted
    told = json.loads((tmp_path / "config.json").read_text())
    assert told == {
        "img_size": 16, "patch_size": 4, "embed_dim": 16, "num_blocks": 2, "num_heads": 2, "num_classes": 1000,
    }  # fmt: skip


@pytest.mark.full
@torch.no_grad()
def test_timm_loads_a_trunk_and_computes_the_same(run: Path, tmp_path: Path) -> None:
    import timm

    weights = read_weights(run)
    export_weights(weights, tmp_path, form="timm")
    model = timm.create_model(f"local-dir:{tmp_path}", pretrained=True).eval()
    assert (model.forward_features(images()) - features(weights)).abs().max() < 1e-6
    outputs = model.get_intermediate_layers(images(), n=2)
    trunk: Any = objective_of(weights).trunk
    for ours, theirs in zip(trunk.block_outputs(images()), outputs, strict=True):
        assert (ours - theirs).abs().max() < 1e-6


@pytest.mark.full
def test_timm_gives_the_logits_and_the_preprocessing_of_a_supervised_run(
    run_file: Callable[..., Path], tmp_path: Path
) -> None:
    import timm

    path = run_file(steps=3, validation=None, objective=SUPERVISED)
    run = train(load_run(path, ["mixture.augment.interpolation=bicubic", "optimizer.lr=0.05"])).out
    weights = read_weights(run)
    export_weights(weights, tmp_path, form="timm")
    model = timm.create_model(f"local-dir:{tmp_path}", pretrained=True).eval()
    head = {name: weights.tensors[f"head.{name}"] for name in ("weight", "bias")}
    assert head["weight"].abs().max() > 0
    with torch.no_grad():
        ours = torch.nn.functional.linear(features(weights).mean(dim=1), head["weight"], head["bias"])
        assert (model(images()) - ours).abs().max() < 1e-6
    data = timm.data.resolve_model_data_config(model)
    assert (data["interpolation"], data["crop_pct"], data["input_size"]) == ("bicubic", 0.875, (3, 16, 16))


@pytest.mark.parametrize("head", ["mean", "attentive"])
def test_timm_takes_the_head_of_fine_tuning_where_it_has_a_place(
    run_file: Callable[..., Path], tmp_path: Path, caplog: pytest.LogCaptureFixture, head: str
) -> None:
    pretrained = {"kind": "aim", "model": "tiny", "patch": 4, "width": 16, "depth": 2, "heads": 2}
    objective = {"kind": "finetune", "of": pretrained, "num_classes": 3, "head": head, "lora": {"rank": 2}}
    weights = read_weights(train(load_run(run_file("tuned", steps=1, validation=None, objective=objective))).out)
    export_weights(weights, tmp_path, form="timm")
    found, told = load_file(tmp_path / "model.safetensors"), json.loads((tmp_path / "config.json").read_text())
    assert torch.equal(features(read_weights(tmp_path)), features(weights))
    if head == "mean":
        assert torch.equal(found["head.weight"], weights.tensors["classifier.linear.weight"])
    assert ("head.bias" in found, told["num_classes"]) == ((True, 3) if head == "mean" else (False, 0))
    assert ("timm has no place for its classifier" in caplog.text) == (head == "attentive")


def test_a_trunk_of_timm_starts_a_run(run: Path, tmp_path: Path) -> None:
    weights = read_weights(run)
    export_weights(weights, tmp_path, form="timm")
    objective = build_objective(weights.model.objective, image_size=16, seed=9)
    initial = initial_weights(objective, tmp_path, {})
    initial.load_into(objective)
    assert "timm" in initial.source
    trunk: Any = objective.trunk
    with torch.no_grad():
        assert torch.equal(trunk.eval()(images()), features(weights))


def test_a_vision_transformer_with_other_positions_is_refused(run: Path, tmp_path: Path) -> None:
    export_weights(read_weights(run), tmp_path, form="timm")
    path = tmp_path / "model.safetensors"
    tensors = load_file(path)
    save_file(tensors | {"pos_embed": tensors["pos_embed"] + 0.5}, path)
    with pytest.raises(ValueError, match=r"its positions are not AIM's fixed sines and cosines, but up to 0\.5 away"):
        read_weights(tmp_path)
    for shape in ((), (3,), (2, 16, 16)):
        save_file(tensors | {"pos_embed": torch.zeros(shape)}, path)
        with pytest.raises(ValueError, match=r"model\.safetensors: positions of shape .* are of no square of patches"):
            read_weights(tmp_path)


def test_weights_can_be_exported_in_half_the_bytes(run: Path, tmp_path: Path) -> None:
    first = read_weights(run)
    done = export_weights(first, tmp_path, form="timm", dtype="bfloat16")
    again = read_weights(tmp_path)
    assert {tensor.dtype for tensor in again.tensors.values()} == {torch.bfloat16}
    written = load_file(tmp_path / "model.safetensors").values()
    assert (done.tensors, done.bytes) == (len(written), sum(2 * tensor.numel() for tensor in written))
    assert (features(again) - features(first)).abs().max() < 0.1


def test_the_mean_of_two_models(run: Path, supervised: Path, tmp_path: Path) -> None:
    first, second = (read_weights(run / "checkpoints" / name) for name in ("00000002", "00000003"))
    wanted = {name: (tensor + second.tensors[name]) / 2 for name, tensor in first.tensors.items()}
    export_weights(averaged([first, second]), tmp_path, form="safetensors")
    found = read_weights(tmp_path).tensors
    assert all(torch.equal(found[name], tensor) for name, tensor in wanted.items())
    with pytest.raises(ValueError, match=r"is of another model than .*: their weights have no mean"):
        averaged([second, read_weights(supervised)])


def test_a_mean_of_bfloat16_is_rounded_once(run: Path) -> None:
    several = [read_weights(run) for _ in range(3)]
    for weights, value in zip(several, (256.0, 1.0, 1.0), strict=True):
        for name, tensor in weights.tensors.items():
            weights.tensors[name] = torch.full_like(tensor, value, dtype=torch.bfloat16)
    assert {float(tensor.max()) for tensor in averaged(several).tensors.values()} == {86.0}


def test_what_a_model_is_not_is_refused_before_anything_is_written(run: Path, tmp_path: Path) -> None:
    weights = read_weights(run)
    for form, message in (("open_clip", "only clip has"), ("onnx", "known: safetensors, torch, ml-aim, timm")):
        with pytest.raises(ValueError, match=message):
            export_weights(weights, tmp_path / "out", form=form)
    with pytest.raises(ValueError, match="known: float32, bfloat16, float16"):
        export_weights(weights, tmp_path / "out", form="timm", dtype="int8")
    weights.tensors["trunk.blocks.0.mlp.fc1.weight"][0, 0] = 1e6
    with pytest.raises(ValueError, match=r"00000003: trunk.blocks.0.mlp.fc1.weight is not finite in float16"):
        export_weights(weights, tmp_path / "out", form="timm", dtype="float16")
    assert not (tmp_path / "out").exists()


@pytest.fixture
def clip(run_file: Callable[..., Path]) -> Path:
    path = run_file("clip", steps=1, validation=None, objective=CLIP)
    return train(load_run(path, ["mixture.image_size=16"])).out


@pytest.mark.full
@torch.no_grad()
def test_open_clip_loads_both_towers(clip: Path, tmp_path: Path) -> None:
    import open_clip

    weights = read_weights(clip)
    done = export_weights(weights, tmp_path / "out", form="open_clip")
    model = open_clip.create_model(done.load.split('"')[1]).eval()
    ours: Any = objective_of(weights)
    assert torch.equal(model.encode_image(images()), ours.model.encode_image(images()))
    with pytest.raises(ValueError, match="an objective clip has no trunk of AIM's form, which timm needs"):
        export_weights(weights, tmp_path / "out", form="timm")


def test_another_epsilon_of_the_norms_is_told(
    run_file: Callable[..., Path], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = run_file("eps", steps=1, validation=None)
    weights = read_weights(train(load_run(path, ["objective.norm_eps=1e-5"])).out)
    export_weights(weights, tmp_path / "ours", form="safetensors")
    assert "epsilon" not in caplog.text
    export_weights(weights, tmp_path / "timm", form="timm")
    assert "epsilon 1e-05, timm computes with 1e-06" in caplog.text


def test_every_format_says_what_it_is_and_how_it_is_loaded() -> None:
    assert all(form.says and "FOLDER" in form.load for form in FORMATS.values())
