"""Boxes of things to hide (number plates, text) from the outputs that detectors are exported with.

The image is scaled to fit a square of S pixels, put at its top left, the rest is gray; RGB, 0..1, minus mean, by std.
`boxes`: [1, N, 6] or [N, 6] of x0, y0, x1, y1 in pixels of the square, score, class: a network that ends with its own
non-maximum suppression. `grid`: [1, 4 + C, N] of centre x, y, width, height, and a score for each class: YOLO v8 and
later. `heatmap`: [1, 1, H, W], the probability of text: DB, as PaddleOCR exports it; its regions are shrunk text, so
each is grown. Source: Liao et al., "Real-time Scene Text Detection with Differentiable Binarization",
arXiv:1911.08947, section 3.2 (growth by area * 1.5 / perimeter).
"""

from typing import Literal

import cv2
import numpy as np

from headrace.curation.annotate.annotator import Pixels
from headrace.curation.annotate.detectors.boxes import Floats, Found, best_of_overlapping, check_numbers
from headrace.curation.annotate.detectors.onnx import Network, shapes_of

Output = Literal["boxes", "grid", "heatmap"]
Triple = tuple[float, float, float]

PADDING = 114
UNCLIP = 1.5
MIN_REGION_PIXELS = 3


def square(pixels: Pixels, side: int, mean: Triple, std: Triple) -> tuple[np.ndarray, float]:
    """Return float32 [1, 3, side, side] of RGB, uint8 [H, W, 3], and how much it was scaled."""
    scale = side / max(pixels.shape[:2])
    size = max(1, round(pixels.shape[1] * scale)), max(1, round(pixels.shape[0] * scale))
    canvas = np.full((side, side, 3), PADDING, np.uint8)
    canvas[: size[1], : size[0]] = cv2.resize(
        pixels, size, interpolation=cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR
    )
    normalized = (canvas.astype(np.float32) / np.float32(255) - np.array(mean, np.float32)) / np.array(std, np.float32)
    return np.ascontiguousarray(normalized.transpose(2, 0, 1)[None]), scale


def regions_of(
    model: Network, outputs: list[np.ndarray], kind: Output, *, side: int, min_score: float, nms_overlap: float
) -> Found:
    """Return the regions, with classes, in pixels of the square. Raises ValueError for outputs of another form."""
    output = np.asarray(outputs[0], np.float32)
    if kind == "boxes" and output.shape[-1] == 6 and (output.ndim == 2 or (output.ndim == 3 and len(output) == 1)):
        rows = output.reshape(-1, 6)
    elif kind == "grid" and output.ndim == 3 and len(output) == 1 and 4 < output.shape[1] < output.shape[2]:
        rows = _of_grid(output[0].T)
    elif kind == "heatmap" and output.ndim == 4 and output.shape[:2] == (1, 1):
        rows = _of_heatmap(output[0, 0], side, min_score)
        check_numbers(model.where, scores=output, boxes=rows)
    else:
        raise ValueError(
            f"{model.where}: its first output is {shapes_of(outputs[:1])}, which is no output of the form {kind!r}; "
            "check annotate.regions.output"
        )
    hot = rows[rows[:, 4] >= min_score]
    check_numbers(model.where, scores=rows[:, 4], boxes=hot)
    # Classes compete too: a plate that is also a sign is hidden once.
    found = Found(boxes=hot[:, :4], scores=hot[:, 4], labels=hot[:, 5].round().astype(np.int64))
    return best_of_overlapping(found, nms_overlap)


def _of_grid(rows: Floats) -> Floats:
    """Turn [N, 4 + C] of centres into [N, 6]."""
    half = rows[:, 2:4] / 2
    corners = np.concatenate([rows[:, :2] - half, rows[:, :2] + half], axis=1)
    label = rows[:, 4:].argmax(axis=1)
    return np.concatenate([corners, rows[:, 4:].max(axis=1)[:, None], label[:, None]], axis=1).astype(np.float32)


def _of_heatmap(heat: Floats, side: int, min_score: float) -> Floats:
    """Return [N, 6] of what is connected and hot; its score is the mean."""
    count, labels, stats, _ = cv2.connectedComponentsWithStats((heat >= min_score).astype(np.uint8), connectivity=8)
    means = np.bincount(labels.ravel(), weights=heat.ravel(), minlength=count) / np.bincount(
        labels.ravel(), minlength=count
    )
    rows = []
    for number in range(1, count):
        left, top, width, height, _ = (int(value) for value in stats[number])
        if min(width, height) >= MIN_REGION_PIXELS:
            grow = UNCLIP * width * height / (2 * (width + height))
            rows.append((left - grow, top - grow, left + width + grow, top + height + grow, means[number], 0))
    scale = np.array([side / heat.shape[1], side / heat.shape[0]] * 2, np.float32)
    found = np.array(rows, np.float32).reshape(-1, 6)
    return np.concatenate([found[:, :4] * scale, found[:, 4:]], axis=1)
