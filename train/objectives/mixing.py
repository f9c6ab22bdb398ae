"""Mixup and CutMix as functions of (seed, position), with partners that stay the same however a batch is shared.

A picture's partner is another of its own lane and step. A rank has whole lanes, so partners meet at any world size, and
they are put together before the share is cut into micro-batches. How two pictures are mixed follows from the seed and
the first one's position. Sources: mixup, arXiv:1710.09412; CutMix, arXiv:1905.04899.
"""

# B batch, H image side in pixels

import math
from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from headrace.pipeline.augment.philox import draws_at
from headrace.shards.permutation import make_key, mix_keys
from headrace.train.pixels import on_device

# Steps of the angle in which the Beta distribution is tabulated: quantiles are within 1e-5 for alpha from 0.2 on.
TABLE = 1 << 16
DRAWS = 5

ONE_A_LANE = (
    "mixup and CutMix pair pictures of one lane, and a lane gives one picture a step: lower mixture.lanes to at most "
    "half of global_batch, or leave objective.mix out"
)


@dataclass(frozen=True, kw_only=True, slots=True)
class MixConfig:
    """How training pictures are mixed in pairs. Needs two pictures of each lane a step."""

    mixup: float = 0.0
    """Alpha of mixup: the share of a picture is drawn from Beta(alpha, alpha). 0 = no mixup."""
    cutmix: float = 0.0
    """Alpha of CutMix: the share of the area. 0 = no CutMix. With both, each takes half of the pictures."""
    probability: float = 1.0
    """Share of the pictures that are mixed."""

    def __post_init__(self) -> None:
        if not (0 <= self.mixup < math.inf and 0 <= self.cutmix < math.inf):
            raise ValueError(f"mixup and cutmix must be at least 0 and finite, got {self.mixup} and {self.cutmix}")
        if not 0 <= self.probability <= 1:
            raise ValueError(f"probability must be 0..1, got {self.probability}")

    @property
    def mixes(self) -> bool:
        """True if any picture is mixed."""
        return self.probability > 0 and max(self.mixup, self.cutmix) > 0


class Mixes(NamedTuple):
    """What of each picture stays its own."""

    share_B: NDArray[np.float64]
    """Of the picture and of its label."""
    box_B4: NDArray[np.int64]
    """Top, bottom, left, right of what the partner's pixels replace; empty where the pictures are blended."""

    def without(self, rows_B: NDArray[np.bool_]) -> "Mixes":
        """Return the same with these pictures left as they are."""
        return Mixes(np.where(rows_B, 1.0, self.share_B), np.where(rows_B[:, None], 0, self.box_B4))


def partners(lane_B: NDArray[np.int64], position_B: NDArray[np.int64], seed: int) -> NDArray[np.int64]:
    """Return for each row of a rank's share of a step the row of its partner; the rows stand by ascending position.

    The pictures of a lane form a ring, and a partner stands so many places on as (seed, lane, step) says: nobody is his
    own. Raises ValueError if a lane has one picture a step.
    """
    order = np.argsort(lane_B, kind="stable")
    lanes, first, size = np.unique(lane_B[order], return_index=True, return_counts=True)
    if int(size.min()) < 2:
        raise ValueError(ONE_A_LANE)
    # Of one lane, whoever comes first in the step decides: no rank need know where the step begins.
    leader = position_B[order[first]]
    turn = 1 + (mix_keys(make_key(seed, "mix partners"), leader) % (size - 1).astype(np.uint64)).astype(np.int64)
    which = np.repeat(np.arange(len(lanes)), size)
    place = np.arange(len(order)) - first[which]
    found = np.empty(len(order), np.int64)
    found[order] = order[first[which] + (place + turn[which]) % size[which]]
    return found


def draw_mixes(position_B: NDArray[np.int64], config: MixConfig, *, seed: int, side: int) -> Mixes:
    """Return how each picture is mixed with its partner, for images of `side` pixels."""
    mixed, which, quantile, x, y = draws_at(make_key(seed, "mix"), position_B, DRAWS).T
    cuts = (config.cutmix > 0) & ((config.mixup == 0) | (which < 0.5))
    share_B = np.ones(len(position_B))
    for alpha, rows in ((config.mixup, ~cuts), (config.cutmix, cuts)):
        if alpha:
            share_B[rows] = beta_quantiles(quantile[rows], alpha)
    share_B[mixed >= config.probability] = 1.0
    half = np.floor(side * np.sqrt(1 - share_B)).astype(np.int64) // 2
    box_B4 = np.zeros((len(position_B), 4), np.int64)
    for place, (number, sign) in enumerate(((y, -1), (y, 1), (x, -1), (x, 1))):
        box_B4[:, place] = np.clip(np.floor(number * side).astype(np.int64) + sign * half, 0, side)
    box_B4[~cuts] = 0
    height, width = box_B4[:, 1] - box_B4[:, 0], box_B4[:, 3] - box_B4[:, 2]
    # What the frame cuts off of a box stays the picture's own, and the label says so.
    share_B[cuts] = 1 - (height * width)[cuts] / side**2
    return Mixes(share_B, box_B4)


def mix(own_B3HH: Tensor, other_B3HH: Tensor, mixes: Mixes) -> Tensor:
    """Return `own` with its partner's pixels in it, blended or in a box."""
    device, side = own_B3HH.device, own_B3HH.shape[-1]
    top, bottom, left, right = on_device(mixes.box_B4, device).T[:, :, None]
    share_B11 = on_device(mixes.share_B.astype(np.float32), device)[:, None, None]
    at = torch.arange(side, device=device)
    rows_BH, columns_BH = (at >= top) & (at < bottom), (at >= left) & (at < right)
    inside_BHH = rows_BH[:, :, None] & columns_BH[:, None, :]
    cut_B11 = (bottom > top)[:, :, None] & (right > left)[:, :, None]
    weight_BHH = torch.where(cut_B11, (~inside_BHH).float(), share_B11.expand_as(inside_BHH))
    return torch.lerp(other_B3HH, own_B3HH, weight_BHH[:, None])


def beta_quantiles(uniform_N: NDArray[np.float64], alpha: float) -> NDArray[np.float64]:
    """Return numbers of Beta(alpha, alpha) for numbers even on [0, 1)."""
    below, angle = _beta_table(alpha)
    quantiles: NDArray[np.float64] = np.sin(np.interp(uniform_N, below, angle)) ** 2
    return quantiles


@lru_cache(maxsize=8)
def _beta_table(alpha: float) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return the distribution at angles: of x = sin^2 a the density is (sin a cos a)^(2 alpha - 1)."""
    angle = np.linspace(0, math.pi / 2, TABLE + 1)
    middle = (angle[1:] + angle[:-1]) / 2
    parts = (np.sin(middle) * np.cos(middle)) ** (2 * alpha - 1)
    # At both ends the power law is summed exactly: for a small alpha it has a pole there.
    parts[[0, -1]] = angle[1] ** (2 * alpha - 1) / (2 * alpha)
    below = np.concatenate([[0.0], np.cumsum(parts)])
    return below / below[-1], angle
