"""Semantic segmentation: a trunk that was trained before, and a fresh head that gives each pixel its class.

The masks come with the stream: a column of the index has the bytes of each picture's mask, and a map function cuts it
as the picture was cut. The loss is a sum over pixels that have a class, so that ranks and micro-batches may share it.
Validation shows each picture whole, and its mIoU is that of the counts of all its pixels, at the square's resolution.
"""

# B batch, S side of the square, C classes, P pixels

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Annotated, Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from headrace.config_types import OneOf
from headrace.pipeline import Batch, MapFunction, Mixture
from headrace.train.models.batch_norm import BatchNorm
from headrace.train.models.encoder import FeatureMaps, TunableEncoder
from headrace.train.models.pyramid import SimplePyramid
from headrace.train.objectives.dense.confusion import confusion, segmentation_scores
from headrace.train.objectives.dense.masks import IGNORED, MAX_CLASSES, PIXELS, MaskRules, OtherSizes, PlaceMasks
from headrace.train.objectives.dense.segment_heads import AuxiliaryHead, LinearSegmentHead, SegmentHeadKind, UperHead
from headrace.train.objectives.objective import Columns, Objective, ObjectiveConfig
from headrace.train.objectives.tuned import kept_branches, pretrained_configs, touching, trunk_of_maps
from headrace.train.pixels import Normalise, on_device


@dataclass(frozen=True, kw_only=True, slots=True)
class SegmentConfig:
    """Semantic segmentation: the trunk of another objective, and a head that gives each pixel its class."""

    kind: Literal["segment"]
    """The tag of this objective."""
    of: Annotated[ObjectiveConfig, OneOf("kind", pretrained_configs)]
    """The objective whose trunk it is, as in the run file that trained it; its heads are left out."""
    num_classes: int
    """Classes are 0 .. num_classes - 1, after `reduce_zero_label`."""
    column: str = "mask"
    """Column of the index: the bytes of a PNG, one number a pixel; null = the picture has none and is left out."""
    ignore_label: int = 255
    """The number in a mask of a pixel without a class: it is in no loss and no score."""
    reduce_zero_label: bool = False
    """0 in a mask is no class, and 1 is class 0, as in ADE20K's challenge."""
    mask_sizes: OtherSizes = "refuse"
    """What becomes of a mask of another size than its picture: refuse = it is an error; nearest = it is resized."""
    head: SegmentHeadKind = "upernet"
    """upernet = pyramid pooling and a feature pyramid; linear = one layer on all maps."""
    width: int = 512
    """Channels of the head; a linear one has none."""
    auxiliary: float = 0.4
    """Weight of a second, smaller head's loss, in training; 0 = no such head. With head linear there is none."""
    drop_path: float = 0.0
    """Share of pictures that skip a branch of the last block; it grows from 0 at the first block."""
    judged: Literal["whole", "slide"] = "whole"
    """How the judgement at the end shows a picture: whole = once, in a square; slide = its short side as long as the
    square's, through windows that overlap by a third, whose logits are averaged."""

    def __post_init__(self) -> None:
        if not 2 <= self.num_classes <= MAX_CLASSES:
            raise ValueError(f"num_classes must be 2..{MAX_CLASSES}, got {self.num_classes}")
        if self.width < 8:
            raise ValueError(f"width must be at least 8, got {self.width}")
        if self.auxiliary < 0 or not 0 <= self.drop_path < 1:
            raise ValueError(
                f"auxiliary must be at least 0 and drop_path in [0, 1), got {self.auxiliary} and {self.drop_path}"
            )

    @property
    def idle(self) -> tuple[str, ...]:
        """Fields that came after the first runs, and have the value that those runs mean."""
        first = {"mask_sizes": "refuse", "judged": "whole"}
        return tuple(name for name, value in first.items() if getattr(self, name) == value)

    @property
    def rules(self) -> MaskRules:
        """What the numbers in a mask mean."""
        return MaskRules(
            num_classes=self.num_classes,
            ignore_label=self.ignore_label,
            reduce_zero_label=self.reduce_zero_label,
            other_sizes=self.mask_sizes,
        )

    def build(self, *, image_size: int, seed: int) -> "Segment":
        """Return the objective for squares of this side. Raises ValueError if `of` has no trunk that gives maps."""
        trunk, normalise = trunk_of_maps(self.of, image_size=image_size, seed=seed, drop_path=self.drop_path)
        return Segment(self, trunk, normalise=normalise, image_size=image_size, seed=seed)


class Segment(Objective):
    """Trunk -> maps -> head -> cross-entropy of each pixel that has a class."""

    missing = "missing_masks"
    reports = ("pixel_accuracy",)
    released_prefix = "encoder."
    shows_whole = True

    def __init__(
        self, config: SegmentConfig, encoder: TunableEncoder, *, normalise: Normalise, image_size: int, seed: int
    ) -> None:
        super().__init__()
        assert isinstance(encoder, FeatureMaps), "`build` has looked"
        self.config, self.seed, self.image_size = config, seed, image_size
        self.columns = (config.column,)
        self.normalise = normalise
        self.encoder = encoder
        channels = encoder.feature_channels
        # A head of several scales wants several maps; a linear one reads what the trunk has.
        self.pyramid: SimplePyramid | nn.Identity = nn.Identity()
        if len(channels) == 1 and config.head == "upernet":
            self.pyramid = SimplePyramid(channels[0], channels[0], stride=encoder.feature_strides[0])
            channels = channels * len(self.pyramid.strides)
        self.head: UperHead | LinearSegmentHead
        self.auxiliary: AuxiliaryHead | None = None
        if config.head == "upernet":
            self.head = UperHead(channels, width=config.width, classes=config.num_classes)
            if config.auxiliary:
                width = max(1, config.width // 2)
                self.auxiliary = AuxiliaryHead(channels[-2], width=width, classes=config.num_classes)
        else:
            self.head = LinearSegmentHead(channels, classes=config.num_classes)
        if any(isinstance(module, BatchNorm) for module in encoder.modules()):
            # Statistics are those of the batch: processes may share it, parts may not.
            self.splits, self.gathers, self.averages = False, True, False
        self._counts_CC: NDArray[np.int64] | None = None

    @property
    def trunk(self) -> TunableEncoder:
        """The encoder."""
        return self.encoder

    @cached_property
    def train_flops_per_image(self) -> float:
        """Three times what a forward takes, counted on tensors without memory."""
        from torch.utils.flop_counter import FlopCounterMode  # half a second of imports

        with torch.device("meta"), torch.no_grad(), FlopCounterMode(display=False) as counter:
            sketch = self.config.build(image_size=self.image_size, seed=self.seed).eval()
            sketch.logits(torch.empty(1, 3, self.image_size, self.image_size))
        return 3.0 * float(counter.get_total_flops())

    def sample_map(self, mixture: Mixture) -> MapFunction:
        """Return what cuts each sample's mask as its picture is cut."""
        return PlaceMasks(mixture, self.config.rules, self.config.column)

    def blank_columns(self, size: int) -> dict[str, Any]:
        """Return masks of class 0."""
        return {PIXELS: np.zeros((size, self.image_size, self.image_size), np.int16)}

    def usable(self, columns: Columns) -> NDArray[np.bool_]:
        """Return which pictures have a mask."""
        return np.array([value is not None for value in columns[self.config.column]], np.bool_)

    def num_terms(self, batch: Batch) -> int:
        """Return the number of pixels that have a class."""
        pixels_BSS = np.asarray(batch.columns[PIXELS])
        return int((pixels_BSS[batch.valid] >= 0).sum())

    def begin_pass(self) -> None:
        """Count pixels by their class and the one chosen from now on."""
        self._counts_CC = np.zeros((self.config.num_classes, self.config.num_classes), np.int64)

    def pass_values(self) -> Mapping[str, float]:
        """Return mIoU and mean accuracy over all pixels of the pass, over all ranks."""
        counts_CC, self._counts_CC = self._counts_CC, None
        assert counts_CC is not None, "begin_pass comes first"
        # Whole numbers under 2^53 pass through float64 unharmed.
        total = np.array(self.ranks.sum(counts_CC.ravel().tolist(), "the counts of pixels"))
        scores = segmentation_scores(total.reshape(counts_CC.shape).astype(np.int64))
        return {name: scores[name] for name in ("miou", "mean_accuracy")}

    def forward(self, batch: Batch) -> tuple[Tensor, Mapping[str, Tensor]]:
        """Return the sum over pixels with a class of their cross-entropy, and the share whose best class is right."""
        images_B3SS = self.normalise(batch.images)
        truth_BSS = on_device(self._truth(batch), images_B3SS.device)
        # All rows go through the trunk, also those that do not count: every rank has a gradient for every weight.
        logits_BCSS, second_BCSS = self._both(images_B3SS, self._kept(batch.position, images_B3SS.device))
        loss = touching(self) + _summed(logits_BCSS, truth_BSS)
        if second_BCSS is not None:
            loss = loss + self.config.auxiliary * _summed(second_BCSS, truth_BSS)
        choice_BSS = logits_BCSS.detach().argmax(dim=1)
        if self._counts_CC is not None and not self.training:
            self._counts_CC += confusion(truth_BSS, choice_BSS, self.config.num_classes).cpu().numpy()
        right = (choice_BSS == truth_BSS).sum() / (truth_BSS >= 0).sum().clamp(min=1)
        return loss, {"pixel_accuracy": right}

    def logits(self, images_B3SS: Tensor) -> Tensor:
        """Return logits [B, C, S, S] of normalised squares, at evaluation."""
        return self._both(images_B3SS, None)[0]

    def _both(self, images_B3SS: Tensor, kept_NB2: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """Return the logits of the head at every pixel, and in training those of the auxiliary one."""
        assert isinstance(self.encoder, FeatureMaps), "`build` has looked"
        maps = self.encoder.feature_maps(images_B3SS, kept_NB2)
        maps = self.pyramid(maps)
        second = None if self.auxiliary is None or not self.training else _whole(self.auxiliary(maps[-2]), images_B3SS)
        return _whole(self.head(maps), images_B3SS), second

    def _kept(self, position_B: NDArray[np.int64], device: torch.device) -> Tensor | None:
        rate = self.config.drop_path if self.training else 0.0
        return kept_branches(rate, self.encoder.shape.depth, seed=self.seed, position=position_B, device=device)

    def _truth(self, batch: Batch) -> NDArray[np.int64]:
        pixels_BSS = np.asarray(batch.columns[PIXELS], np.int64)
        return np.where(batch.valid[:, None, None], pixels_BSS, IGNORED)


def _whole(logits_BChw: Tensor, images_B3SS: Tensor) -> Tensor:
    side = images_B3SS.shape[-1]
    # In fp32: bf16 has 8 bits of a logit, and neighbours are mixed here.
    return functional.interpolate(logits_BChw.float(), size=(side, side), mode="bilinear", align_corners=False)


def _summed(logits_BCSS: Tensor, truth_BSS: Tensor) -> Tensor:
    return functional.cross_entropy(logits_BCSS, truth_BSS, ignore_index=IGNORED, reduction="sum")
