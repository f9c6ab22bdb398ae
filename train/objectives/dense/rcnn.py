"""Mask R-CNN's heads on the maps of a pyramid: torchvision's, one picture at a time.

A picture's losses are those of itself: what torchvision averages over the regions of a batch is averaged over those of
a picture, and pictures are summed, so that ranks and micro-batches may share a batch. Which anchors and regions are
sampled is a function of (seed, position). Source: Mask R-CNN, arXiv:1703.06870; torchvision.models.detection.
"""

# B batch, S side of the square, N things, K found, M side of a mask as it is predicted

import math
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from headrace.shards.permutation import make_key
from headrace.train.objectives.dense.instances import check_detection

ASPECTS = (0.5, 1.0, 2.0)
ANCHOR_SCALE = 8
"""Side of an anchor in places of its map: 32 pixels at stride 4."""
RPN_WIDE, ROI_WIDE = 7, 14
HIDDEN = 1024


class Found(NamedTuple):
    """What is found in one square, the surest first."""

    boxes_K4: Tensor
    class_K: Tensor
    score_K: Tensor
    mask_K1MM: Tensor
    """How sure each place of the box is to be the thing."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Limits:
    """How many of a picture's anchors and regions count; `DetectConfig` explains each."""

    anchors: int
    regions: int
    proposals: int
    score: float
    most: int


class RcnnHeads(nn.Module):
    """Region proposals, and a class, a box and a mask of each region of a square of `side` pixels."""

    def __init__(
        self, limits: Limits, *, width: int, strides: Sequence[float], side: int, classes: int, seed: int
    ) -> None:
        super().__init__()
        self.side = side
        check_detection()
        from torchvision.models.detection.rpn import RegionProposalNetwork, RPNHead

        self.names = [*(str(place) for place in range(len(strides))), "pool"]
        kept = {"training": limits.proposals, "testing": max(1, limits.proposals // 2)}
        self.rpn: Any = RegionProposalNetwork(
            Anchors([*strides, 2 * strides[-1]]),
            RPNHead(width, len(ASPECTS)),
            fg_iou_thresh=0.7,
            bg_iou_thresh=0.3,
            batch_size_per_image=limits.anchors,
            positive_fraction=0.5,
            pre_nms_top_n=kept,
            post_nms_top_n=kept,
            nms_thresh=0.7,
        )
        self.roi_heads: Any = _roi_heads(limits, strides, width=width, classes=classes)
        self._samplers = (
            _Sampler(seed, "anchors", limits.anchors, 0.5),
            _Sampler(seed, "regions", limits.regions, 0.25),
        )
        self.rpn.fg_bg_sampler, self.roi_heads.fg_bg_sampler = self._samplers

    def train(self, mode: bool = True) -> "RcnnHeads":  # noqa: ARG002  torch's signature
        """Stay as in training: a loss is wanted at validation too, and nothing here has statistics. `find` knows."""
        return super().train(True)

    def losses(self, maps: Sequence[Tensor], row: int, position: int, target: dict[str, Tensor]) -> dict[str, Tensor]:
        """Return the five losses of the picture in row `row` of the maps, which lies at `position` of the stream."""
        for sampler in self._samplers:
            sampler.position = position
        own = [one[row : row + 1] for one in maps]
        images, features = self._images(own), self._features(own)
        proposals, first = self.rpn(images, features, [target])
        _, second = self.roi_heads(features, proposals, images.image_sizes, [target])
        return {**first, **second}

    def find(self, maps: Sequence[Tensor]) -> list[Found]:
        """Return what is found in each square, of side maps[0] times its stride."""
        with self._finding():
            images, features = self._images(maps), self._features(maps)
            proposals, _ = self.rpn(images, features)
            found, _ = self.roi_heads(features, proposals, images.image_sizes)
        return [Found(one["boxes"], one["labels"] - 1, one["scores"], one["masks"]) for one in found]

    def _images(self, maps: Sequence[Tensor]) -> Any:
        from torchvision.models.detection.image_list import ImageList

        count = len(maps[0])
        # Only its size is read.
        return ImageList(maps[0].new_empty(count, 0, self.side, self.side), [(self.side, self.side)] * count)

    def _features(self, maps: Sequence[Tensor]) -> "OrderedDict[str, Tensor]":
        coarser = nn.functional.max_pool2d(maps[-1], 1, stride=2)
        return OrderedDict(zip(self.names, [*maps, coarser], strict=True))

    @contextmanager
    def _finding(self) -> Iterator[None]:
        super().train(False)
        try:
            yield
        finally:
            super().train(True)


class Anchors(nn.Module):
    """Boxes of three aspects at each place of each map, [places * 3, 4]: torchvision's, for strides of any size.

    Its own takes strides for whole numbers, and those of a map finer than patches of 14 pixels are 3.5.
    """

    def __init__(self, strides: Sequence[float]) -> None:
        super().__init__()
        self.strides = tuple(strides)

    def forward(self, images: Any, maps: Sequence[Tensor]) -> list[Tensor]:
        """Return the anchors of each picture, the finest map's first, row by row."""
        parts = [_anchors(one, stride) for one, stride in zip(maps, self.strides, strict=True)]
        return [torch.cat(parts)] * len(images.image_sizes)


def _anchors(map_BCHW: Tensor, stride: float) -> Tensor:
    tall_A = map_BCHW.new_tensor(ASPECTS).sqrt()
    high_A, wide_A = ANCHOR_SCALE * stride * tall_A, ANCHOR_SCALE * stride / tall_A
    box_A4 = torch.stack([-wide_A, -high_A, wide_A, high_A], dim=1).div(2).round()
    y_HW, x_HW = torch.meshgrid(
        *(torch.arange(count, device=map_BCHW.device) * stride for count in map_BCHW.shape[-2:]), indexing="ij"
    )
    corner_P4 = torch.stack([x_HW, y_HW, x_HW, y_HW], dim=-1).reshape(-1, 1, 4)
    return (corner_P4 + box_A4).reshape(-1, 4)


def _pool(strides: Sequence[float], side: int) -> Any:
    """Return torchvision's RoIAlign of maps of these strides: left to itself it takes them for powers of two."""
    from torchvision.ops.poolers import LevelMapper, MultiScaleRoIAlign

    pool = MultiScaleRoIAlign([str(place) for place in range(len(strides))], side, 2)
    first = round(math.log2(strides[0]))
    pool.scales = [1 / stride for stride in strides]
    pool.map_levels = LevelMapper(first, first + len(strides) - 1)
    return pool


def _roi_heads(limits: Limits, strides: Sequence[float], *, width: int, classes: int) -> Any:
    from torchvision.models.detection.faster_rcnn import FastRCNNPredictor, TwoMLPHead
    from torchvision.models.detection.mask_rcnn import MaskRCNNHeads, MaskRCNNPredictor
    from torchvision.models.detection.roi_heads import RoIHeads

    hidden = min(HIDDEN, 4 * width)
    return RoIHeads(
        box_roi_pool=_pool(strides, RPN_WIDE),
        box_head=TwoMLPHead(width * RPN_WIDE**2, hidden),
        box_predictor=FastRCNNPredictor(hidden, classes + 1),
        fg_iou_thresh=0.5,
        bg_iou_thresh=0.5,
        batch_size_per_image=limits.regions,
        positive_fraction=0.25,
        bbox_reg_weights=None,
        score_thresh=limits.score,
        nms_thresh=0.5,
        detections_per_img=limits.most,
        mask_roi_pool=_pool(strides, ROI_WIDE),
        mask_head=MaskRCNNHeads(width, (width,) * 4, 1),
        mask_predictor=MaskRCNNPredictor(width, width, classes + 1),
    )


class _Sampler:
    """Chooses anchors or regions to learn from: some of the things', the rest of the background's."""

    def __init__(self, seed: int, what: str, count: int, positive: float) -> None:
        self.position = 0
        self._seed, self._what, self._count, self._positive = seed, what, count, positive

    def __call__(self, matched: list[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        """Return masks of those chosen, of each picture: where a thing is (1 and up), and where none is (0)."""
        chosen: tuple[list[Tensor], list[Tensor]] = ([], [])
        for index_A in matched:
            numbers = torch.Generator().manual_seed(make_key(self._seed, self._what, self.position) >> 1)
            things, rest = torch.where(index_A >= 1)[0], torch.where(index_A == 0)[0]
            few = min(len(things), math.floor(self._count * self._positive))
            for candidates, count, into in ((things, few, chosen[0]), (rest, self._count - few, chosen[1])):
                order = torch.randperm(len(candidates), generator=numbers)[:count]
                mask_A = torch.zeros_like(index_A, dtype=torch.uint8)
                mask_A[candidates[order.to(candidates.device)]] = 1
                into.append(mask_A)
        return chosen
