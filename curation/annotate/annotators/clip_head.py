"""Small networks on the image's feature of a CLIP model: LAION's aesthetic score, DataComp's unsafe-image score.

A head is a file of weights of a known shape (safetensors, or a torch file read without pickle), or any ONNX file with
one input [N, D] and one number an image out. It sees the normalized feature in float32. Which CLIP it was trained on
the file does not say: it must be the one that is named beside it (ViT-L/14 of OpenAI for the published ones).
"""

import pickle
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from headrace import files
from headrace.curation.annotate.detectors.onnx import open_session, session_errors
from headrace.text import one_line, without_secrets

MAX_HEAD_BYTES = 256 * 1024 * 1024

Weights = Mapping[str, NDArray[np.float32]]
Head = Callable[[NDArray[np.float32]], float]


@dataclass(frozen=True, slots=True)
class HeadShape:
    """Layers of one kind of head: the widths after D, and what stands between and after them."""

    widths: tuple[tuple[int, ...], ...]
    """The widths of each form that is known."""
    batch_norm: bool
    """A BatchNorm1d of D, with eps 0, comes first."""
    relu: bool
    """Between the layers; else nothing is."""
    sigmoid: bool
    """After the last."""

    def __str__(self) -> str:
        first = "BatchNorm1d(D), Linear D" if self.batch_norm else "Linear D"
        return " or ".join("-".join((first, *map(str, widths))) for widths in self.widths)


# Source: LAION-AI/aesthetic-predictor (one layer) and christophschuhmann/improved-aesthetic-predictor (five, with
# dropout between and no activation).
AESTHETIC = HeadShape(widths=((1024, 128, 64, 16, 1), (1,)), batch_norm=False, relu=False, sigmoid=False)
# Source: mlfoundations/dataset2metadata.
UNSAFE = HeadShape(widths=((64, 512, 256, 1),), batch_norm=True, relu=True, sigmoid=True)


@cache
def load_head(url: str, shape: HeadShape, key: str) -> Head:
    """Return a function from a feature [D] to a number. Raises ValueError naming the file and what was expected."""
    if url.endswith(".onnx"):
        return _onnx_head(url, key)
    where = f"head {without_secrets(url)}"
    weights = _read_weights(url, where, key)
    norm, layers = _layers(weights, shape, where, key)

    def run(feature: NDArray[np.float32]) -> float:
        return _forward(feature, norm, layers, shape, where)

    return run


@dataclass(frozen=True, slots=True)
class _Linear:
    weight: NDArray[np.float32]
    bias: NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class _Norm:
    scale: NDArray[np.float32]
    shift: NDArray[np.float32]


def _forward(
    feature: NDArray[np.float32], norm: _Norm | None, layers: Sequence[_Linear], shape: HeadShape, where: str
) -> float:
    width = layers[0].weight.shape[1]
    if feature.shape != (width,):
        raise ValueError(
            f"{where} takes features of {width} numbers, the CLIP model gives {feature.shape[0]}; a head goes with "
            "the model it was trained on"
        )
    value = feature if norm is None else feature * norm.scale + norm.shift
    for number, layer in enumerate(layers):
        # No BLAS: its threads would add up in another order.
        value = np.einsum("ij,j->i", layer.weight, value) + layer.bias
        if shape.relu and number < len(layers) - 1:
            value = np.maximum(value, np.float32(0))
    found = float(value[0])
    return float(1 / (1 + np.exp(-np.clip(found, -700, 700)))) if shape.sigmoid else found


def _read_weights(url: str, where: str, key: str) -> Weights:
    from safetensors import SafetensorError
    from safetensors.numpy import load

    try:
        if files.size_of(url) > MAX_HEAD_BYTES:
            raise ValueError(f"over {MAX_HEAD_BYTES} bytes")
        data = files.read_bytes(url)
        found = load(data) if url.endswith(".safetensors") else _read_torch(data)
    except pickle.UnpicklingError as error:
        raise ValueError(f"{where} holds more than tensors; convert it to .safetensors; check {key}") from error
    except (OSError, RuntimeError, ValueError, TypeError, KeyError, EOFError, SafetensorError) as error:
        raise ValueError(f"{where} does not load: {one_line(str(error))[:200]}; check {key}") from error
    return {name: np.asarray(value, np.float32) for name, value in found.items() if value.ndim in (1, 2)}


def _read_torch(data: bytes) -> Mapping[str, Any]:
    from headrace.curation.annotate.annotators.clip_model import read_tensors

    return read_tensors(data)


def _layers(weights: Weights, shape: HeadShape, where: str, key: str) -> tuple[_Norm | None, list[_Linear]]:
    """Return the layers in order: their shapes say it, as no width of a known form comes twice."""
    matrices = {name.removesuffix("weight").removesuffix("."): value for name, value in weights.items()}
    matrices = {name: value for name, value in matrices.items() if value.ndim == 2}
    for widths in shape.widths:
        for width in sorted({value.shape[1] for value in matrices.values()}):
            names = _chain(matrices, (width, *widths))
            layers = [_linear(weights, name) for name in names or ()]
            norm = _norm(weights, width) if shape.batch_norm else None
            whole = [layer for layer in layers if layer is not None]
            # Nothing missing, nothing left over.
            read = 2 * len(whole) + 4 * (norm is not None)
            if names and len(whole) == len(names) and (norm is not None) == shape.batch_norm and read == len(weights):
                return norm, whole
    sizes = ", ".join(f"{name} {list(value.shape)}" for name, value in list(weights.items())[:12])
    raise ValueError(f"{where}: expected {shape}, with finite weights; got {sizes or 'no tensor'}; check {key}")


def _linear(weights: Weights, name: str) -> _Linear | None:
    prefix = f"{name}." if name else ""
    weight, bias = weights[f"{prefix}weight"], weights.get(f"{prefix}bias")
    if bias is None or bias.shape != weight.shape[:1] or not (np.isfinite(weight).all() and np.isfinite(bias).all()):
        return None
    return _Linear(weight, bias)


def _chain(linears: Weights, widths: tuple[int, ...]) -> list[str] | None:
    """Return the names of the layers from width to width; None unless each is there and none is left over."""
    if len(linears) != len(widths) - 1:
        return None
    by_shape = {value.shape: name for name, value in linears.items()}
    names = [by_shape.get((out, into)) for into, out in pairwise(widths)]
    found = [name for name in names if name is not None]
    return found if len(found) == len(linears) == len(set(found)) else None


def _norm(weights: Weights, width: int) -> _Norm | None:
    """Return the BatchNorm as a scale and a shift, with eps 0, in the mode of evaluation."""
    prefix = next((name.removesuffix("running_mean") for name in weights if name.endswith("running_mean")), None)
    if prefix is None:
        return None
    names = ("weight", "bias", "running_mean", "running_var")
    values = [weights.get(prefix + name) for name in names]
    if any(value is None or value.shape != (width,) for value in values):
        return None
    weight, bias, mean, variance = (value for value in values if value is not None)
    with np.errstate(all="ignore"):
        scale = np.asarray(weight / np.sqrt(variance), np.float32)
        shift = np.asarray(bias - mean * scale, np.float32)
    return _Norm(scale, shift) if np.isfinite(scale).all() and np.isfinite(shift).all() else None


def _onnx_head(url: str, key: str) -> Head:
    import onnxruntime

    session = open_session(onnxruntime, url, key)
    where = f"ONNX head {without_secrets(url)}"
    inputs, outputs = session.get_inputs(), session.get_outputs()
    if len(inputs) != 1 or len(outputs) != 1 or inputs[0].type != "tensor(float)" or len(inputs[0].shape) != 2:
        raise ValueError(f"{where}: expected one float input [N, D] and one output; check {key}")

    def run(feature: NDArray[np.float32]) -> float:
        try:
            (output,) = session.run(None, {inputs[0].name: feature[None]})
        except session_errors(onnxruntime) as error:
            raise ValueError(
                f"{where} does not take a feature of {len(feature)} numbers: {one_line(str(error))[:200]}; a head goes "
                "with the model it was trained on"
            ) from error
        if np.size(output) != 1:
            raise ValueError(f"{where}: expected one number for an image, got {list(np.shape(output))}; check {key}")
        return float(np.reshape(output, -1)[0])

    return run
