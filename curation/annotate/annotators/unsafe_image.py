"""A classifier of unsafe images: any ONNX file with one input and one output.

Input: float32 [N, 3, S, S], RGB, the whole image squeezed to S x S by area averaging (nothing is cropped away), scaled
to 0..1, minus mean, by std. Output: [N] or [N, 1], the probability that the image is unsafe; or [N, 2], logits (safe,
unsafe), turned into that probability by softmax. S, mean and std are the model's, read from its metadata
(`headrace.image_size`, `headrace.mean`, `headrace.std`, numbers with commas) unless the recipe says them.
"""

from dataclasses import dataclass
from functools import cache
from typing import Any, ClassVar

import cv2
import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from headrace import files
from headrace.curation.annotate.annotator import AnnotationBatch, Annotator, Columns, Pixels

MAX_IMAGE_SIZE = 4096

Triple = tuple[float, float, float]


@dataclass(frozen=True, kw_only=True, slots=True)
class UnsafeImageConfig:
    """An ONNX classifier."""

    model: str
    """The ONNX file (any fsspec URL), weights inside."""
    image_size: int | None = None
    """Side of the model's input in pixels; null: the model's metadata or input shape."""
    mean: Triple | None = None
    """Mean of R, G, B on the scale 0..1; null: the model's metadata."""
    std: Triple | None = None
    """Standard deviation of R, G, B on the scale 0..1; null: the model's metadata."""

    def __post_init__(self) -> None:
        if self.image_size is not None and not 1 <= self.image_size <= MAX_IMAGE_SIZE:
            raise ValueError(f"image_size must be 1..{MAX_IMAGE_SIZE}, got {self.image_size}")
        if self.std is not None and not all(value > 0 for value in self.std):
            raise ValueError(f"std must be above 0, got {list(self.std)}")


@dataclass(frozen=True, slots=True)
class Classifier:
    """A session with the names and numbers it needs."""

    session: Any
    input_name: str
    output_name: str
    image_size: int
    mean: Triple
    std: Triple


class UnsafeImage(Annotator):
    """ONNX classifier of unsafe images.

    One image a run, one thread: no score depends on its neighbours.
    """

    name: ClassVar[str] = "unsafe_image"
    version: ClassVar[int] = 1
    config_type: ClassVar[type[Any]] = UnsafeImageConfig
    packages: ClassVar[tuple[str, ...]] = ("onnxruntime",)
    needs_pixels: ClassVar[bool] = True
    columns: ClassVar[pa.Schema] = pa.schema([("unsafe_image_score", pa.float32())])

    config: UnsafeImageConfig

    def settings(self) -> dict[str, Any]:
        config = self.config
        return {
            "image_size": config.image_size,
            "mean": None if config.mean is None else list(config.mean),
            "std": None if config.std is None else list(config.std),
        }

    def files(self) -> dict[str, str]:
        return {"model": self.config.model}

    def annotate(self, batch: AnnotationBatch) -> Columns:
        classifier = load_classifier(self.config)
        return {
            "unsafe_image_score": [
                None if pixels is None else unsafe_score(classifier, pixels, self.config.model)
                for pixels in batch.images
            ]
        }


def unsafe_score(classifier: Classifier, pixels: Pixels, where: str) -> float:
    """Return the probability that an image is unsafe. Raises ValueError if the model's output is not one."""
    data = classifier_input(pixels, classifier.image_size, classifier.mean, classifier.std)
    (output,) = classifier.session.run([classifier.output_name], {classifier.input_name: data[None]})
    values = np.asarray(output, np.float64).reshape(-1)
    if values.size == 2:
        return float(1 / (1 + np.exp(np.clip(values[0] - values[1], -700, 700))))
    if values.size != 1 or not -1e-6 <= values[0] <= 1 + 1e-6:
        raise ValueError(
            f"ONNX model {where}: expected one probability (0..1) or two logits for an image, got "
            f"{values[:4].tolist()} of shape {np.shape(output)}; add a sigmoid to the model"
        )
    return float(np.clip(values[0], 0, 1))


def classifier_input(pixels: Pixels, size: int, mean: Triple, std: Triple) -> NDArray[np.float32]:
    """Return float32 [3, size, size] from upright RGB, uint8 [H, W, 3]: what a model must be trained on."""
    small = cv2.resize(pixels, (size, size), interpolation=cv2.INTER_AREA).astype(np.float32) / np.float32(255)
    normalized = (small - np.array(mean, np.float32)) / np.array(std, np.float32)
    return np.ascontiguousarray(normalized.transpose(2, 0, 1), dtype=np.float32)


@cache
def load_classifier(config: UnsafeImageConfig) -> Classifier:
    """Open the model once in this process. Raises ValueError naming the file and what is missing."""
    import onnxruntime

    where = f"ONNX model {config.model}"
    session = _open_session(onnxruntime, config.model)
    inputs, outputs = session.get_inputs(), session.get_outputs()
    if len(inputs) != 1 or len(outputs) != 1 or len(inputs[0].shape) != 4 or inputs[0].type != "tensor(float)":
        raise ValueError(
            f"{where}: expected one float input [N, 3, S, S] and one output, got "
            f"{[(item.type, item.shape) for item in inputs]} and {len(outputs)} outputs"
        )
    metadata = session.get_modelmeta().custom_metadata_map
    side = config.image_size or _number(metadata, "headrace.image_size", where) or inputs[0].shape[2]
    if not isinstance(side, int) or not 1 <= side <= MAX_IMAGE_SIZE:
        raise ValueError(f"{where}: its input size is not known; set annotate.unsafe_image.image_size")
    mean = config.mean or _triple(metadata, "headrace.mean", where)
    std = config.std or _triple(metadata, "headrace.std", where)
    return Classifier(session, inputs[0].name, outputs[0].name, side, mean, std)


def _open_session(onnxruntime: Any, url: str) -> Any:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.use_deterministic_compute = True
    options.log_severity_level = 4
    try:
        # From bytes, so that the file cannot name another one to read weights from.
        return onnxruntime.InferenceSession(files.read_bytes(url), options, providers=["CPUExecutionProvider"])
    except OSError as error:
        raise ValueError(f"ONNX model {url} cannot be read; check annotate.unsafe_image.model") from error
    except _session_errors(onnxruntime) as error:
        message = " ".join(str(error).split())[:200]
        raise ValueError(f"ONNX model {url} does not load: {message}; check annotate.unsafe_image.model") from error


def _session_errors(onnxruntime: Any) -> tuple[type[Exception], ...]:
    state = onnxruntime.capi.onnxruntime_pybind11_state
    return (
        state.Fail,
        state.InvalidProtobuf,
        state.InvalidGraph,
        state.InvalidArgument,
        state.NotImplemented,
        state.RuntimeException,
    )


def _number(metadata: dict[str, str], name: str, where: str) -> int | None:
    text = metadata.get(name)
    if text is None:
        return None
    if not text.strip().isdecimal():
        raise ValueError(f"{where}: metadata {name} is {text[:40]!r}, expected a whole number")
    return int(text)


def _triple(metadata: dict[str, str], name: str, where: str) -> Triple:
    text = metadata.get(name)
    if text is None:
        raise ValueError(f"{where}: no metadata {name}; set annotate.unsafe_image.{name.rpartition('.')[2]}")
    try:
        red, green, blue = (float(part) for part in text.strip("[]() ").split(","))
    except ValueError as error:
        raise ValueError(f"{where}: metadata {name} is {text[:40]!r}, expected three numbers with commas") from error
    return red, green, blue
