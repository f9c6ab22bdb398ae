"""Published ways of fine-tuning, and the run that one of them means for a checkpoint and a dataset.

A recipe is parts of a run file, so whatever it sets can be overridden there. A run goes on as the
release that began it had its recipe: `begun`.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from headrace.config import config_to_dict
from headrace.shards.dataset import FAST_COLUMNS, open_dataset
from headrace.text import known_words
from headrace.train.evaluate.labels import MAX_CLASSES, read_dataset_labels
from headrace.train.models.backbones import BackboneConfig
from headrace.train.models.encoder import FeatureMaps
from headrace.train.objectives.dense.masks import OtherSizes
from headrace.train.objectives.objective import names_in_trunk, released_names
from headrace.train.objectives.tuned import TUNED
from headrace.train.runs.weights import ModelRecord
from headrace.train.tasks.read import num_classes_of

Task = Literal["classify", "longtail", "segment", "detect"]
TASKS: tuple[Task, ...] = get_args(Task)
KIND_OF: dict[Task, str] = {"classify": "finetune", "longtail": "finetune", "segment": "segment", "detect": "detect"}
"""The objective of each task."""
LR_BATCH = 256
"""Base rates are per so many images of a step, as MAE's; SimMIM's are per 512."""
MAX_LANES = 64
# Resize(256) and CenterCrop(224); small pictures, which have no border to spare, are judged whole.
CENTER_FRACTION = 0.875
SMALL_PIXELS = 96

# rand-m9-mstd0.5-inc1 is MAE's table 9 (arXiv:2111.06377) and main_finetune.py, and the default of SimMIM's and Swin's
# config.py; erasing is in no table: MAE's FINETUNE.md (--reprob 0.25), REPROB, REMODE and RECOUNT of those config.py.
_CHANGES: dict[str, Any] = {
    "rand_augment": {"num_ops": 2, "magnitude": 9.0, "magnitude_std": 0.5, "increasing": True},
    "random_erasing": {"probability": 0.25, "mode": "pixel", "count": 1},
}
_FULL: dict[str, Any] = {
    "mixture": {"augment": _CHANGES},
    "objective": {"label_smoothing": 0.1, "drop_path": 0.1, "mix": {"mixup": 0.8, "cutmix": 1.0}},
    "optimizer": {"betas": [0.9, 0.999], "weight_decay": 0.05, "layer_decay": 0.65},
    "schedule": {"warmup_lr": 0.0, "final_lr": 1e-6},
    "clip_grad_norm": 1e6,
}
# configs/simmim/simmim_finetune__swinv2_base__img224_window14__800ep.yaml of microsoft/Swin-Transformer: its rates are
# per 512 images, and its smallest and first ones 2.5e-7 of them, which at 2048 is 1e-6.
_STUDY: dict[str, Any] = {
    "mixture": {"augment": _CHANGES},
    "objective": {"label_smoothing": 0.1, "drop_path": 0.1, "mix": {"mixup": 0.8, "cutmix": 1.0}},
    "optimizer": {"betas": [0.9, 0.999], "weight_decay": 0.05, "layer_decay": 0.75},
    "schedule": {"warmup_lr": 1e-6, "final_lr": 1e-6},
    "clip_grad_norm": 5.0,
}


@dataclass(frozen=True, kw_only=True, slots=True)
class Recipe:
    """One way of fine-tuning."""

    says: str
    """What it is and where it comes from, in one line."""
    epochs: int
    global_batch: int
    base_lr: float
    """Highest learning rate of a step of `lr_batch` images; it grows with the batch."""
    warmup_epochs: float
    task: Task = "classify"
    """What it is for."""
    lr_batch: int = LR_BATCH
    image_size: int = 0
    """Side of the pictures; 0 = that of the checkpoint."""
    steps: int = 0
    """Optimizer steps, where it is published so; 0 = as many as its epochs take."""
    warmup_steps: int = 0
    """The same of the warm-up; 0 = as `warmup_epochs` says."""
    linear: bool = False
    """The rate falls linearly from the warm-up to 0 at the last step."""
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
    "study-classify": Recipe(
        says="SwinV2's fine-tuning for ImageNet-1k in the data-scaling study, arXiv:2206.04664: its released config",
        epochs=100,
        global_batch=2048,
        base_lr=6.25e-4,
        warmup_epochs=20,
        run=_STUDY,
    ),
    "study-longtail": Recipe(
        says="iNaturalist 2018 in the data-scaling study: its table was not recovered, so as study-classify",
        task="longtail",
        epochs=100,
        global_batch=2048,
        base_lr=6.25e-4,
        warmup_epochs=20,
        run=_STUDY,
    ),
    "study-segment": Recipe(
        says="ADE20K by UPerNet: the numbers of Swin's released configs; the study's table was not recovered",
        task="segment",
        epochs=128,
        steps=160_000,
        global_batch=16,
        lr_batch=16,
        base_lr=6e-5,
        warmup_epochs=0,
        warmup_steps=1500,
        linear=True,
        image_size=512,
        run={
            "objective": {"drop_path": 0.3},
            "optimizer": {"betas": [0.9, 0.999], "weight_decay": 0.01},
            # Resize by 0.5 to 2, RandomCrop 512, Pad: what is missing is ImageNet's mean there.
            "mixture": {"augment": {"crop": "scale_jitter", "jitter": [0.5, 2.0], "pad_value": 116}},
            "clip_grad_norm": 1e6,
        },
    ),
    "study-detect": Recipe(
        says="COCO by Mask R-CNN: the numbers of Swin's released configs; the study's table was not recovered",
        task="detect",
        epochs=36,
        global_batch=16,
        lr_batch=16,
        base_lr=1e-4,
        warmup_epochs=0,
        warmup_steps=500,
        image_size=1024,
        run={
            "objective": {"drop_path": 0.2},
            "optimizer": {"betas": [0.9, 0.999], "weight_decay": 0.05},
            "schedule": {"kind": "step", "warmup_lr": 1e-7, "milestones": [0.75, 0.916667]},
            "mixture": {"augment": {"crop": "pad"}},
            "clip_grad_norm": 1e6,
        },
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
    task: Task = "classify"
    """What is learnt."""
    recipe: str = ""
    """A name of the table; '' = the first of its task."""
    epochs: int = 0
    """Passes over the training samples; 0 = the recipe's."""
    global_batch: int = 0
    """Images of a step; 0 = the recipe's."""
    image_size: int = 0
    """Side of the pictures; 0 = that of the checkpoint."""
    num_classes: int = 0
    """0 = as many as the training set has."""
    ignore_label: int = 255
    """Of masks: the number of a pixel without a class."""
    reduce_zero_label: bool = False
    """Of masks: 0 is no class, and 1 is class 0."""
    mask_sizes: str = "refuse"
    """Of masks of another size than their pictures: refuse, or nearest."""
    balance: str = "none"
    """How the classes of a long tail are weighed: none, effective or logits."""
    seed: int = 0
    """Decides the head's first weights, the order, crops, mixes and dropped blocks."""
    untrained: bool = False
    """Begin from fresh weights instead: the comparison."""

    def __post_init__(self) -> None:
        if self.task not in TASKS:
            raise ValueError(f"--task: unknown {self.task!r}; {known_words(self.task, TASKS)}")
        if self.recipe and self.recipe not in RECIPES:
            raise ValueError(f"--recipe: unknown {self.recipe!r}; {known_words(self.recipe, RECIPES)}")
        if KIND_OF[self.chosen.task] != KIND_OF[self.task]:
            fitting = [name for name, recipe in RECIPES.items() if KIND_OF[recipe.task] == KIND_OF[self.task]]
            raise ValueError(f"--recipe {self.recipe} is not for --task {self.task}; those are: {', '.join(fitting)}")
        for name in ("epochs", "global_batch", "image_size", "num_classes"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        if self.mask_sizes not in (sizes := get_args(OtherSizes)):
            raise ValueError(f"--mask-sizes: unknown {self.mask_sizes!r}; {known_words(self.mask_sizes, sizes)}")
        if self.balance != "none" and KIND_OF[self.task] != "finetune":
            raise ValueError(f"--balance is for --task longtail and classify, not {self.task}")

    @property
    def recipe_name(self) -> str:
        """The recipe's name in the table."""
        return self.recipe or next(name for name, recipe in RECIPES.items() if recipe.task == self.task)

    @property
    def chosen(self) -> Recipe:
        """The recipe."""
        return RECIPES[self.recipe_name]


def finetune_run(options: FinetuneOptions, model: ModelRecord) -> dict[str, Any]:
    """Return the content of the run file that fine-tunes `model`, which is what `options.checkpoint` holds."""
    recipe, kind = options.chosen, KIND_OF[options.task]
    samples = open_dataset(options.train).num_samples
    if samples < 2:
        raise ValueError(f"{options.train}: fine-tuning needs at least 2 samples, it has {samples}")
    global_batch = min(options.global_batch or recipe.global_batch, samples)
    steps_per_epoch = max(1, samples // global_batch)
    steps = options.epochs * steps_per_epoch or recipe.steps or recipe.epochs * steps_per_epoch
    image_size = options.image_size or _fitting(recipe.image_size, model) or model.image_size
    run: dict[str, Any] = {
        "out": options.out,
        "seed": options.seed,
        "steps": steps,
        "global_batch": global_batch,
        "mixture": {
            "seed": options.seed,
            "lanes": _lanes(global_batch),
            "image_size": image_size,
            "sources": [{"name": "train", "url": options.train}],
            "augment": _AUGMENT[kind],
        },
        "objective": {"kind": kind, "of": _pretrained(model, image_size), **_truth(options, kind)},
        "optimizer": {"lr": recipe.base_lr * global_batch / recipe.lr_batch},
        "schedule": _schedule(recipe, steps),
        "validation": {"dataset": options.validation, "every": steps_per_epoch, "interpolation": "bicubic"},
        "checkpoint": {"every": steps_per_epoch, "keep": 2},
        "log_every": max(1, steps_per_epoch // 10),
    }
    if kind == "finetune":
        run["validation"]["center_fraction"] = CENTER_FRACTION if image_size >= SMALL_PIXELS else 1.0
    if not options.untrained:
        run["init_from"] = str(options.checkpoint)
        run["init_rename"] = _heads(model)
    return _over(run, recipe.run)


def _pretrained(model: ModelRecord, image_size: int) -> dict[str, Any]:
    """Return the objective whose trunk is tuned, for images of this side."""
    own = config_to_dict(model.objective)
    of: dict[str, Any] = own.get("of", own)
    backbone = getattr(getattr(model.objective, "of", model.objective), "backbone", None)
    if isinstance(backbone, BackboneConfig):
        of["backbone"] = config_to_dict(backbone.at_side(image_size, trained_at=model.image_size))
    return of


_AUGMENT: dict[str, dict[str, Any]] = {
    "finetune": {"scale": [0.08, 1.0], "interpolation": "bicubic"},
    "segment": {"interpolation": "bicubic"},
    "detect": {"interpolation": "bicubic"},
}


def _heads(model: ModelRecord) -> dict[str, str]:
    """Return what of a fine-tuned model is left out: its head, which belongs to other classes."""
    if model.objective.kind not in TUNED:
        return {}
    sketch = model.sketch()
    own = released_names(sketch, sketch.state_dict()).keys() - names_in_trunk(sketch).keys()
    return dict.fromkeys(sorted({f"{name.partition('.')[0]}." for name in own}), "")


def _truth(options: FinetuneOptions, kind: str) -> dict[str, Any]:
    """Return what of the objective the data decide."""
    if kind == "segment":
        classes = options.num_classes or num_classes_of(options.train)
        rules = {"ignore_label": options.ignore_label, "reduce_zero_label": options.reduce_zero_label}
        return {"num_classes": classes, **rules, "mask_sizes": options.mask_sizes}
    if kind == "detect":
        return {"num_classes": options.num_classes or num_classes_of(options.train)}
    classes = options.num_classes or count_classes(options.train)
    if options.balance == "none":
        return {"num_classes": classes}
    counts = class_counts(options.train, classes).tolist()
    return {"num_classes": classes, "balance": options.balance, "class_counts": counts}


def _fitting(image_size: int, model: ModelRecord) -> int:
    """Return the recipe's side, or the next that the trunk's coarsest places divide."""
    trunk = model.sketch().trunk
    place = trunk.feature_strides[-1] if isinstance(trunk, FeatureMaps) else 1
    return -(-image_size // place) * place


def _schedule(recipe: Recipe, steps: int) -> dict[str, Any]:
    """Return warm-up and decay of a run of so many steps; a shorter one warms up for the same part."""
    part = recipe.warmup_epochs / recipe.epochs
    if recipe.warmup_steps:
        part = recipe.warmup_steps / (recipe.steps or max(steps, 2 * recipe.warmup_steps))
    if not recipe.linear:
        return {"warmup_fraction": min(0.5, part)}
    warmup = round(part * steps)
    return {"kind": "constant", "warmup_steps": warmup, "cooldown_steps": steps - warmup, "cooldown": "linear"}


def class_counts(url: str, num_classes: int) -> NDArray[np.int64]:
    """Return how many pictures of each class a dataset has. Raises ValueError for a label that is no class."""
    label_N = read_dataset_labels(url).label_N
    if label_N.max() >= num_classes:
        raise ValueError(f"{url}: label {label_N.max()} is out of range: there are {num_classes} classes")
    return np.bincount(label_N, minlength=num_classes)


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
