"""Face boxes, as fractions of the upright image.

`haar` needs no file and is weak: frontal faces only, no score, and it sees faces where there are none. `yunet` (an ONNX
file, run by OpenCV) is the one to use. `num_faces` 0 means that none was found, not that there is none; small faces are
lost first, so images are enlarged before they are searched.
"""

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, ClassVar, Literal

import cv2
import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from headrace import files
from headrace.curation.annotate.annotator import AnnotationBatch, Annotator, Columns, Pixels

# The long side of what is searched: YuNet was trained at 640, and finds faces of 10 to 300 pixels.
MIN_LONG_SIDE = 640
MAX_LONG_SIDE = 1280
MIN_SHORT_SIDE = 16
MAX_FACES = 1000

Boxes = NDArray[np.float32]


@dataclass(frozen=True, kw_only=True, slots=True)
class FacesConfig:
    """A face detector."""

    detector: Literal["haar", "yunet"] = "haar"
    """`haar`: comes with OpenCV, weak; `yunet`: needs `model`, recommended."""
    model: str = ""
    """YuNet's ONNX file (any fsspec URL)."""
    min_score: float = 0.6
    """Keep YuNet's boxes from this score on."""
    nms_overlap: float = 0.3
    """Of two YuNet boxes that overlap more (intersection over union), keep the better."""

    def __post_init__(self) -> None:
        if self.detector == "yunet" and not self.model:
            raise ValueError("detector yunet needs `model`, the path of its ONNX file; or say detector: haar")
        if self.detector == "haar" and self.model:
            raise ValueError("detector haar takes no `model`; say detector: yunet to use the file")
        if not 0 < self.min_score < 1 or not 0 < self.nms_overlap < 1:
            raise ValueError("min_score and nms_overlap must be between 0 and 1")


@dataclass(frozen=True, slots=True)
class Faces:
    """Boxes [N, 4] (x0, y0, x1, y1 as fractions), scores [N] or None where the detector has none."""

    boxes: Boxes
    scores: NDArray[np.float32] | None


class FaceBoxes(Annotator):
    """Face boxes: what build blurs.

    From left to right, then from top to bottom.
    """

    name: ClassVar[str] = "faces"
    version: ClassVar[int] = 1
    config_type: ClassVar[type[Any]] = FacesConfig
    by_default: ClassVar[bool] = True
    needs_pixels: ClassVar[bool] = True
    columns: ClassVar[pa.Schema] = pa.schema(
        [
            ("num_faces", pa.int16()),
            ("face_boxes", pa.list_(pa.list_(pa.float32()))),
            ("face_scores", pa.list_(pa.float32())),
        ]
    )

    config: FacesConfig

    def settings(self) -> dict[str, Any]:
        config = self.config
        if config.detector == "haar":
            return {"detector": "haar"}
        return {"detector": "yunet", "min_score": config.min_score, "nms_overlap": config.nms_overlap}

    def files(self) -> dict[str, str]:
        return {"model": self.config.model or str(_haar_file())}

    def annotate(self, batch: AnnotationBatch) -> Columns:
        found = [None if pixels is None else find_faces(pixels, self.config) for pixels in batch.images]
        return {
            "num_faces": [None if faces is None else len(faces.boxes) for faces in found],
            "face_boxes": [None if faces is None else faces.boxes.tolist() for faces in found],
            "face_scores": [
                None if faces is None or faces.scores is None else faces.scores.tolist() for faces in found
            ],
        }


def find_faces(pixels: Pixels, config: FacesConfig) -> Faces:
    """Return the faces in an upright RGB image, uint8 [H, W, 3]. Raises ValueError if the model does not load."""
    height, width = pixels.shape[:2]
    long_side = min(max(height, width, MIN_LONG_SIDE), MAX_LONG_SIDE)
    scale = long_side / max(height, width)
    size = max(1, round(width * scale)), max(1, round(height * scale))
    if min(size) < MIN_SHORT_SIDE:
        empty = np.zeros((0, 4), np.float32)
        return Faces(empty, None if config.detector == "haar" else empty[:, 0])
    searched = cv2.resize(pixels, size, interpolation=cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR)
    with _one_thread():
        boxes, scores = _haar(searched) if config.detector == "haar" else _yunet(searched, config)
    return _as_fractions(boxes, scores, size)


def _as_fractions(boxes: Boxes, scores: NDArray[np.float32] | None, size: tuple[int, int]) -> Faces:
    """Turn [x, y, width, height] in pixels into sorted fractions; what lies outside the image is cut."""
    corners = np.concatenate([boxes[:, :2], boxes[:, :2] + boxes[:, 2:]], axis=1)
    corners = np.asarray(np.clip(corners / np.array([*size, *size]), 0, 1), np.float32)
    kept = np.flatnonzero((corners[:, 2:] > corners[:, :2]).all(axis=1))
    order = kept[np.lexsort(corners[kept].T[::-1])]
    return Faces(corners[order], None if scores is None else scores[order].astype(np.float32))


def _haar(pixels: Pixels) -> tuple[Boxes, None]:
    gray = cv2.cvtColor(pixels, cv2.COLOR_RGB2GRAY)
    found = _haar_cascade().detectMultiScale(gray, scaleFactor=1.1, minNeighbors=4, minSize=(30, 30))
    return np.asarray(found, np.float32).reshape(-1, 4), None


def _yunet(pixels: Pixels, config: FacesConfig) -> tuple[Boxes, NDArray[np.float32]]:
    # OpenCV pads to 32 pixels itself, but then reads memory it never wrote where a side is under 64: measured, other
    # boxes, some infinite, for the same image. Padding here, to 64 at least, gives the same answer every time.
    below, right = (max(64, (side + 31) // 32 * 32) - side for side in pixels.shape[:2])
    padded = cv2.copyMakeBorder(pixels, 0, below, 0, right, cv2.BORDER_CONSTANT)
    detector = _yunet_detector(config)
    detector.setInputSize((padded.shape[1], padded.shape[0]))
    _, found = detector.detect(cv2.cvtColor(padded, cv2.COLOR_RGB2BGR))
    faces = np.zeros((0, 15), np.float32) if found is None else np.asarray(found, np.float32)
    faces = faces[np.isfinite(faces).all(axis=1)]
    return faces[:, :4], faces[:, 14]


def _haar_file() -> Path:
    return Path(cv2.__file__).with_name("data") / "haarcascade_frontalface_default.xml"


@cache
def _haar_cascade() -> Any:
    return cv2.CascadeClassifier(str(_haar_file()))


@cache
def _yunet_detector(config: FacesConfig) -> Any:
    """Open the model once in this process, from bytes."""
    try:
        model = np.frombuffer(files.read_bytes(config.model), np.uint8)
        detector = cv2.FaceDetectorYN.create(
            "onnx", model, np.zeros(0, np.uint8), (64, 64), config.min_score, config.nms_overlap, MAX_FACES
        )
        detector.detect(np.zeros((64, 64, 3), np.uint8))
    except OSError as error:
        raise ValueError(f"YuNet model {config.model} cannot be read; check annotate.faces.model") from error
    except cv2.error as error:
        raise ValueError(
            f"{config.model} is not a YuNet model that OpenCV {cv2.__version__} can run; check annotate.faces.model"
        ) from error
    return detector


@contextlib.contextmanager
def _one_thread() -> Iterator[None]:
    """Run OpenCV on one thread: the engine runs a process for each core."""
    before = cv2.getNumThreads()
    cv2.setNumThreads(1)
    try:
        yield
    finally:
        cv2.setNumThreads(before)
