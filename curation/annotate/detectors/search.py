"""Search an image for faces: at a size that detectors were made for, on one thread, with models opened once."""

from functools import cache, partial
from typing import Protocol

import cv2

from headrace.curation.annotate.annotator import Pixels
from headrace.curation.annotate.detectors import centerface, haar, scrfd, yunet
from headrace.curation.annotate.detectors.boxes import Found, nothing
from headrace.curation.annotate.detectors.config import DetectorConfig, file_of
from headrace.curation.annotate.detectors.onnx import Network, open_onnx
from headrace.curation.annotate.detectors.opencv import open_opencv
from headrace.shards.images.opencv import one_opencv_thread

# The long side of what is searched: YuNet and CenterFace were trained at 640 to 800, and find faces from 10 pixels on.
MIN_LONG_SIDE = 640
MAX_LONG_SIDE = 1280
MIN_SHORT_SIDE = 16

KEY = "annotate.faces.model"


class Find(Protocol):
    """A detector that is open."""

    def __call__(self, pixels: Pixels) -> Found:
        """Return the faces in upright RGB, uint8 [H, W, 3], boxes in its pixels."""


def search(pixels: Pixels, config: DetectorConfig, *, enlarged: bool = True) -> Found:
    """Return the faces in an upright RGB image, uint8 [H, W, 3], as fractions of it.

    Raises ValueError if the model does not load.
    """
    height, width = pixels.shape[:2]
    scale = min(max(height, width, MIN_LONG_SIDE if enlarged else 1), MAX_LONG_SIDE) / max(height, width)
    size = max(1, round(width * scale)), max(1, round(height * scale))
    if min(size) < MIN_SHORT_SIDE:
        return nothing(scored=config.detector != "haar")
    searched = cv2.resize(pixels, size, interpolation=cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR)
    with one_opencv_thread():
        return open_detector(config)(searched).as_fractions(size)


@cache
def open_detector(config: DetectorConfig) -> Find:
    """Open a detector once in this process. Raises ValueError naming its file."""
    lowest, overlap = config.lowest_score if config.detector != "haar" else 0.0, config.nms_overlap
    if config.detector == "haar":
        return haar.find
    if config.detector == "yunet":
        model = yunet.open_model(file_of(config), KEY, min_score=lowest, nms_overlap=overlap)
        return partial(yunet.find, model)
    url = file_of(config)
    if config.detector == "scrfd":
        return partial(scrfd.find, open_onnx(url, KEY), min_score=lowest, nms_overlap=overlap)
    network: Network = open_opencv(url, KEY) if config.run_by == "opencv" else open_onnx(url, KEY, free_shapes=True)
    return partial(centerface.find, network, min_score=lowest, nms_overlap=overlap)
