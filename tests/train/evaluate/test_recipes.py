"""Recipes become runs: rates by the batch, lanes that leave partners, classes of the data."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from headrace.config import build_config
from headrace.pipeline import RandAugment, RandomErasing
from headrace.train.config import RunConfig, public_dict
from headrace.train.evaluate.begun import as_begun
from headrace.train.evaluate.recipes import KIND_OF, RECIPES, FinetuneOptions, count_classes, finetune_run
from headrace.train.objectives.aim import AimConfig
from headrace.train.objectives.finetune import FinetuneConfig
from headrace.train.objectives.simmim import SimmimConfig
from headrace.train.runs.weights import ModelRecord

OF = AimConfig(kind="aim", model="tiny", patch=4, width=16, depth=2, heads=2, head_width=16, head_depth=1)


def run_of(pictures: str, **changes: Any) -> RunConfig:
    options = FinetuneOptions(checkpoint=Path("a"), train=pictures, validation=pictures, out="b", **changes)
    return build_config(RunConfig, finetune_run(options, ModelRecord(objective=OF, image_size=16, seed=0)))


@pytest.mark.parametrize("recipe", [name for name, one in RECIPES.items() if KIND_OF[one.task] == "finetune"])
def test_every_recipe_is_a_run(pictures: str, recipe: str) -> None:
    run = run_of(pictures, recipe=recipe)
    assert run.global_batch == 96, "of 96 pictures a step holds all at most"
    assert run.global_batch // run.mixture.lanes >= 2
    assert isinstance(run.objective, FinetuneConfig)
    assert run.objective.num_classes == 3
    assert run.optimizer.lr == pytest.approx(RECIPES[recipe].base_lr * 96 / 256)
    assert run.steps == RECIPES[recipe].epochs
    assert run.init_from == "a"


def test_the_published_numbers() -> None:
    """MAE's fine-tuning of ViT-B at its batch of 1024; AIM's adapters at alpha 1."""
    base, thin = RECIPES["mae-base"], RECIPES["lora"]
    assert base.base_lr * 1024 / 256 == pytest.approx(2e-3)
    assert base.run["optimizer"]["layer_decay"] == 0.65
    assert base.run["objective"] == {"label_smoothing": 0.1, "drop_path": 0.1, "mix": {"mixup": 0.8, "cutmix": 1.0}}
    assert (
        RECIPES["mae-large"].run["optimizer"]["layer_decay"]
        == RECIPES["simmim"].run["optimizer"]["layer_decay"]
        == 0.75
    )
    changes = {
        "rand_augment": {"num_ops": 2, "magnitude": 9.0, "magnitude_std": 0.5, "increasing": True},
        "random_erasing": {"probability": 0.25, "mode": "pixel", "count": 1},
    }
    for name in ("mae-base", "mae-large", "simmim", "study-classify", "study-longtail"):
        assert RECIPES[name].run["mixture"]["augment"] == changes, name
    assert not {"rand_augment", "random_erasing"} & thin.run["mixture"]["augment"].keys()
    assert thin.run["objective"]["lora"] == {"rank": 8, "alpha": 1.0}
    assert thin.run["objective"]["mix"] == {"mixup": 0.8}
    assert RECIPES["simmim"].base_lr * 512 / 256 == pytest.approx(1.25e-3)


def test_a_run_of_a_release_before_goes_on_as_it_was_begun(pictures: str, tmp_path: Path) -> None:
    options = FinetuneOptions(checkpoint=Path("a"), train=pictures, validation=pictures, out=str(tmp_path))
    run = finetune_run(options, ModelRecord(objective=OF, image_size=16, seed=0))
    assert as_begun(run) == run, "no run is there"
    config = build_config(RunConfig, run)
    written = public_dict(config)
    assert config.mixture.augment.rand_augment == RandAugment()
    assert config.mixture.augment.random_erasing == RandomErasing()
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(written))
    assert as_begun(run) == run, "a run of today"
    written["mixture"]["augment"] |= {"rand_augment": None}
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(written))
    assert as_begun(run) == run, "told to leave it out, which the same command says again"
    for name in ("rand_augment", "random_erasing"):
        del written["mixture"]["augment"][name]
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(written))
    before = build_config(RunConfig, as_begun(run))
    assert (before.mixture.augment.rand_augment, before.mixture.augment.random_erasing) == (None, None)
    assert before.mixture.augment.interpolation == "bicubic"


def test_masks_and_boxes_do_not_follow_what_moves(pictures: str) -> None:
    options = FinetuneOptions(
        checkpoint=Path("a"), train=pictures, validation=pictures, out="b", task="segment", num_classes=3
    )
    run = finetune_run(options, ModelRecord(objective=OF, image_size=16, seed=0))
    run["mixture"]["augment"]["random_erasing"] = {}
    build_config(RunConfig, run)
    run["mixture"]["augment"]["rand_augment"] = {}
    with pytest.raises(ValueError, match=r"mixture\.augment\.rand_augment moves pixels, which masks and boxes do not"):
        build_config(RunConfig, run)


def test_untrained_begins_from_nothing_and_a_fine_tuned_model_gets_a_fresh_head(pictures: str) -> None:
    assert run_of(pictures, untrained=True).init_from is None
    tuned = ModelRecord(objective=FinetuneConfig(kind="finetune", of=OF, num_classes=7), image_size=16, seed=0)
    options = FinetuneOptions(checkpoint=Path("a"), train=pictures, validation=pictures, out="b")
    run = build_config(RunConfig, finetune_run(options, tuned))
    assert isinstance(run.objective, FinetuneConfig)
    assert run.objective.of == OF
    assert run.init_rename == {"classifier.": ""}


@pytest.mark.parametrize(("side", "expected"), [(192, None), (0, None), (224, (12, 12, 12, 6))])
def test_a_swin_at_another_side_measures_places_as_it_was_trained(
    pictures: str, side: int, expected: tuple[int, ...] | None
) -> None:
    """Its windows follow the grid: 14 tokens at 224 pixels."""
    model = ModelRecord(objective=SimmimConfig(kind="simmim"), image_size=192, seed=0)
    options = FinetuneOptions(
        checkpoint=Path("a"), train=pictures, validation=pictures, out="b", recipe="simmim", image_size=side
    )
    run = build_config(RunConfig, finetune_run(options, model))
    assert isinstance(run.objective, FinetuneConfig)
    assert isinstance(run.objective.of, SimmimConfig)
    backbone = run.objective.of.backbone
    assert backbone.bias_windows == expected
    assert backbone.swin(run.mixture.image_size).window_side == (14 if side == 224 else 12)


def test_classes_are_counted(tmp_path: Path, write_dataset: Callable[..., str]) -> None:
    some = write_dataset(tmp_path / "some", samples=6, change=lambda n, columns: columns | {"label": n or None})
    assert count_classes(some) == 6
    none = write_dataset(tmp_path / "none", samples=6, change=lambda _, columns: columns | {"label": None})
    with pytest.raises(ValueError, match="its column label has no label"):
        count_classes(none)
    with pytest.raises(ValueError, match="has no column genus"):
        count_classes(some, "genus")
    far = write_dataset(tmp_path / "far", samples=6, change=lambda n, columns: columns | {"label": n + 10**9})
    with pytest.raises(ValueError, match="label 1000000005 of its column label is no class"):
        count_classes(far)
