"""Detection and instance segmentation: a trunk that was trained before under torchvision's Mask R-CNN.

Things come with the stream: a column of the index has them as JSON, and a map function places boxes and masks as the
picture was placed. Pictures keep their ratio and are filled up to a square, so that every trunk takes them.
"""

# B batch, S side of the square

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Annotated, Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from headrace.config_types import OneOf
from headrace.pipeline import Batch, MapFunction, Mixture
from headrace.train.models.batch_norm import BatchNorm
from headrace.train.models.encoder import FeatureMaps, TunableEncoder
from headrace.train.models.pyramid import build_pyramid
from headrace.train.objectives.dense.instances import THINGS, PlaceThings, Things
from headrace.train.objectives.dense.rcnn import Found, Limits, RcnnHeads
from headrace.train.objectives.objective import Columns, Objective, ObjectiveConfig
from headrace.train.objectives.tuned import kept_branches, pretrained_configs, touching, trunk_of_maps
from headrace.train.pixels import Normalise

LOSSES = {
    "loss_objectness": "anchor_class",
    "loss_rpn_box_reg": "anchor_box",
    "loss_classifier": "region_class",
    "loss_box_reg": "region_box",
    "loss_mask": "mask",
}
"""torchvision's names of the parts of the loss, and what the metrics call them."""


@dataclass(frozen=True, kw_only=True, slots=True)
class DetectConfig:
    """Detection: the trunk of another objective, a pyramid of its maps, Mask R-CNN's heads. Needs `detection`."""

    kind: Literal["detect"]
    """The tag of this objective."""
    of: Annotated[ObjectiveConfig, OneOf("kind", pretrained_configs)]
    """The objective whose trunk it is, as in the run file that trained it; its heads are left out."""
    num_classes: int
    """Classes of things are 0 .. num_classes - 1; the background is none of them."""
    column: str = "instances"
    """Column of the index: a picture's things as JSON; null and an empty list = nothing is in it."""
    width: int = 256
    """Channels of the pyramid and of the heads."""
    anchors: int = 256
    """Anchors of a picture that its proposals learn from, at most half of them on things."""
    regions: int = 512
    """Regions of a picture that the heads learn from, at most a quarter of them on things."""
    proposals: int = 2000
    """Regions of a picture that are proposed in training, before and after overlaps go; half as many at evaluation."""
    score: float = 0.05
    """What is found with less is not told."""
    most: int = 100
    """Things of a picture that are told, the surest."""
    drop_path: float = 0.0
    """Share of pictures that skip a branch of the last block; it grows from 0 at the first block."""

    def __post_init__(self) -> None:
        for name in ("num_classes", "width", "anchors", "regions", "proposals", "most"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        if not 0 <= self.score < 1 or not 0 <= self.drop_path < 1:
            raise ValueError(f"score and drop_path must be in [0, 1), got {self.score} and {self.drop_path}")

    def build(self, *, image_size: int, seed: int) -> "Detect":
        """Return the objective for squares of this side. Raises ValueError if `of` has no trunk that gives maps."""
        trunk, normalise = trunk_of_maps(self.of, image_size=image_size, seed=seed, drop_path=self.drop_path)
        return Detect(self, trunk, normalise=normalise, image_size=image_size, seed=seed)


class Detect(Objective):
    """Trunk -> pyramid -> regions -> the sum of Mask R-CNN's losses, of each picture for itself."""

    missing = "missing_instances"
    reports = tuple(LOSSES.values())
    released_prefix = "encoder."
    shows_whole = True

    def __init__(
        self, config: DetectConfig, encoder: TunableEncoder, *, normalise: Normalise, image_size: int, seed: int
    ) -> None:
        super().__init__()
        assert isinstance(encoder, FeatureMaps), "`build` has looked"
        self.config, self.seed, self.image_size = config, seed, image_size
        self.columns = (config.column,)
        self.normalise = normalise
        self.encoder = encoder
        self.pyramid = build_pyramid(encoder, width=config.width)
        limits = Limits(
            anchors=config.anchors,
            regions=config.regions,
            proposals=config.proposals,
            score=config.score,
            most=config.most,
        )
        self.heads = RcnnHeads(
            limits,
            width=config.width,
            strides=self.pyramid.strides,
            side=image_size,
            classes=config.num_classes,
            seed=seed,
        )
        if any(isinstance(module, BatchNorm) for module in encoder.modules()):
            # Statistics are those of the batch: processes may share it, parts may not.
            self.splits, self.gathers, self.averages = False, True, False

    @property
    def trunk(self) -> TunableEncoder:
        """The encoder."""
        return self.encoder

    @cached_property
    def train_flops_per_image(self) -> float:
        """Three times what trunk, pyramid and proposals take forward; the heads depend on what is in a picture."""
        from torch.utils.flop_counter import FlopCounterMode  # half a second of imports

        with torch.device("meta"), torch.no_grad(), FlopCounterMode(display=False) as counter:
            sketch = self.config.build(image_size=self.image_size, seed=self.seed).eval()
            maps = sketch.maps(torch.empty(1, 3, self.image_size, self.image_size))
            sketch.heads.rpn.head(maps)
        return 3.0 * float(counter.get_total_flops())

    def sample_map(self, mixture: Mixture) -> MapFunction:
        """Return what places each sample's things as its picture is placed."""
        return PlaceThings(mixture, self.config.column, num_classes=self.config.num_classes)

    def usable(self, columns: Columns) -> NDArray[np.bool_]:
        """Return which pictures say what is in them, be it nothing."""
        return np.array([value is not None for value in columns[self.config.column]], np.bool_)

    def num_terms(self, batch: Batch) -> int:
        """Return the number of pictures that count."""
        return int(self.counted(batch).sum())

    def forward(self, batch: Batch) -> tuple[Tensor, Mapping[str, Tensor]]:
        """Return the sum over pictures of their losses, and the mean of each part."""
        images_B3SS = self.normalise(batch.images)
        maps = self.maps(images_B3SS, self._kept(batch.position, images_B3SS.device))
        # In fp32: torchvision's losses and boxes are made for it.
        maps = [one.float() for one in maps]
        total = touching(self)
        parts = {name: images_B3SS.new_zeros(()) for name in LOSSES.values()}
        rows = np.flatnonzero(self.counted(batch)).tolist()
        if not rows:  # every block of a spread model waits for a gradient from each process
            total = total + torch.stack([one.sum() for one in maps]).sum() * 0.0
        with torch.autocast(images_B3SS.device.type, enabled=False):
            for row in rows:
                target = _target(batch.columns[THINGS][row], images_B3SS.device)
                losses = self.heads.losses(maps, row, int(batch.position[row]), target)
                for name, loss in losses.items():
                    total = total + loss
                    parts[LOSSES[name]] += loss.detach()
        return total, {name: value / max(1, len(rows)) for name, value in parts.items()}

    def maps(self, images_B3SS: Tensor, kept_NB2: Tensor | None = None) -> list[Tensor]:
        """Return the pyramid's maps of normalised squares."""
        assert isinstance(self.encoder, FeatureMaps), "`build` has looked"
        out: list[Tensor] = self.pyramid(self.encoder.feature_maps(images_B3SS, kept_NB2))
        return out

    def find(self, images_B3SS: Tensor) -> list[Found]:
        """Return what is found in each of the normalised squares, at evaluation."""
        maps = [one.float() for one in self.maps(images_B3SS)]
        with torch.autocast(images_B3SS.device.type, enabled=False):
            return self.heads.find(maps)

    def _kept(self, position_B: NDArray[np.int64], device: torch.device) -> Tensor | None:
        rate = self.config.drop_path if self.training else 0.0
        return kept_branches(rate, self.encoder.shape.depth, seed=self.seed, position=position_B, device=device)


def _target(things: Any, device: torch.device) -> dict[str, Tensor]:
    assert isinstance(things, Things), "the map function gave it"
    return {
        "boxes": torch.from_numpy(things.boxes_N4).to(device),
        "labels": torch.from_numpy(things.class_N + 1).to(device),  # 0 is torchvision's background
        "masks": torch.from_numpy(things.masks_NSS).to(device),
    }
