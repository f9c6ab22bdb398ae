"""ONNX models whose input is a whole image at one size: what goes in, and what says how.

Input: float32 [N, 3, S, S], RGB, the whole image squeezed to S x S by area averaging (nothing is cropped away), scaled
to 0..1, minus mean, by std. S, mean and std are the model's, read from its metadata (`headrace.image_size`,
`headrace.mean`, `headrace.std`, numbers with commas) unless the recipe says them. One image a run, on one thread: no
value depends on the image's neighbours.
"""

from dataclasses import dataclass
from functools import cache
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from headrace.curation.annotate.annotator import Pixels
from headrace.curation.annotate.detectors.onnx import MESSAGE_LETTERS, open_session, session_errors
from headrace.text import one_line, without_secrets

MAX_IMAGE_SIZE = 4096

Triple = tuple[float, float, float]


@dataclass(frozen=True, slots=True)
class InputConfig:
    """What a recipe says about the input; None: the model's metadata says it."""

    image_size: int | None
    mean: Triple | None
    std: Triple | None

    def as_settings(self) -> dict[str, Any]:
        """Return it as plain data."""
        return {
            "image_size": self.image_size,
            "mean": None if self.mean is None else list(self.mean),
            "std": None if self.std is None else list(self.std),
        }


def check_input(given: InputConfig) -> None:
    """Raise ValueError for a size or a deviation that cannot be."""
    if given.image_size is not None and not 1 <= given.image_size <= MAX_IMAGE_SIZE:
        raise ValueError(f"image_size must be 1..{MAX_IMAGE_SIZE}, got {given.image_size}")
    if given.std is not None and not all(value > 0 for value in given.std):
        raise ValueError(f"std must be above 0, got {list(given.std)}")


@dataclass(frozen=True, slots=True)
class ImageModel:
    """A session with the names and numbers it needs."""

    session: Any
    where: str
    """The file as errors name it."""
    input_name: str
    output_name: str
    image_size: int
    mean: Triple
    std: Triple

    def run(self, pixels: Pixels) -> NDArray[np.float32]:
        """Return the output for one upright RGB image, uint8 [H, W, 3]. Raises ValueError if the model fails."""
        import onnxruntime

        data = model_input(pixels, self.image_size, self.mean, self.std)
        try:
            (output,) = self.session.run([self.output_name], {self.input_name: data[None]})
        except session_errors(onnxruntime) as error:
            raise ValueError(
                f"{self.where} does not run on an image of {self.image_size} x {self.image_size}: "
                f"{one_line(str(error))[:MESSAGE_LETTERS]}; check image_size"
            ) from error
        return np.asarray(output)


def model_input(pixels: Pixels, size: int, mean: Triple, std: Triple) -> NDArray[np.float32]:
    """Return float32 [3, size, size] from upright RGB, uint8 [H, W, 3]: what a model must be trained on."""
    small = cv2.resize(pixels, (size, size), interpolation=cv2.INTER_AREA).astype(np.float32) / np.float32(255)
    normalized = (small - np.array(mean, np.float32)) / np.array(std, np.float32)
    return np.ascontiguousarray(normalized.transpose(2, 0, 1), dtype=np.float32)


@cache
def open_image_model(url: str, given: InputConfig, annotator: str) -> ImageModel:
    """Open a model once in this process. Raises ValueError naming the file and what is missing."""
    import onnxruntime

    where = f"ONNX model {without_secrets(url)}"
    session = open_session(onnxruntime, url, f"annotate.{annotator}.model")
    inputs, outputs = session.get_inputs(), session.get_outputs()
    if len(inputs) != 1 or len(outputs) != 1 or len(inputs[0].shape) != 4 or inputs[0].type != "tensor(float)":
        raise ValueError(
            f"{where}: expected one float input [N, 3, S, S] and one output, got "
            f"{[(item.type, item.shape) for item in inputs]} and {len(outputs)} outputs"
        )
    metadata = session.get_modelmeta().custom_metadata_map
    side = given.image_size or _number(metadata, "headrace.image_size", where) or inputs[0].shape[2]
    if not isinstance(side, int) or not 1 <= side <= MAX_IMAGE_SIZE:
        raise ValueError(f"{where}: its input size is not known; set annotate.{annotator}.image_size")
    mean = given.mean or _triple(metadata, "headrace.mean", where, annotator)
    std = given.std or _triple(metadata, "headrace.std", where, annotator)
    return ImageModel(session, where, inputs[0].name, outputs[0].name, side, mean, std)


def _number(metadata: dict[str, str], name: str, where: str) -> int | None:
    text = metadata.get(name)
    if text is None:
        return None
    if not text.strip().isdecimal():
        raise ValueError(f"{where}: metadata {name} is {text[:40]!r}, expected a whole number")
    return int(text)


def _triple(metadata: dict[str, str], name: str, where: str, annotator: str) -> Triple:
    text = metadata.get(name)
    if text is None:
        raise ValueError(f"{where}: no metadata {name}; set annotate.{annotator}.{name.rpartition('.')[2]}")
    try:
        red, green, blue = (float(part) for part in text.strip("[]() ").split(","))
    except ValueError as error:
        raise ValueError(f"{where}: metadata {name} is {text[:40]!r}, expected three numbers with commas") from error
    return red, green, blue
