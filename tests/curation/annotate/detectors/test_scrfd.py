"""SCRFD: boxes and landmarks are where its anchors say; its weights are not free, so the network is drawn."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from headrace.curation.annotate.annotators.faces import FacesConfig, find_faces
from headrace.curation.annotate.detectors.scrfd import DISTANCES, SCORES, decode

Draw = Callable[..., np.ndarray]
REACH = (2.0, 3.0, 1.0, 4.0)
POINTS = (-1.0, -2.0, 1.0, -2.0, 0.0, 0.0, -1.0, 2.0, 1.0, 2.0)


def write_scrfd(path: Path, *, size: tuple[int, int] | None, landmarks: bool = True, order: int = 1) -> Path:
    """Write a network of SCRFD's output shapes whose faces are blocks of 8 pixels that are greener than red.

    Anchor 0 of each cell sees it, anchor 1 nothing; strides 16 and 32 never do. As insightface exports it: all scores,
    then all distances, then all landmarks, each [N, C].
    """
    onnx = pytest.importorskip("onnx")
    helper, numpy_helper, kind = onnx.helper, onnx.numpy_helper, onnx.TensorProto.FLOAT
    nodes, tensors, outputs = [], [], []
    columns = {"score": 1, "reach": 4, "points": 10} if landmarks else {"score": 1, "reach": 4}
    for what, count in columns.items():
        for stride in (8, 16, 32)[::order]:
            name = f"{what}{stride}"
            weights = np.zeros((2 * count, 3, stride, stride), np.float32)
            biases = np.zeros(2 * count, np.float32)
            if what == "score" and stride == 8:
                weights[0, 1], weights[0, 0] = 128 / 255 / 64, -128 / 255 / 64
            elif what != "score":
                biases[:] = np.tile(REACH if what == "reach" else POINTS, 2)
            tensors += [numpy_helper.from_array(weights, f"w{name}"), numpy_helper.from_array(biases, f"b{name}")]
            tensors.append(numpy_helper.from_array(np.array([-1, count], np.int64), f"s{name}"))
            nodes += [
                helper.make_node("Conv", ["input.1", f"w{name}", f"b{name}"], [f"c{name}"], strides=[stride, stride]),
                helper.make_node("Transpose", [f"c{name}"], [f"t{name}"], perm=[0, 2, 3, 1]),
                helper.make_node("Reshape", [f"t{name}", f"s{name}"], [name]),
            ]
            outputs.append(helper.make_tensor_value_info(name, kind, [None, count]))
    image = helper.make_tensor_value_info("input.1", kind, [1, 3, *(size or ("?h", "?w"))])
    model = helper.make_model(
        helper.make_graph(nodes, "drawn", [image], outputs, tensors), opset_imports=[helper.make_opsetid("", 13)]
    )
    model.ir_version = 8
    path.write_bytes(model.SerializeToString())
    return path


@pytest.mark.parametrize(("size", "landmarks", "order"), [(None, True, 1), (None, False, -1), ((640, 640), True, -1)])
def test_boxes_are_where_the_anchors_say(
    tmp_path: Path, size: tuple[int, int] | None, landmarks: bool, order: int
) -> None:
    path = write_scrfd(tmp_path / "scrfd.onnx", size=size, landmarks=landmarks, order=order)
    pixels = np.full((470, 640, 3), 128, np.uint8)
    for row, column in ((20, 30), (50, 5)):
        pixels[8 * row : 8 * row + 8, 8 * column : 8 * column + 8] = (0, 255, 0)
    found = find_faces(pixels, FacesConfig(detector="scrfd", model=str(path)))
    expected = [
        (x - 8 * REACH[0], y - 8 * REACH[1], x + 8 * REACH[2], y + 8 * REACH[3]) for x, y in ((40, 400), (240, 160))
    ]
    np.testing.assert_allclose(found.boxes * [640, 470, 640, 470], expected, atol=0.01)
    assert found.scores is not None
    np.testing.assert_allclose(found.scores, [1, 1], atol=1e-5)
    assert (found.landmarks is not None) == landmarks
    if found.landmarks is not None:
        np.testing.assert_allclose(found.landmarks[0, 0] * [640, 470], (40 - 8, 400 - 16), atol=0.01)


def test_a_network_for_one_size_sees_larger_images_made_smaller(tmp_path: Path) -> None:
    path = write_scrfd(tmp_path / "scrfd.onnx", size=(320, 320))
    pixels = np.full((640, 320, 3), 128, np.uint8)
    pixels[320:352, 160:192] = (0, 255, 0)
    found = find_faces(pixels, FacesConfig(detector="scrfd", model=str(path), nms_overlap=0.9))
    assert len(found.boxes) == 4
    middles = (found.boxes[:, :2] + found.boxes[:, 2:]) / 2 * [320, 640]
    assert (np.abs(middles - [168, 336]) < 24).all()


def test_outputs_of_another_network_are_refused_with_their_shapes(tmp_path: Path, green_centerface: Path) -> None:
    config = FacesConfig(detector="scrfd", model=str(green_centerface))
    with pytest.raises(ValueError, match=r"green\.onnx.*(SCRFD's outputs|does not run).*"):
        find_faces(np.zeros((64, 64, 3), np.uint8), config)
    other = FacesConfig(model=str(write_scrfd(tmp_path / "scrfd.onnx", size=None)))
    with pytest.raises(ValueError, match=r"scrfd\.onnx: expected CenterFace's four outputs .*got \["):
        find_faces(np.zeros((64, 64, 3), np.uint8), other)


@pytest.mark.parametrize(("score", "reach"), [(np.nan, 1.0), (0.9, np.nan)])
def test_a_face_that_is_not_known_is_an_error(score: float, reach: float) -> None:
    outputs = {32: {SCORES: np.array([[0.1], [score]], np.float32), DISTANCES: np.full((2, 4), reach, np.float32)}}
    with pytest.raises(ValueError, match=r"^model: gave a score that is no number, or a box that is not finite"):
        decode(outputs, 32, min_score=0.5, nms_overlap=0.3, where="model")
