"""The Haar cascade that comes with OpenCV: frontal faces only, no score, and faces where there are none."""

from functools import cache
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from headrace.curation.annotate.annotator import Pixels
from headrace.curation.annotate.detectors.boxes import Found


def find(pixels: Pixels) -> Found:
    """Return the faces in RGB, uint8 [H, W, 3]."""
    gray = cv2.cvtColor(pixels, cv2.COLOR_RGB2GRAY)
    found = _cascade().detectMultiScale(gray, scaleFactor=1.1, minNeighbors=4, minSize=(30, 30))
    boxes = np.asarray(found, np.float32).reshape(-1, 4)
    return Found(boxes=np.concatenate([boxes[:, :2], boxes[:, :2] + boxes[:, 2:]], axis=1), scores=None)


def cascade_file() -> Path:
    """Return the file of the cascade, which is part of OpenCV's package."""
    return Path(cv2.__file__).with_name("data") / "haarcascade_frontalface_default.xml"


@cache
def _cascade() -> Any:
    return cv2.CascadeClassifier(str(cascade_file()))
