"""ONNX models through onnxruntime: one thread, the same bits in every process, weights inside the file.

The engine runs a process for each core, so a pool of onnxruntime's own would fight it; the order of sums on one thread
does not depend on the machine's load.
"""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from headrace import files
from headrace.curation.annotate.detectors.onnx_file import check_weights_inside, without_fixed_shapes
from headrace.text import one_line, without_secrets

MESSAGE_LETTERS = 200


class Network(Protocol):
    """A model that is open, whichever library runs it."""

    @property
    def where(self) -> str:
        """The file as errors name it."""

    def run(self, images: np.ndarray) -> list[np.ndarray]:
        """Return the outputs for float32 images [N, 3, H, W]. Raises ValueError if the model does not take them."""


@dataclass(frozen=True, slots=True)
class OnnxModel:
    """A session with the name of its one input and of its outputs."""

    session: Any
    where: str
    """The file as errors name it."""
    input_name: str
    input_shape: tuple[int | str | None, ...]
    outputs: tuple[str, ...]

    def run(self, images: np.ndarray) -> list[np.ndarray]:
        """Return the outputs for float32 images [N, 3, H, W]. Raises ValueError if the model does not take them."""
        import onnxruntime

        try:
            return [np.asarray(output) for output in self.session.run(self.outputs, {self.input_name: images})]
        except session_errors(onnxruntime) as error:
            raise ValueError(
                f"{self.where} does not run on an image of {images.shape[3]} x {images.shape[2]}: {_short(error)}"
            ) from error


def open_onnx(url: str, key: str, *, free_shapes: bool = False) -> OnnxModel:
    """Open a model with one image input; `key` is where a recipe names it.

    With `free_shapes` a network that was exported for one size takes any. Raises ValueError naming the file.
    """
    import onnxruntime

    where = f"ONNX model {without_secrets(url)}"
    session = open_session(onnxruntime, url, key, free_shapes=free_shapes)
    inputs = session.get_inputs()
    if len(inputs) != 1 or inputs[0].type != "tensor(float)" or (inputs[0].shape and len(inputs[0].shape) != 4):
        raise ValueError(
            f"{where}: expected one float input [N, 3, H, W], got "
            f"{[(item.type, item.shape) for item in inputs]}; check {key}"
        )
    shape = tuple(inputs[0].shape)
    return OnnxModel(session, where, inputs[0].name, shape, tuple(item.name for item in session.get_outputs()))


def open_session(onnxruntime: Any, url: str, key: str, *, free_shapes: bool = False) -> Any:
    """Return an InferenceSession on one thread of a CPU. Raises ValueError naming the file and the key."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.use_deterministic_compute = True
    options.log_severity_level = 4
    # Else a model given as bytes reads weights from any file that it names, seen from the folder that we run in.
    options.add_session_config_entry("session.model_external_initializers_file_folder_path", os.devnull)
    where = f"ONNX model {without_secrets(url)}"
    try:
        data = files.read_bytes(url)
        check_weights_inside(data)
        if free_shapes:
            data = without_fixed_shapes(data)
        return onnxruntime.InferenceSession(data, options, providers=["CPUExecutionProvider"])
    except OSError as error:
        raise ValueError(f"{where} cannot be read ({type(error).__name__}); check {key}") from error
    except ValueError as error:
        raise ValueError(f"{where} does not load: {_short(error)}; check {key}") from error
    except session_errors(onnxruntime) as error:
        raise ValueError(f"{where} does not load: {_short(error)}; check {key}") from error


def session_errors(onnxruntime: Any) -> tuple[type[Exception], ...]:
    """Return what onnxruntime raises for a model or an input that it does not take."""
    state = onnxruntime.capi.onnxruntime_pybind11_state
    return (
        state.Fail,
        state.InvalidProtobuf,
        state.InvalidGraph,
        state.InvalidArgument,
        state.NotImplemented,
        state.RuntimeException,
    )


def shapes_of(outputs: Sequence[np.ndarray]) -> str:
    """Return the shapes of outputs for an error."""
    return ", ".join(str(list(output.shape)) for output in outputs)


def _short(error: Exception) -> str:
    return one_line(str(error))[:MESSAGE_LETTERS]
