"""CenterFace: boxes, landmarks and scores are where its maps say, whoever runs it and whatever its file is."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from headrace.curation.annotate.annotators.faces import FaceBoxes, FacesConfig, find_faces
from headrace.curation.annotate.detectors.onnx_file import without_fixed_shapes

Draw = Callable[..., np.ndarray]


@pytest.mark.parametrize("run_by", ["onnxruntime", "opencv"])
def test_boxes_and_landmarks_are_where_the_maps_say(green_centerface: Path, green_picture: Draw, run_by: Any) -> None:
    config = FacesConfig(model=str(green_centerface), run_by=run_by)
    found = find_faces(green_picture([(60, 80), (20, 30)]), config)
    centres = [(30 * 4 + 2, 20 * 4 + 2), (80 * 4 + 2, 60 * 4 + 2)]
    expected = [(x - 30, y - 20, x + 30, y + 20) for x, y in centres]
    np.testing.assert_allclose(found.boxes * [640, 480, 640, 480], expected, atol=1e-3)
    assert found.scores is not None
    assert found.landmarks is not None
    np.testing.assert_allclose(found.scores, [1, 1], atol=1e-5)
    nose = found.landmarks[0, 2] * [640, 480]
    np.testing.assert_allclose(nose, [expected[0][0] + 0.5 * 60, expected[0][1] + 0.6 * 40], atol=1e-3)


@pytest.mark.parametrize("odd", [{"sides": np.nan}, {"weight": np.nan}])
def test_a_face_that_is_not_known_ends_the_run_and_is_not_published(
    tmp_path: Path, write_centerface: Callable[..., Path], green_picture: Draw, odd: dict[str, float]
) -> None:
    config = FacesConfig(model=str(write_centerface(tmp_path / "odd.onnx", **odd)))
    with pytest.raises(ValueError, match=r"odd\.onnx: gave a score that is no number, or a box that is not finite"):
        find_faces(green_picture([(60, 80)]), config)


@pytest.mark.parametrize("run_by", ["onnxruntime", "opencv"])
def test_the_same_boxes_at_every_size_in_any_order(green_centerface: Path, green_picture: Draw, run_by: Any) -> None:
    config = FacesConfig(model=str(green_centerface), run_by=run_by)
    sizes = [(480, 640), (100, 640), (640, 33), (481, 637), (20, 1279)]
    images = [green_picture([(2, 3)], height=height, width=width) for height, width in sizes]
    rng, answers = np.random.default_rng(0), [set[bytes]() for _ in images]
    for _ in range(3):
        for number in rng.permutation(len(images)):
            answers[number].add(find_faces(images[number], config).boxes.tobytes())
    assert [len(answer) for answer in answers] == [1] * len(images)
    assert all(len(find_faces(image, config).boxes) == 1 for image in images[:3])


def test_of_overlapping_boxes_the_best_stays(green_centerface: Path, green_picture: Draw) -> None:
    pixels = green_picture([(60, 80), (60, 83), (20, 30)])
    pixels[240:244, 332:336] = (0, 200, 0)
    one = find_faces(pixels, FacesConfig(model=str(green_centerface)))
    assert len(one.boxes) == 2
    both = find_faces(pixels, FacesConfig(model=str(green_centerface), nms_overlap=0.9))
    assert len(both.boxes) == 3
    strict = find_faces(pixels, FacesConfig(model=str(green_centerface), min_score=0.9, nms_overlap=0.9))
    assert len(strict.boxes) == 2


def test_a_file_of_another_kind_is_one_line_that_names_it(
    tmp_path: Path, green_centerface: Path, shared_data: Path, scene: Draw
) -> None:
    good = green_centerface.read_bytes()
    shutil.copy(shared_data / "yunet_n_640_640.onnx", tmp_path / "yunet.onnx")
    odd = {"noise": b"noise" * 99, "empty": b"", "cut": good[: len(good) // 2], "zeros": bytes(999), "page": b"<html>"}
    for name, data in odd.items():
        (tmp_path / f"{name}.onnx").write_bytes(data)
    for name in (*odd, "yunet", "nowhere"):
        for run_by in ("onnxruntime", "opencv"):
            config = FacesConfig(model=str(tmp_path / f"{name}.onnx"), run_by=run_by)
            with pytest.raises(ValueError, match=rf"{name}\.onnx.*annotate\.faces") as why:
                find_faces(scene(1), config)
            assert "\n" not in str(why.value)
            assert len(str(why.value)) < 600


@pytest.mark.parametrize("by_constant", [False, True])
def test_weights_outside_of_the_file_are_refused(
    tmp_path: Path, green_centerface: Path, scene: Draw, monkeypatch: pytest.MonkeyPatch, by_constant: bool
) -> None:
    """Even where the file that it names is there: a model of bytes is looked for below the folder that we run in."""
    onnx = pytest.importorskip("onnx")
    monkeypatch.chdir(tmp_path)
    model, target = onnx.load(str(green_centerface)), tmp_path / "model.onnx"
    onnx.save(model, str(target), save_as_external_data=True, location="secret.bin", size_threshold=0)
    assert (tmp_path / "secret.bin").exists()
    if by_constant:
        model = onnx.load(str(target), load_external_data=False)
        tensors = list(model.graph.initializer)
        del model.graph.initializer[:]
        for place, tensor in enumerate(tensors):
            constant = onnx.helper.make_node("Constant", [], [tensor.name], value=tensor)
            model.graph.node.insert(place, constant)
        target.write_bytes(model.SerializeToString())
    configs = [FacesConfig(model=str(target), run_by=run_by) for run_by in ("onnxruntime", "opencv")]
    for config in (*configs, FacesConfig(detector="yunet", model=str(target))):
        with pytest.raises(ValueError, match=r"model\.onnx.*annotate\.faces"):
            find_faces(scene(1), config)


def test_shapes_that_are_taken_out_leave_the_rest_of_the_file(green_centerface: Path) -> None:
    onnx = pytest.importorskip("onnx")
    before = onnx.load_from_string(green_centerface.read_bytes())
    after = onnx.load_from_string(without_fixed_shapes(green_centerface.read_bytes()))
    assert [len(item.type.tensor_type.shape.dim) for item in after.graph.output] == [4] * 4
    assert not any(dim.dim_value for item in after.graph.input for dim in item.type.tensor_type.shape.dim)
    assert after.graph.node == before.graph.node
    assert after.graph.initializer == before.graph.initializer
    assert after.opset_import == before.opset_import


def test_the_package_that_runs_it_is_asked_for_only_where_it_runs() -> None:
    assert FaceBoxes(FacesConfig()).needed_packages() == ("onnxruntime",)
    assert FaceBoxes(FacesConfig(run_by="opencv")).needed_packages() == ()
    assert FaceBoxes(FacesConfig(detector="haar")).needed_packages() == ()
    assert FaceBoxes(FacesConfig(run_by="opencv")).settings() != FaceBoxes(FacesConfig()).settings()
