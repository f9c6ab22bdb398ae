"""Trunks of contrastive runs go to timm and torchvision and come from them and from MoCo v3: the same features."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from headrace.train.config import load_run
from headrace.train.loop import train
from headrace.train.models.backbones import BackboneConfig
from headrace.train.objectives.build import build_objective
from headrace.train.objectives.contrastive.moco import Moco, MocoConfig
from headrace.train.objectives.finetune import Finetune, FinetuneConfig
from headrace.train.objectives.objective import released_names
from headrace.train.runs.formats import export_weights
from headrace.train.runs.initial import initial_weights
from headrace.train.runs.weights import ModelRecord, Weights, read_weights
from tests.train.objectives.contrastive.test_runs import file_of

VIT = {"model": "tiny", "patch": 8, "width": 16, "depth": 2, "heads": 2}
RESNET = {"model": "resnet18"}
SWIN = {"model": "swinv2-mini", "width": 16, "heads": 2, "depths": [1, 2, 1], "small_images": True}


def moco(side: int = 16, seed: int = 3, **backbone: Any) -> Moco:
    config = MocoConfig(kind="moco", backbone=BackboneConfig(**backbone), hidden_width=24, feature_width=8)
    objective = build_objective(config, image_size=side, seed=seed)
    assert isinstance(objective, Moco)
    objective.encoder.pooled(images(side))  # statistics of BatchNorm, where there is one
    return objective.eval()


def weights_of(objective: Moco) -> Weights:
    record = ModelRecord(objective=objective.config, image_size=objective.image_size, seed=3)
    tensors = {name: x.detach() for name, x in released_names(objective, objective.state_dict()).items()}
    return Weights(path=Path("run"), model=record, step=1, tensors=tensors)


def images(side: int = 16) -> Tensor:
    return torch.randn(3, 3, side, side, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize(
    "backbone",
    [
        VIT,
        VIT | {"pool": "mean", "last_norm": False, "positions": "none"},
        VIT | {"positions": "learned", "patch_projection": "batch_norm"},
        VIT | {"patch_projection": "weight_norm"},
        RESNET,
        SWIN,
        SWIN | {"window": 3, "bias_windows": [4, 4, 2]},
    ],
)
@torch.no_grad()
def test_timm_loads_the_trunk_and_computes_the_same(backbone: dict[str, Any], tmp_path: Path) -> None:
    import timm

    objective = moco(32, **backbone)
    done = export_weights(weights_of(objective), tmp_path, form="timm")
    model = timm.create_model(f"local-dir:{tmp_path}", pretrained=True).eval()
    torch.testing.assert_close(model(images(32)), objective.encoder.pooled(images(32)), atol=2e-6, rtol=1e-6)
    model.load_state_dict(load_file(tmp_path / "model.safetensors"), strict=True)
    assert done.load == f'timm.create_model("local-dir:{tmp_path}", pretrained=True)'
    assert list(timm.data.resolve_model_data_config(model)["input_size"][1:]) == [32, 32]
    again = moco(32, seed=4, **backbone | {"patch_projection": "learned"} if "patch" in backbone else backbone)
    initial = initial_weights(again, tmp_path, {})
    initial.load_into(again)
    assert not [name for name in initial.left_out if not name.startswith("head")]
    torch.testing.assert_close(again.encoder.pooled(images(32)), model(images(32)), atol=2e-6, rtol=1e-6)


@pytest.mark.parametrize("backbone", [VIT, VIT | {"pool": "mean"}, RESNET, SWIN])
@torch.no_grad()
def test_timm_gives_the_logits_of_a_fine_tuned_trunk(backbone: dict[str, Any], tmp_path: Path) -> None:
    import timm

    of = MocoConfig(kind="moco", backbone=BackboneConfig(**backbone), hidden_width=24, feature_width=8)
    config = FinetuneConfig(kind="finetune", of=of, num_classes=3)
    objective = build_objective(config, image_size=32, seed=3).eval()
    assert isinstance(objective, Finetune)
    torch.nn.init.normal_(objective.classifier.linear.weight)
    tensors = {name: x.detach() for name, x in released_names(objective, objective.state_dict()).items()}
    record = ModelRecord(objective=config, image_size=32, seed=3)
    export_weights(Weights(path=Path("run"), model=record, step=1, tensors=tensors), tmp_path, form="timm")
    model = timm.create_model(f"local-dir:{tmp_path}", pretrained=True).eval()
    torch.testing.assert_close(model(images(32)), objective.logits(images(32)), atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_torchvision_loads_a_resnet_strictly(tmp_path: Path) -> None:
    import torchvision

    objective = moco(32, **RESNET)
    export_weights(weights_of(objective), tmp_path, form="torchvision")
    model = torchvision.models.resnet18()
    model.fc = nn.Identity()
    model.load_state_dict(torch.load(tmp_path / "model.pth", weights_only=True), strict=True)
    assert torch.equal(model.eval()(images(32)), objective.encoder.pooled(images(32)))


@pytest.mark.parametrize(
    ("backbone", "form", "message"),
    [
        (VIT, "torchvision", "an objective moco has a transformer, and torchvision's have other names; take timm"),
        (VIT, "ml-aim", "an objective moco has no trunk of AIM's form, which ml-aim needs"),
        (RESNET | {"small_images": True}, "timm", "a ResNet with the stem for small images, which timm has not"),
        (SWIN | {"main_norms": 1}, "timm", "a SwinV2 with norms of the sum .`main_norms`., which timm has not"),
        (RESNET | {"width": 8}, "torchvision", "a ResNet of width 8, and those of torchvision have 64; take torch"),
    ],
)
def test_a_form_that_a_trunk_has_not_is_refused(
    backbone: dict[str, Any], form: str, message: str, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match=message):
        export_weights(weights_of(moco(16, **backbone)), tmp_path / "out", form=form)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("backbone", [VIT, RESNET | {"width": 8}])
def test_a_checkpoint_of_moco_starts_a_run(backbone: dict[str, Any], tmp_path: Path) -> None:
    """Its names: encoder and heads in one, behind `module.`; heads where the classifier was."""
    source, classifier = moco(16, **backbone), "fc" if "resnet" in backbone["model"] else "head"
    stems = {"encoder.": "base_encoder.", "projector.": f"base_encoder.{classifier}.", "predictor.": "predictor."}
    stems |= {"momentum.encoder.": "momentum_encoder.", "momentum.projector.": f"momentum_encoder.{classifier}."}
    state = {
        f"module.{theirs}{name.removeprefix(ours)}": tensor
        for name, tensor in source.state_dict().items()
        for ours, theirs in stems.items()
        if name.startswith(ours)
    }
    assert len(state) == len(source.state_dict())
    torch.save({"epoch": 300, "arch": "vit_small", "state_dict": state}, tmp_path / "vit-s-300ep.pth.tar")
    objective = moco(16, seed=4, **backbone)
    initial = initial_weights(objective, tmp_path / "vit-s-300ep.pth.tar", {})
    initial.load_into(objective)
    assert "MoCo v3" in initial.source
    assert (initial.fresh, initial.left_out) == ((), ())
    for (name, tensor), other in zip(objective.state_dict().items(), source.state_dict().values(), strict=True):
        assert torch.equal(tensor, other), name


@torch.no_grad()
def test_a_file_of_microsofts_swin_starts_a_run(tmp_path: Path) -> None:
    """It halves the grid at the end of a stage, and holds constants; files of their SimMIM have a prefix."""
    source = moco(32, **SWIN)
    for prefix in ("", "encoder."):
        state = {"layers.0.blocks.0.attn.relative_coords_table": torch.zeros(1, 7, 7, 2)}
        for name, tensor in source.encoder.state_dict().items():
            number = name.split(".")[1]
            later = ".downsample." in name
            state[name.replace(f"layers.{number}", f"layers.{int(number) - 1}") if later else name] = tensor
        torch.save({"model": {prefix + name: x for name, x in state.items()}}, tmp_path / "swin.pth")
        objective = moco(32, seed=4, **SWIN)
        initial = initial_weights(objective, tmp_path / "swin.pth", {})
        initial.load_into(objective)
        assert initial.source.endswith("(Microsoft's SwinV2)")
        assert not initial.left_out
        assert torch.equal(objective.encoder.pooled(images(32)), source.encoder.pooled(images(32)))


def test_a_file_of_another_resolution_brings_no_foreign_positions(tmp_path: Path) -> None:
    source = moco(32, **VIT)
    save_file({name: x.clone() for name, x in source.encoder.state_dict().items()}, tmp_path / "vit.safetensors")
    objective = moco(16, seed=4, **VIT)
    own = objective.encoder.pos_embed.clone()
    initial = initial_weights(objective, tmp_path / "vit.safetensors", {})
    initial.load_into(objective)
    assert initial.resampled == ("pos_embed",)
    assert torch.equal(objective.encoder.pos_embed, own)
    torch.testing.assert_close(objective.encoder.pooled(images(32)), source.encoder.pooled(images(32)))
    wrong = source.encoder.state_dict() | {"pos_embed": torch.randn(1, 17, 16)}
    save_file({name: x.clone() for name, x in wrong.items()}, tmp_path / "wrong.safetensors")
    with pytest.raises(ValueError, match=r"wrong.safetensors: pos_embed: its positions are not MoCo's"):
        initial_weights(objective, tmp_path / "wrong.safetensors", {})


def test_a_resnet_file_without_counters_fills_the_trunk(tmp_path: Path) -> None:
    """Torchvision's older files are of a torch whose BatchNorm did not count."""
    source, path = moco(32, **RESNET), tmp_path / "resnet.pth"
    state = {name: x for name, x in source.encoder.state_dict().items() if not name.endswith("num_batches_tracked")}
    torch.save(state, path)
    objective = moco(32, seed=4, **RESNET)
    initial_weights(objective, path, {}).load_into(objective)
    assert torch.equal(objective.encoder.pooled(images(32)), source.encoder.pooled(images(32)))
    torch.save({name: x for name, x in state.items() if name != "bn1.running_var"}, path)
    with pytest.raises(ValueError, match=r"it fills a part of the trunk: 1 tensors are missing: bn1.running_var"):
        initial_weights(objective, path, {})


def test_a_resnet_trains_and_is_exported_with_its_statistics(run_file: Callable[..., Path], tmp_path: Path) -> None:
    backbone = {"model": "resnet18", "width": 8, "small_images": True}
    changes = {"objective": {"kind": "moco", "backbone": backbone, "hidden_width": 24, "feature_width": 8}}
    whole = train(load_run(file_of(run_file, "moco", steps=4, validation=None, **changes))).out
    first = read_weights(whole)
    assert int(first.tensors["bn1.num_batches_tracked"]) == 8  # two views a step
    export_weights(first, tmp_path / "torch", form="torch")
    again = read_weights(tmp_path / "torch")
    assert all(torch.equal(again.tensors[name], tensor) for name, tensor in first.tensors.items())
    assert again.model == first.model
