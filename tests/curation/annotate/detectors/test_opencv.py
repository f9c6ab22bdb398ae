"""OpenCV's networks answer alike for every size, whatever they were asked before."""

from pathlib import Path

import cv2
import numpy as np
import pytest

from headrace.curation.annotate.detectors.onnx import open_onnx
from headrace.curation.annotate.detectors.opencv import open_opencv


def write_upsampling(path: Path) -> str:
    """Write what CenterFace ends with: a transposed convolution and a batch norm."""
    onnx = pytest.importorskip("onnx")
    helper, kind, rng = onnx.helper, onnx.TensorProto.FLOAT, np.random.default_rng(0)
    shapes = {"first": (8, 3, 3, 3), "up": (8, 8, 2, 2), "last": (1, 8, 1, 1)}
    tensors = {name: rng.standard_normal(shape) / 5 for name, shape in shapes.items()}
    tensors |= {name: 1 + rng.standard_normal(8) / 5 for name in ("scale", "bias", "mean")} | {
        "variance": np.full(8, 2)
    }
    nodes = [
        helper.make_node("Conv", ["image", "first"], ["a"], pads=[1] * 4, strides=[2, 2]),
        helper.make_node("ConvTranspose", ["a", "up"], ["b"], strides=[2, 2]),
        helper.make_node("BatchNormalization", ["b", "scale", "bias", "mean", "variance"], ["c"]),
        helper.make_node("Conv", ["c", "last"], ["out"]),
    ]
    graph = helper.make_graph(
        nodes,
        "up",
        [helper.make_tensor_value_info("image", kind, [1, 3, 32, 32])],
        [helper.make_tensor_value_info("out", kind, [1, 1, 32, 32])],
        [onnx.numpy_helper.from_array(np.asarray(value, np.float32), name) for name, value in tensors.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)])
    model.ir_version = 8
    path.write_bytes(model.SerializeToString())
    return str(path)


def test_the_size_before_does_not_change_an_answer(tmp_path: Path) -> None:
    url = write_upsampling(tmp_path / "up.onnx")
    network, other = open_opencv(url, "key"), open_onnx(url, "key", free_shapes=True)
    rng = np.random.default_rng(1)
    threads = cv2.getNumThreads()
    cv2.setNumThreads(1)
    for height, width in ((64, 64), (96, 64), (64, 64), (64, 128), (32, 32)):
        image = rng.standard_normal((1, 3, height, width)).astype(np.float32)
        np.testing.assert_allclose(network.run(image)[0], other.run(image)[0], atol=1e-4)
    cv2.setNumThreads(threads)
