"""Published ways of fine-tuning, and the run that one of them means for a checkpoint and a dataset.

A recipe is parts of a run file, so whatever it sets can be overridden there. What the stream's augmentation lacks of a
published recipe is left out and said: RandAugment and random erasing.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from headrace.config import config_to_dict
from headrace.shards.dataset import FAST_COLUMNS, open_dataset
from headrace.train.evaluate.labels import MAX_CLASSES
from headrace.train.runs.weights import ModelRecord

LR_BATCH = 256
"""Base rates are per so many images of a step, as MAE's; SimMIM's are per 512."""
MAX_LANES = 64
# Resize(256) and CenterCrop(224); small pictures, which have no border to spare, are judged whole.
CENTER_FRACTION = 0.875
SMALL_PIXELS = 96

LEFT_OUT = "RandAugment and random erasing, which the stream's augmentation does not have, are left out"

_FULL: dict[str, Any] = {
    "objective": {"label_smoothing": 0.1, "drop_path": 0.1, "mix": {"mixup": 0.8, "cutmix": 1.0}},
    "optimizer": {"betas": [0.9, 0.999], "weight_decay": 0.05, "layer_decay": 0.65},
    "schedule": {"warmup_lr": 0.0, "final_lr": 1e-6},
    "clip_grad_norm": 1e6,
}


@dataclass(frozen=True, kw_only=True, slots=True)
class Recipe:
    """One way of fine-tuning."""

    says: str
    """What it is and where it comes from, in one line."""
    epochs: int
    global_batch: int
    base_lr: float
    """Highest learning rate of a step of 256 images; it grows with the batch."""
    warmup_epochs: float
    run: Mapping[str, Any] = field(default_factory=dict)
    """What else differs from the defaults of a run file."""


def _over(base: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """Return `base` with the values of `changes` in their places."""
    merged = dict(base)
    for key, value in changes.items():
        old = merged.get(key)
        merged[key] = _over(old, value) if isinstance(old, Mapping) and isinstance(value, Mapping) else value
    return merged


RECIPES = {
    "mae-base": Recipe(
        says="everything, layer decay 0.65: MAE's fine-tuning of ViT-B, arXiv:2111.06377, table 9",
        epochs=100,
        global_batch=1024,
        base_lr=5e-4,
        warmup_epochs=5,
        run=_FULL,
    ),
    "mae-large": Recipe(
        says="everything, layer decay 0.75: MAE's fine-tuning of ViT-L, arXiv:2111.06377, table 9",
        epochs=50,
        global_batch=1024,
        base_lr=1e-3,
        warmup_epochs=5,
        run=_over(_FULL, {"objective": {"drop_path": 0.2}, "optimizer": {"layer_decay": 0.75}}),
    ),
    "simmim": Recipe(
        says="everything, layer decay 0.75: SimMIM's fine-tuning, arXiv:2111.09886, and its configs",
        epochs=100,
        global_batch=2048,
        base_lr=6.25e-4,
        warmup_epochs=20,
        run=_over(_FULL, {"optimizer": {"layer_decay": 0.75}, "clip_grad_norm": 5.0}),
    ),
    "lora": Recipe(
        says="adapters of rank 8 on q, v and proj, attentive head: arXiv:2401.08541, table 8; rate and epochs ours",
        epochs=100,
        global_batch=1024,
        base_lr=5e-4,
        warmup_epochs=5,
        run={
            "objective": {"head": "attentive", "mix": {"mixup": 0.8}, "lora": {"rank": 8, "alpha": 1.0}},
            "optimizer": {"betas": [0.9, 0.999], "weight_decay": 0.05},
            "schedule": {"warmup_lr": 0.0, "final_lr": 1e-5},
            "mixture": {"augment": {"colour_jitter": [0.3, 0.3, 0.3, 0.0]}},
            "clip_grad_norm": 3.0,
        },
    ),
}
"""What `headrace finetune --recipe` knows."""


@dataclass(frozen=True, kw_only=True, slots=True)
class FinetuneOptions:
    """What a user chooses of a fine-tuning; everything else is the recipe's, or a value of the run file."""

    checkpoint: Path
    """Run folder, checkpoint, exported or released file."""
    train: str
    """URL of a labelled dataset to fit on."""
    validation: str
    """URL of a labelled dataset that is looked at after each epoch."""
    out: str
    """Folder of the run."""
    recipe: str = "mae-base"
    """A name of the table."""
    epochs: int = 0
    """Passes over the training samples; 0 = the recipe's."""
    global_batch: int = 0
    """Images of a step; 0 = the recipe's."""
    image_size: int = 0
    """Side of the pictures; 0 = that of the checkpoint."""
    num_classes: int = 0
    """0 = as many as the training set has."""
    seed: int = 0
    """Decides the head's first weights, the order, crops, mixes and dropped blocks."""
    untrained: bool = False
    """Begin from fresh weights instead: the comparison."""

    def __post_init__(self) -> None:
        if self.recipe not in RECIPES:
            raise ValueError(f"--recipe: unknown {self.recipe!r}; known: {', '.join(RECIPES)}")
        for name in ("epochs", "global_batch", "image_size", "num_classes"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")


def finetune_run(options: FinetuneOptions, model: ModelRecord) -> dict[str, Any]:
    """Return the content of the run file that fine-tunes `model`, which is what `options.checkpoint` holds."""
    recipe = RECIPES[options.recipe]
    samples = open_dataset(options.train).num_samples
    if samples < 2:
        raise ValueError(f"{options.train}: fine-tuning needs at least 2 samples, it has {samples}")
    global_batch = min(options.global_batch or recipe.global_batch, samples)
    lanes = _lanes(global_batch)
    epochs = options.epochs or recipe.epochs
    steps_per_epoch = max(1, samples // global_batch)
    image_size = options.image_size or model.image_size
    tuned = model.objective.kind == "finetune"
    of = config_to_dict(model.objective)["of"] if tuned else config_to_dict(model.objective)
    run: dict[str, Any] = {
        "out": options.out,
        "seed": options.seed,
        "steps": epochs * steps_per_epoch,
        "global_batch": global_batch,
        "mixture": {
            "seed": options.seed,
            "lanes": lanes,
            "image_size": image_size,
            "sources": [{"name": "train", "url": options.train}],
            "augment": {"scale": [0.08, 1.0], "interpolation": "bicubic"},
        },
        "objective": {"kind": "finetune", "of": of, "num_classes": options.num_classes or count_classes(options.train)},
        "optimizer": {"lr": recipe.base_lr * global_batch / LR_BATCH},
        "schedule": {"warmup_fraction": min(0.5, recipe.warmup_epochs / recipe.epochs)},
        "validation": {
            "dataset": options.validation,
            "every": steps_per_epoch,
            "interpolation": "bicubic",
            "center_fraction": CENTER_FRACTION if image_size >= SMALL_PIXELS else 1.0,
        },
        "checkpoint": {"every": steps_per_epoch, "keep": 2},
        "log_every": max(1, steps_per_epoch // 10),
    }
    if not options.untrained:
        run["init_from"] = str(options.checkpoint)
        # The head of a model that was fine-tuned before belongs to other classes.
        run["init_rename"] = {"classifier.": ""} if tuned else {}
    return _over(run, recipe.run)


def count_classes(url: str, column: str = "label") -> int:
    """Return the number of classes of a dataset: of its names, or else one more than the largest label.

    Raises ValueError if there is no label.
    """
    dataset = open_dataset(url)
    dataset.require_columns([column])
    largest = -1
    for shard, facts in enumerate(dataset.shards):
        if not facts.num_samples:
            continue
        table, names = dataset.index_part(shard, [*FAST_COLUMNS, column])
        if column not in names:
            raise ValueError(f"{dataset.index_url(shard)} has no column {column}; it has {', '.join(names)}")
        values = table.column(column)
        if pa.types.is_list(values.type) or pa.types.is_large_list(values.type):
            values = pc.list_flatten(values)
        numbers = np.asarray(values.drop_null().to_numpy(zero_copy_only=False))
        if numbers.size and numbers.dtype.kind not in "iu":
            raise ValueError(f"{url}: the column {column} does not hold whole numbers, which classes are: 0, 1, 2, ...")
        largest = max(largest, int(numbers.max(initial=-1)))
    if largest >= MAX_CLASSES:
        raise ValueError(f"{url}: label {largest} of its column {column} is no class: 0..{MAX_CLASSES - 1} at most")
    if largest < 1:
        raise ValueError(f"{url}: its column {column} has {'one class' if largest == 0 else 'no label'}")
    return max(largest + 1, len(dataset.classes))


def _lanes(global_batch: int) -> int:
    """Return lanes that divide the batch and give two pictures or more a step, so that mixup finds partners."""
    lanes = math.gcd(global_batch, MAX_LANES)
    while lanes > 1 and global_batch // lanes < 2:
        lanes //= 2
    if global_batch // lanes < 2:
        raise ValueError(f"a step of {global_batch} images is too small to fine-tune with; give --batch 2 or more")
    return lanes
