"""Boxes of several detectors, or of several looks at one image, made into one list."""

from collections.abc import Sequence
from functools import reduce
from typing import Literal

import numpy as np

from headrace.curation.annotate.detectors.boxes import Found, nothing, overlaps

# Two boxes are of one face from this intersection over union on; the usual limit of face benchmarks is 0.5, and two
# detectors draw the forehead and the chin at different places.
SAME_FACE = 0.3

Rule = Literal["union", "agreement"]


def combined(parts: Sequence[Found], rule: Rule) -> Found:
    """Return the boxes of all detectors (`union`) or those that each of them has (`agreement`).

    Boxes of one face become the one that encloses them, so that nothing is left uncovered that one of them saw. The
    score is the higher one, a detector without scores counting 0; landmarks are those of the first that gives them.
    """
    if len(parts) == 1:
        return parts[0]
    return reduce(_union if rule == "union" else _agreement, parts)


def _union(ones: Found, others: Found) -> Found:
    merged, matched = _merged(ones, others)
    return joined([merged, others.take(np.flatnonzero(~matched))])


def _agreement(ones: Found, others: Found) -> Found:
    merged, _ = _merged(ones, others)
    return merged.take(np.flatnonzero(_matches(ones, others) >= 0))


def _merged(ones: Found, others: Found) -> tuple[Found, np.ndarray]:
    """Return `ones`, each enclosing its match too, and which of `others` are a match of one."""
    matches, boxes, scores = _matches(ones, others), ones.boxes.copy(), _scores(ones).copy()
    matched = np.zeros(len(others.boxes), np.bool_)
    for number, match in enumerate(matches):
        if match >= 0:
            boxes[number, :2] = np.minimum(boxes[number, :2], others.boxes[match, :2])
            boxes[number, 2:] = np.maximum(boxes[number, 2:], others.boxes[match, 2:])
            scores[number] = max(scores[number], _scores(others)[match])
            matched[match] = True
    return Found(boxes=boxes, scores=scores, landmarks=ones.landmarks), matched


def _matches(ones: Found, others: Found) -> np.ndarray:
    """Return for each box of `ones` the number of the box of `others` that overlaps it most, -1 if none does."""
    if not len(others.boxes):
        return np.full(len(ones.boxes), -1)
    found = overlaps(ones.boxes, others.boxes)
    return np.where(found.max(axis=1) >= SAME_FACE, found.argmax(axis=1), -1)


def joined(parts: Sequence[Found]) -> Found:
    """Return all boxes one after the other; landmarks that a part lacks are not a number."""
    if not parts:
        return nothing()
    marked = any(part.landmarks is not None for part in parts)
    return Found(
        boxes=np.concatenate([part.boxes for part in parts]),
        scores=np.concatenate([_scores(part) for part in parts]),
        landmarks=np.concatenate([_landmarks(part) for part in parts]) if marked else None,
    )


def _scores(found: Found) -> np.ndarray:
    return np.zeros(len(found.boxes), np.float32) if found.scores is None else found.scores


def _landmarks(found: Found) -> np.ndarray:
    missing = np.full((len(found.boxes), 5, 2), np.nan, np.float32)
    return missing if found.landmarks is None else found.landmarks
