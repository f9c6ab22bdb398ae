"""CenterFace: a heat map of faces' centres, and for each its size, its offset and five landmarks.

Input: float32 [1, 3, H, W], RGB, 0..255, sides that are multiples of 32. Outputs, by their channels: 1 (score), 2 (log
of height and width in cells), 2 (offset down and right), 10 (landmarks as fractions of the box, y before x), each
[1, C, H / s, W / s], in this order. The stride s is 4 in the published model; it is read off the shapes. Source: Xu et
al., "CenterFace: Joint Face Detection and Alignment Using Face as Point", arXiv:1911.03599, section 3.
"""

import cv2
import numpy as np

from headrace.curation.annotate.annotator import Pixels
from headrace.curation.annotate.detectors.boxes import Floats, Found, best_of_overlapping, check_numbers, nothing
from headrace.curation.annotate.detectors.onnx import Network, shapes_of

CHANNELS = (1, 2, 2, 10)
SIDE_MULTIPLE = 32
# A face larger than this many cells is none: the exponent of a damaged model must not become infinite.
MAX_LOG_CELLS = 12


def find(model: Network, pixels: Pixels, *, min_score: float, nms_overlap: float) -> Found:
    """Return the faces in RGB, uint8 [H, W, 3]. Raises ValueError if the model is not of this kind."""
    below, right = (-side % SIDE_MULTIPLE for side in pixels.shape[:2])
    padded = cv2.copyMakeBorder(pixels, 0, below, 0, right, cv2.BORDER_CONSTANT)
    outputs = model.run(np.ascontiguousarray(padded.transpose(2, 0, 1)[None], np.float32))
    stride = _stride(model, outputs, (padded.shape[0], padded.shape[1]))
    return decode(outputs, stride, min_score=min_score, nms_overlap=nms_overlap, where=model.where)


def decode(outputs: list[np.ndarray], stride: int, *, min_score: float, nms_overlap: float, where: str) -> Found:
    """Return the faces that four outputs of CenterFace hold, in pixels of the padded image.

    Raises ValueError, naming `where`, if some are not numbers.
    """
    heat, scale, offset, points = (np.asarray(output[0], np.float32) for output in outputs)
    rows, columns = np.nonzero(heat[0] >= min_score)
    check_numbers(where, scores=heat[0], boxes=np.zeros((0, 4), np.float32))
    if not len(rows):
        return nothing()
    sizes = np.exp(np.clip(scale[:, rows, columns], None, MAX_LOG_CELLS)) * stride
    centres = (np.stack([rows, columns]) + offset[:, rows, columns] + 0.5) * stride
    top_left, bottom_right = centres - sizes / 2, centres + sizes / 2
    boxes = np.stack([*top_left[::-1], *bottom_right[::-1]], axis=1).astype(np.float32)
    found = Found(
        boxes=boxes, scores=heat[0][rows, columns], landmarks=_landmarks(points[:, rows, columns], top_left, sizes)
    )
    check_numbers(where, scores=heat[0], boxes=boxes)
    return best_of_overlapping(found, nms_overlap)


def _landmarks(points: Floats, top_left: np.ndarray, sizes: np.ndarray) -> Floats:
    """Return [N, 5, 2], x before y."""
    down = points[0::2] * sizes[0] + top_left[0]
    across = points[1::2] * sizes[1] + top_left[1]
    return np.asarray(np.stack([across, down], axis=2).transpose(1, 0, 2), np.float32)


def _stride(model: Network, outputs: list[np.ndarray], size: tuple[int, int]) -> int:
    """Return the pixels of a cell. Raises ValueError for outputs that are not CenterFace's."""
    shapes = [output.shape for output in outputs]
    if len(shapes) == len(CHANNELS) and all(len(shape) == 4 for shape in shapes):
        cells = (int(shapes[0][2]), int(shapes[0][3]))
        stride = size[0] // max(1, cells[0])
        expected = [(1, channels, *cells) for channels in CHANNELS]
        if shapes == expected and stride >= 1 and (cells[0] * stride, cells[1] * stride) == size:
            return stride
    raise ValueError(
        f"{model.where}: expected CenterFace's four outputs [1, {{1, 2, 2, 10}}, H / 4, W / 4], got "
        f"{shapes_of(outputs)}; say annotate.faces.detector of this file, or check its model"
    )
