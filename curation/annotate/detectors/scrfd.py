"""SCRFD: for each of three strides and two anchors a score, four distances and, in some files, five landmarks.

Input: float32 [1, 3, H, W], RGB, (value - 127.5) / 128, sides that are multiples of 32. Outputs for the strides 8, 16,
32, in any order: scores [N, 1], distances left, up, right, down [N, 4], landmarks [N, 10], in strides from the anchor;
N = 2 * H / s * W / s, rows first, the anchors of a cell side by side; a leading 1 is taken too. The rows of an output
say its stride, its columns what it is. Source: Guo et al., "Sample and Computation Redistribution for Efficient Face
Detection", arXiv:2105.04714; insightface's export to ONNX.
"""

import cv2
import numpy as np

from headrace.curation.annotate.annotator import Pixels
from headrace.curation.annotate.detectors.boxes import Floats, Found, best_of_overlapping, check_numbers, nothing
from headrace.curation.annotate.detectors.onnx import OnnxModel, shapes_of

STRIDES = (8, 16, 32)
ANCHORS = 2
SCORES, DISTANCES, LANDMARKS = 1, 4, 10


def find(model: OnnxModel, pixels: Pixels, *, min_score: float, nms_overlap: float) -> Found:
    """Return the faces in RGB, uint8 [H, W, 3]. Raises ValueError if the model is not of this kind."""
    height, width = _input_size(model, pixels.shape[0], pixels.shape[1])
    scale = min(height / pixels.shape[0], width / pixels.shape[1], 1.0)
    if scale < 1:
        size = max(1, round(pixels.shape[1] * scale)), max(1, round(pixels.shape[0] * scale))
        pixels = cv2.resize(pixels, size, interpolation=cv2.INTER_AREA)
    below, right = height - pixels.shape[0], width - pixels.shape[1]
    padded = cv2.copyMakeBorder(pixels, 0, below, 0, right, cv2.BORDER_CONSTANT)
    normalized = (padded.astype(np.float32) - np.float32(127.5)) / np.float32(128)
    outputs = model.run(np.ascontiguousarray(normalized.transpose(2, 0, 1)[None]))
    maps = _by_stride(model, outputs, height, width)
    found = decode(maps, width, min_score=min_score, nms_overlap=nms_overlap, where=model.where)
    return Found(
        boxes=found.boxes / np.float32(scale),
        scores=found.scores,
        landmarks=None if found.landmarks is None else found.landmarks / np.float32(scale),
    )


def decode(
    outputs: dict[int, dict[int, Floats]], width: int, *, min_score: float, nms_overlap: float, where: str
) -> Found:
    """Return the faces that stride -> columns -> output hold, in pixels of the padded image of this width.

    Raises ValueError, naming `where`, if some are not numbers.
    """
    boxes, scores, points = [], [], []
    for stride, maps in outputs.items():
        score = maps[SCORES][:, 0]
        chosen = np.flatnonzero(score >= min_score)
        cells = chosen // ANCHORS
        anchors = np.stack([cells % (width // stride), cells // (width // stride)], axis=1) * stride
        reach = maps[DISTANCES][chosen] * stride
        boxes.append(np.concatenate([anchors - reach[:, :2], anchors + reach[:, 2:]], axis=1))
        scores.append(score[chosen])
        if LANDMARKS in maps:
            points.append(anchors[:, None] + maps[LANDMARKS][chosen].reshape(-1, 5, 2) * stride)
    whole = np.concatenate(boxes).astype(np.float32)
    check_numbers(where, scores=np.concatenate([maps[SCORES][:, 0] for maps in outputs.values()]), boxes=whole)
    if not len(whole):
        return nothing()
    landmarks = np.concatenate(points).astype(np.float32) if len(points) == len(outputs) else None
    found = Found(boxes=whole, scores=np.concatenate(scores).astype(np.float32), landmarks=landmarks)
    return best_of_overlapping(found, nms_overlap)


def _input_size(model: OnnxModel, height: int, width: int) -> tuple[int, int]:
    """Return the size that the network takes: a fixed one, or the image's, up to the next multiple of 32."""
    fixed = model.input_shape[2:] if len(model.input_shape) == 4 else ()
    if len(fixed) == 2 and isinstance(fixed[0], int) and isinstance(fixed[1], int):
        return fixed[0], fixed[1]
    return height + -height % max(STRIDES), width + -width % max(STRIDES)


def _by_stride(model: OnnxModel, outputs: list[np.ndarray], height: int, width: int) -> dict[int, dict[int, Floats]]:
    """Sort the outputs. Raises ValueError if they are not SCRFD's."""
    flat = [output[0] if output.ndim == 3 and len(output) == 1 else output for output in outputs]
    result: dict[int, dict[int, Floats]] = {stride: {} for stride in STRIDES}
    for output in flat:
        for stride in STRIDES:
            if output.ndim == 2 and len(output) == ANCHORS * (height // stride) * (width // stride):
                result[stride].setdefault(output.shape[1], np.asarray(output, np.float32))
    if any(not {SCORES, DISTANCES} <= set(maps) for maps in result.values()):
        raise ValueError(
            f"{model.where}: expected SCRFD's outputs [N, 1] and [N, 4] for the strides 8, 16, 32, got "
            f"{shapes_of(outputs)}; say annotate.faces.detector of this file, or check its model"
        )
    return result
