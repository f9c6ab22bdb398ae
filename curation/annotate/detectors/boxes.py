"""Boxes with scores, and how much of them overlaps. N boxes are float32 [N, 4]: x0, y0, x1, y1.

In pixels of what is searched, or as fractions of the image: overlap (intersection over union) is the same in both.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """What a detector found in one image."""

    boxes: Floats
    """[N, 4]."""
    scores: Floats | None
    """[N], or None where the detector gives none."""
    landmarks: Floats | None = None
    """[N, 5, 2], x and y of: the eye, the eye, the nose, the corner of the mouth, the corner; None without."""
    labels: NDArray[np.int64] | None = None
    """[N], the class of each; None where there is one class only."""

    def take(self, numbers: NDArray[np.intp]) -> "Found":
        """Return these of them."""
        return Found(
            boxes=self.boxes[numbers],
            scores=None if self.scores is None else self.scores[numbers],
            landmarks=None if self.landmarks is None else self.landmarks[numbers],
            labels=None if self.labels is None else self.labels[numbers],
        )

    def as_fractions(self, size: tuple[float, float]) -> "Found":
        """Return them as fractions of a picture of `size` (width, height); what lies outside of it is cut."""
        corners = np.asarray(np.clip(self.boxes / np.array([*size, *size]), 0, 1), np.float32)
        points = self.landmarks
        inside = Found(
            boxes=corners,
            scores=self.scores,
            landmarks=None if points is None else np.asarray(points / np.array(size), np.float32),
            labels=self.labels,
        )
        return inside.take(np.flatnonzero((corners[:, 2:] > corners[:, :2]).all(axis=1)))

    def in_reading_order(self) -> "Found":
        """Return them from left to right, then from top to bottom."""
        return self.take(np.lexsort(self.boxes.T[::-1]))


def check_numbers(where: str, *, scores: Floats, boxes: Floats) -> None:
    """Raise ValueError for scores that are no numbers, or boxes that are not finite: what is there would be published.

    `scores`: all that the model gives; `boxes`: those that reach the least score.
    """
    if np.isnan(scores).any() or not np.isfinite(boxes).all():
        raise ValueError(
            f"{where}: gave a score that is no number, or a box that is not finite, for an image; what is in it cannot "
            "be hidden so. Its weights are damaged, or do not fit what runs it (half floats?): take another file"
        )


def nothing(*, scored: bool = True) -> Found:
    """Return no boxes."""
    return Found(boxes=np.zeros((0, 4), np.float32), scores=np.zeros(0, np.float32) if scored else None)


def overlaps(ones: Floats, others: Floats) -> Floats:
    """Return intersection over union, [N, M], of N and M boxes; 0 for empty ones."""
    start = np.maximum(ones[:, None, :2], others[None, :, :2])
    stop = np.minimum(ones[:, None, 2:], others[None, :, 2:])
    both = np.clip(stop - start, 0, None).prod(axis=2)
    union = _areas(ones)[:, None] + _areas(others)[None, :] - both
    return np.asarray(np.divide(both, union, out=np.zeros_like(both), where=union > 0), np.float32)


def _areas(boxes: Floats) -> Floats:
    return np.asarray(np.clip(boxes[:, 2:] - boxes[:, :2], 0, None).prod(axis=1), np.float32)


def best_of_overlapping(found: Found, overlap: float) -> Found:
    """Return the boxes without those that overlap a better one by more than `overlap`, best first."""
    assert found.scores is not None
    left = np.argsort(-found.scores, kind="stable")
    chosen = []
    while len(left):
        best, left = left[0], left[1:]
        chosen.append(best)
        left = left[overlaps(found.boxes[best : best + 1], found.boxes[left])[0] <= overlap]
    return found.take(np.array(chosen, np.intp))
