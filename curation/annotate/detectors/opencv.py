"""ONNX models through OpenCV, for machines without onnxruntime: the core's own library, about 1.4 times as slow."""

from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np

from headrace import files
from headrace.curation.annotate.detectors.onnx_file import check_weights_inside, output_names
from headrace.text import one_line, without_secrets

MESSAGE_LETTERS = 200


@dataclass(frozen=True, slots=True)
class OpencvModel:
    """A network with the names of its outputs, in the order in which the file has them."""

    network: Any
    where: str
    outputs: tuple[str, ...]

    def run(self, images: np.ndarray) -> list[np.ndarray]:
        """Return the outputs for float32 images [N, 3, H, W]. Raises ValueError if the model does not take them."""
        try:
            self.network.setInput(images)
            return [np.array(output) for output in self.network.forward(self.outputs)]
        except cv2.error as error:
            raise ValueError(
                f"{self.where} does not run on an image of {images.shape[3]} x {images.shape[2]}: {_short(error)}"
            ) from error


def open_opencv(url: str, key: str) -> OpencvModel:
    """Open a model; `key` is where a recipe names it. Raises ValueError naming the file."""
    where = f"ONNX model {without_secrets(url)}"
    try:
        data = files.read_bytes(url)
        # OpenCV 4.14 ends the process (SIGFPE) where a weight lies in another file.
        check_weights_inside(data)
        network = cv2.dnn.readNetFromONNX(np.frombuffer(data, np.uint8))
        # Fusion folds batch norms into weights once more at each new size of the input: measured in OpenCV 4.14, other
        # outputs for every size but the first. Without it CenterFace takes 5 % more time.
        network.enableFusion(False)
        # OpenCV's own list of the outputs has another order.
        return OpencvModel(network, where, tuple(output_names(data)))
    except OSError as error:
        raise ValueError(f"{where} cannot be read ({type(error).__name__}); check {key}") from error
    except (cv2.error, ValueError) as error:
        raise ValueError(f"{where} does not load in OpenCV {cv2.__version__}: {_short(error)}; check {key}") from error


def _short(error: Exception) -> str:
    # OpenCV begins with its version and a path of the machine that it was built on.
    return one_line(str(error).rpartition("error: ")[2])[:MESSAGE_LETTERS]
