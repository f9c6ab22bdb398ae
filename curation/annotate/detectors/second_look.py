"""A second check of boxes, against animals and things that look like faces: score by size, landmarks, another model.

Every part of it costs faces: it is off unless a recipe asks for it. What each takes away, measured: docs/faces.md.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from headrace.curation.annotate.annotator import Pixels
from headrace.curation.annotate.detectors.boxes import Floats, Found, overlaps
from headrace.curation.annotate.detectors.combine import SAME_FACE
from headrace.curation.annotate.detectors.config import DetectorConfig, DetectorName

# From this score on a large box is believed. Measured on photographs of ImageNet: animals in close-up score lower than
# people in close-up, which a detector knows best.
LARGE_MIN_SCORES = {"centerface": 0.65, "yunet": 0.86, "scrfd": 0.65}
# How far off the middle the crop around a box reaches, in sides of the box: detectors want shoulders and background.
CROP_SIDES = 1.5
# Where a nose may be on the way from the eyes to the mouth, and how much of the box's height that way is at least.
NOSE_BETWEEN = (0.25, 0.8)
MIN_HEIGHT_SHARE = 0.25
MAX_TURN_DEGREES = 75

SearchCrop = Callable[[Pixels, DetectorConfig], Found]


@dataclass(frozen=True, kw_only=True, slots=True)
class SecondCheck:
    """What a box must pass besides its detector's own score."""

    large_share: float = 0.125
    """A box is large from this share of the image's longer side on."""
    large_min_score: float | None = None
    """Score of a large box; null: 0.65 of CenterFace and SCRFD, 0.86 of YuNet; 0 asks for none."""
    landmarks: bool = True
    """The nose must lie between eyes and mouth, and these apart."""
    confirm: DetectorConfig | None = None
    """Another detector that must find it again, in an enlarged crop around the box."""

    def __post_init__(self) -> None:
        if not 0 < self.large_share <= 1:
            raise ValueError(f"large_share must be over 0, at most 1, got {self.large_share}")
        if self.large_min_score is not None and not 0 <= self.large_min_score < 1:
            raise ValueError(f"large_min_score must be 0 or more and under 1, got {self.large_min_score}")


def plausible(found: Found, check: SecondCheck, detector: DetectorName, size: tuple[int, int]) -> Found:
    """Return the boxes (fractions of an image of `size`, width first) that pass by score, size and landmarks."""
    keep = np.ones(len(found.boxes), np.bool_)
    in_pixels = found.boxes * np.array([*size, *size], np.float32)
    if found.scores is not None:
        least = large_min_score(check, detector)
        sides = (in_pixels[:, 2:] - in_pixels[:, :2]).max(axis=1, initial=0)
        keep &= (sides < check.large_share * max(size)) | (found.scores >= least)
    if check.landmarks and found.landmarks is not None:
        keep &= are_face_like(found.landmarks * np.array(size, np.float32), in_pixels)
    return found.take(np.flatnonzero(keep))


def large_min_score(check: SecondCheck, detector: DetectorName) -> float:
    """Return the score from which on a large box of this detector is believed."""
    return LARGE_MIN_SCORES.get(detector, 0.0) if check.large_min_score is None else check.large_min_score


def are_face_like(landmarks: Floats, boxes: Floats) -> np.ndarray:
    """Return for each face, [N, 5, 2] and [N, 4] in pixels, if its landmarks lie as in a face; unknown ones do."""
    eyes, mouth = landmarks[:, :2].mean(axis=1), landmarks[:, 3:].mean(axis=1)
    down = mouth - eyes
    length = np.hypot(down[:, 0], down[:, 1])
    way = ((landmarks[:, 2] - eyes) * down).sum(axis=1) / np.maximum(length, 1e-6) ** 2
    turn = np.degrees(np.arctan2(np.abs(down[:, 0]), down[:, 1]))
    height = (boxes[:, 2:] - boxes[:, :2]).max(axis=1, initial=0)
    good = (way >= NOSE_BETWEEN[0]) & (way <= NOSE_BETWEEN[1]) & (length >= MIN_HEIGHT_SHARE * height)
    unknown = ~np.isfinite(landmarks).all(axis=(1, 2))
    return np.asarray((good & (turn <= MAX_TURN_DEGREES)) | unknown, np.bool_)


def confirmed(pixels: Pixels, found: Found, detector: DetectorConfig, search: SearchCrop) -> Found:
    """Return the boxes that `detector` finds again in an enlarged crop around each."""
    size = np.array([pixels.shape[1], pixels.shape[0]] * 2, np.float32)
    keep = [number for number, box in enumerate(found.boxes * size) if _is_seen(pixels, box, detector, search)]
    return found.take(np.array(keep, np.intp))


def _is_seen(pixels: Pixels, box: Floats, detector: DetectorConfig, search: SearchCrop) -> bool:
    middle, reach = (box[:2] + box[2:]) / 2, CROP_SIDES * float((box[2:] - box[:2]).max())
    left, top = (max(0, int(value - reach)) for value in middle)
    right, bottom = (int(value + reach) + 1 for value in middle)
    crop = np.ascontiguousarray(pixels[top:bottom, left:right])
    seen = search(crop, detector).boxes * np.array([crop.shape[1], crop.shape[0]] * 2, np.float32)
    return bool((overlaps(box[None] - np.array([left, top] * 2, np.float32), seen) >= SAME_FACE).any())
