"""YuNet, run by OpenCV, which reads its outputs. Source: Wu et al., Machine Intelligence Research 20, 2023."""

from typing import Any

import cv2
import numpy as np

from headrace import files
from headrace.curation.annotate.annotator import Pixels
from headrace.curation.annotate.detectors.boxes import Found, check_numbers, nothing
from headrace.curation.annotate.detectors.onnx_file import check_weights_inside
from headrace.text import without_secrets

MAX_FACES = 1000
MIN_PADDED_SIDE, SIDE_MULTIPLE = 64, 32


def open_model(url: str, key: str, *, min_score: float, nms_overlap: float) -> Any:
    """Return the detector; `key` is where a recipe names its file. Raises ValueError naming the file."""
    shown = without_secrets(url)
    try:
        data = files.read_bytes(url)
        check_weights_inside(data)
        model = np.frombuffer(data, np.uint8)
        detector = cv2.FaceDetectorYN.create(
            "onnx", model, np.zeros(0, np.uint8), (64, 64), min_score, nms_overlap, MAX_FACES
        )
        detector.detect(np.zeros((64, 64, 3), np.uint8))
    except OSError as error:
        raise ValueError(f"YuNet model {shown} cannot be read; check {key}") from error
    except (cv2.error, ValueError) as error:
        raise ValueError(f"{shown} is not a YuNet model that OpenCV {cv2.__version__} can run; check {key}") from error
    return detector


def find(detector: Any, pixels: Pixels) -> Found:
    """Return the faces in RGB, uint8 [H, W, 3]."""
    # OpenCV pads to 32 pixels itself, but then reads memory it never wrote where a side is under 64: measured, other
    # boxes, some infinite, for the same image. Padding here, to 64 at least, gives the same answer every time.
    below, right = (
        max(MIN_PADDED_SIDE, side + -side % SIDE_MULTIPLE) - side for side in (pixels.shape[0], pixels.shape[1])
    )
    padded = cv2.copyMakeBorder(pixels, 0, below, 0, right, cv2.BORDER_CONSTANT)
    detector.setInputSize((padded.shape[1], padded.shape[0]))
    _, found = detector.detect(cv2.cvtColor(padded, cv2.COLOR_RGB2BGR))
    if found is None:
        return nothing()
    faces = np.asarray(found, np.float32)
    check_numbers("YuNet", scores=faces[:, 14], boxes=faces[:, :4])
    corners = np.concatenate([faces[:, :2], faces[:, :2] + faces[:, 2:4]], axis=1)
    return Found(boxes=corners, scores=faces[:, 14], landmarks=faces[:, 4:14].reshape(-1, 5, 2))
