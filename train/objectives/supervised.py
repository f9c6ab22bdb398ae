"""Supervised: the classes of each picture, from a column of the index.

`softmax` wants one class a picture; `sigmoid` asks each class for itself, so a picture may have several or none.
Pictures without a label are left out of the loss and counted. The sigmoid loss is summed over classes and averaged over
pictures: Scaling Vision Transformers, arXiv:2106.04560.
"""

# B batch, L patches, D width, C classes, N pairs of a picture and one of its classes

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from headrace.pipeline import Batch
from headrace.train.models.encoder import TunableEncoder
from headrace.train.models.trunks.big_vision import SHAPES, BigVisionConfig, draw_as_big_vision, flops_of_pool
from headrace.train.models.trunks.standard_vit import StandardVit
from headrace.train.models.vit import MLP_RATIO, Vit, VitConfig
from headrace.train.objectives.objective import Columns, Objective, RowError
from headrace.train.pixels import CENTRED, IMAGENET_MEAN, IMAGENET_STD, Normalise, on_device

# What a batch has where the index has null.
NO_LABEL = -1


@dataclass(frozen=True, kw_only=True, slots=True)
class SupervisedConfig:
    """Supervised: the classes of each picture, from a column; a trunk, what it makes of a picture, a linear head."""

    kind: Literal["supervised"]
    """The tag of this objective."""
    num_classes: int
    """Classes are 0 .. num_classes - 1; a label outside is refused."""
    model: str = "tiny"
    """A row of the model table: tiny, s, Ti, S, B, L, g or G; the last two have `vit`."""
    patch: int = 16
    """Side of a patch in pixels; divides the mixture's image_size."""
    width: int | None = None
    """Channels of the trunk; null = the table's."""
    depth: int | None = None
    """Blocks of the trunk; null = the table's."""
    heads: int | None = None
    """Attention heads of the trunk; null = the table's."""
    vit: BigVisionConfig | None = None
    """The trunk of "Scaling Vision Transformers"; null = AIM's, and the mean of its tokens."""
    pixels: Literal["imagenet", "centred"] = "imagenet"
    """What the trunk sees: imagenet = less ImageNet's mean, over its deviation; centred = levels of -1 to 1."""
    column: str = "label"
    """Column of the index: a whole number, or a list of them; null and -1 = no label."""
    loss: Literal["softmax", "sigmoid"] = "softmax"
    """softmax = one class a picture; sigmoid = any number."""
    label_smoothing: float = 0.0
    """Share of the target that is spread over all classes; softmax only."""
    class_bias: float | None = None
    """Where the biases of the classes start, whose weights start at 0; null = with sigmoid at the log odds of one class
    a picture, else at 0. The paper has -10."""

    def __post_init__(self) -> None:
        if self.model not in SHAPES:
            raise ValueError(f"unknown model {self.model!r}; known models: {', '.join(SHAPES)}")
        least = 2 if self.loss == "softmax" else 1
        if self.num_classes < least:
            raise ValueError(f"num_classes must be at least {least} with loss {self.loss}, got {self.num_classes}")
        if not 0 <= self.label_smoothing < 1 or (self.label_smoothing and self.loss == "sigmoid"):
            raise ValueError(
                f"label_smoothing must be in [0, 1), and 0 with sigmoid, got {self.label_smoothing} with {self.loss}"
            )
        if self.class_bias is not None and not math.isfinite(self.class_bias):
            raise ValueError(f"class_bias must be finite, got {self.class_bias}")
        shape = SHAPES[self.model]
        if self.vit is None and shape.mlp != MLP_RATIO * shape.width and self.width is None:
            raise ValueError(
                f"model {self.model} has MLPs of {shape.mlp} channels, which only `vit` has: add vit: {{}}"
            )

    @property
    def idle(self) -> tuple[str, ...]:
        """Fields that came after the first runs, and have the value that those runs mean."""
        means = {"vit": None, "pixels": "imagenet", "class_bias": None}
        return tuple(name for name, meant in means.items() if getattr(self, name) == meant)

    @property
    def idle_within(self) -> tuple[str, ...]:
        """The same where another objective fine-tunes the trunk of this one."""
        return self.idle

    def build(self, *, image_size: int, seed: int) -> "Supervised":  # noqa: ARG002  torch's generator is seeded by then
        """Return the objective for images of this side."""
        return Supervised(self, image_size=image_size)

    def trunk(self, image_size: int) -> VitConfig:
        """Return the grid of the trunk for images of this side. Raises ValueError if they do not fit."""
        shape = SHAPES[self.model]
        return VitConfig(
            image_size=image_size,
            patch=self.patch,
            width=shape.width if self.width is None else self.width,
            depth=shape.depth if self.depth is None else self.depth,
            heads=shape.heads if self.heads is None else self.heads,
        )

    def encoder(self, image_size: int) -> TunableEncoder:
        """Return the trunk with its first weights. Raises ValueError if images of this side do not fit."""
        grid = self.trunk(image_size)
        if self.vit is None:
            return Vit(grid)
        mlp_width = SHAPES[self.model].mlp if self.width is None else MLP_RATIO * self.width
        encoder = StandardVit(self.vit.trunk(grid, mlp_width=mlp_width))
        draw_as_big_vision(encoder)
        return encoder


class Supervised(Objective):
    """Trunk with attention everywhere, what it makes of a picture, linear head."""

    missing = "missing_labels"
    reports = ("top1",)
    released_prefix = "encoder."

    def __init__(self, config: SupervisedConfig, *, image_size: int) -> None:
        super().__init__()
        self.config = config
        self.columns = (config.column,)
        self.normalise = Normalise(*(CENTRED if config.pixels == "centred" else (IMAGENET_MEAN, IMAGENET_STD)))
        self.encoder = config.encoder(image_size)
        self.head = nn.Linear(self.encoder.shape.width, config.num_classes)
        nn.init.zeros_(self.head.weight)
        nn.init.constant_(self.head.bias, _first_bias(config))

    @property
    def trunk(self) -> TunableEncoder:
        """The encoder."""
        return self.encoder

    @cached_property
    def train_flops_per_image(self) -> float:
        """6 x parameters x tokens + 12 x depth x width x tokens^2 of the trunk; the head sees one token.

        Attention pooling has three times what it takes forward: most of it sees one token too.
        """
        trunk, pool = self.encoder.shape, getattr(self.encoder, "attn_pool", None)
        parameters = sum(parameter.numel() for parameter in self.encoder.parameters())
        head = 6.0 * trunk.width * self.config.num_classes
        if pool is not None:
            parameters -= sum(parameter.numel() for parameter in pool.parameters())
            head += 3.0 * flops_of_pool(pool, trunk.num_patches)
        return 6.0 * parameters * trunk.num_patches + 12.0 * trunk.depth * trunk.width * trunk.num_patches**2 + head

    def usable(self, columns: Columns) -> NDArray[np.bool_]:
        """Return which pictures have a label. Raises RowError for one that is no class here."""
        return self._labels(columns).known_B

    def num_terms(self, batch: Batch) -> int:
        """Return the number of pictures that have a label."""
        return int(self.counted(batch).sum())

    def forward(self, batch: Batch) -> tuple[Tensor, Mapping[str, Tensor]]:
        """Return the sum over labelled pictures of their cross-entropy, and the share whose best class is right."""
        labels = self._labels(batch.columns)
        counted = batch.valid & labels.known_B
        images_B3HH = self.normalise(batch.images)
        row_N, class_N, counted_B = (
            on_device(array, images_B3HH.device) for array in (labels.row_N, labels.class_N, counted)
        )
        logits_BC = self.head(self.encoder.pooled(images_B3HH)).float()
        target_BC = torch.zeros_like(logits_BC)
        target_BC[row_N, class_N] = 1.0
        # All rows go through the trunk, also those that do not count: every rank has a gradient for every weight.
        loss = self._losses(logits_BC, target_BC).mul(counted_B).sum()
        right_B = target_BC.gather(1, logits_BC.detach().argmax(dim=1, keepdim=True))[:, 0]
        return loss, {"top1": right_B.mul(counted_B).sum() / max(1, int(counted.sum()))}

    def _losses(self, logits_BC: Tensor, target_BC: Tensor) -> Tensor:
        if self.config.loss == "sigmoid":
            return functional.binary_cross_entropy_with_logits(logits_BC, target_BC, reduction="none").sum(dim=1)
        spread = self.config.label_smoothing
        smooth_BC = target_BC * (1 - spread) + spread / self.config.num_classes
        return -(smooth_BC * logits_BC.log_softmax(dim=1)).sum(dim=1)

    def _labels(self, columns: Columns) -> "Labels":
        labels = read_labels(columns[self.config.column], self.config.num_classes)
        if self.config.loss == "softmax":
            counts = np.bincount(labels.row_N, minlength=len(labels.known_B))
            several = np.flatnonzero(counts > 1)
            if len(several):
                row = int(several[0])
                raise RowError(row, f"{counts[row]} labels; loss softmax wants one a picture, loss sigmoid takes any")
            return replace(labels, known_B=labels.known_B & (counts == 1))
        return labels


@dataclass(frozen=True, kw_only=True, slots=True)
class Labels:
    """The classes of the pictures of a batch, as pairs."""

    known_B: NDArray[np.bool_]
    """False where there is no label."""
    row_N: NDArray[np.int64]
    class_N: NDArray[np.int64]


def read_labels(column: NDArray[np.generic] | list[object], num_classes: int) -> Labels:
    """Return the classes that a column of whole numbers or of lists of them holds. Raises RowError for what is none."""
    if isinstance(column, np.ndarray):
        if column.dtype.kind != "i":
            raise RowError(0, f"the column of labels holds {column.dtype.name}; classes are whole numbers, or null")
        known_B = np.asarray(column != NO_LABEL)
        row_N, class_N = np.flatnonzero(known_B), column[known_B].astype(np.int64)
    else:
        known_B = np.array([value is not None and value != NO_LABEL for value in column], np.bool_)
        pairs = [(row, one) for row in np.flatnonzero(known_B).tolist() for one in _classes(column[row], row)]
        row_N, class_N = np.array(pairs, np.int64).reshape(-1, 2).T
    wrong = np.flatnonzero((class_N < 0) | (class_N >= num_classes))
    if len(wrong):
        row, found = int(row_N[wrong[0]]), int(class_N[wrong[0]])
        raise RowError(row, f"label {found} is out of range: num_classes is {num_classes}, so 0..{num_classes - 1}")
    return Labels(known_B=known_B, row_N=row_N, class_N=class_N)


def _classes(value: object, row: int) -> list[int]:
    found = value if isinstance(value, list | tuple) else [value]
    for one in found:
        if type(one) is not int:
            raise RowError(row, f"label {one!r} is no whole number; classes are 0, 1, 2, ...")
    return sorted({one for one in found if type(one) is int})


def _first_bias(config: SupervisedConfig) -> float:
    """Return where class biases start: with sigmoid at the log odds of one class a picture, -10.3 for JFT's 29,593."""
    if config.class_bias is not None:
        return config.class_bias
    return -math.log(max(1, config.num_classes - 1)) if config.loss == "sigmoid" else 0.0
