"""Regions to hide: boxes of every output form in the frame of the image, and other forms refused by name."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from headrace.config import build_config
from headrace.curation.annotate.annotators.regions import RegionBoxes, RegionsConfig, find_regions

ROWS = [(100, 50, 200, 150, 0.9, 1), (104, 52, 200, 150, 0.8, 1), (300, 400, 420, 430, 0.6, 0), (0, 0, 9, 9, 0.1, 0)]
EXPECTED = [(100, 50, 200, 150), (300, 400, 420, 430)]


def write_answer(path: Path, answer: np.ndarray) -> str:
    """Write a network that always gives this answer to a square of 640."""
    onnx = pytest.importorskip("onnx")
    helper, kind = onnx.helper, onnx.TensorProto.FLOAT
    tensor = onnx.numpy_helper.from_array(answer.astype(np.float32), "answer")
    graph = helper.make_graph(
        [helper.make_node("Identity", ["answer"], ["out"])],
        "answer",
        [helper.make_tensor_value_info("image", kind, [1, 3, 640, 640])],
        [helper.make_tensor_value_info("out", kind, list(answer.shape))],
        [tensor],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)])
    model.ir_version = 8
    path.write_bytes(model.SerializeToString())
    return str(path)


def as_grid() -> np.ndarray:
    rows = np.zeros((20, 6))
    for number, (x0, y0, x1, y1, score, label) in enumerate(ROWS):
        rows[number, :4] = (x0 + x1) / 2, (y0 + y1) / 2, x1 - x0, y1 - y0
        rows[number, 4 + label] = score
    return rows.T[None]


@pytest.mark.parametrize(
    ("form", "answer"), [("boxes", np.array(ROWS)), ("boxes", np.array([ROWS])), ("grid", as_grid())]
)
def test_boxes_of_each_form_are_fractions_of_the_image(tmp_path: Path, form: Any, answer: np.ndarray) -> None:
    model = write_answer(tmp_path / "m.onnx", answer)
    pixels = np.zeros((240, 320, 3), np.uint8)  # twice as large in the square
    found = find_regions(pixels, RegionsConfig(model=model, output=form))
    np.testing.assert_allclose(found.boxes * [640, 480, 640, 480], EXPECTED, atol=1e-3)
    assert found.labels is not None
    assert found.scores is not None
    assert found.labels.tolist() == [1, 0]
    np.testing.assert_allclose(found.scores, [0.9, 0.6], atol=1e-6)
    one = find_regions(pixels, RegionsConfig(model=model, output=form, labels=(0,)))
    assert len(one.boxes) == 1


def test_hot_regions_of_text_are_grown_over_their_letters(tmp_path: Path) -> None:
    heat = np.zeros((1, 1, 160, 160))
    heat[0, 0, 40:50, 20:80] = 0.8
    heat[0, 0, 100, 100] = 0.9  # a speck
    found = find_regions(
        np.zeros((640, 640, 3), np.uint8),
        RegionsConfig(model=write_answer(tmp_path / "m.onnx", heat), output="heatmap"),
    )
    grow = 1.5 * 600 / 140 * 4
    np.testing.assert_allclose(found.boxes * 640, [(80 - grow, 160 - grow, 320 + grow, 200 + grow)], atol=0.01)


def test_columns_and_digest(tmp_path: Path, batch_of: Callable[..., Any]) -> None:
    annotator = RegionBoxes(RegionsConfig(model=write_answer(tmp_path / "m.onnx", np.array(ROWS))))
    columns = annotator.annotate(batch_of([np.zeros((64, 64, 3), np.uint8), None]))
    assert columns["num_regions"] == [2, None]
    assert columns["region_labels"] == [[1, 0], None]
    assert len(columns["region_boxes"][0][0]) == 4
    other = RegionBoxes(RegionsConfig(model=annotator.config.model, labels=(1,)))
    assert annotator.settings() != other.settings()


def test_another_output_than_the_recipe_says_is_one_line(tmp_path: Path) -> None:
    model = write_answer(tmp_path / "odd.onnx", np.zeros((1, 3, 7)))
    for form in ("boxes", "grid", "heatmap"):
        config = build_config(RegionsConfig, {"model": model, "output": form})
        with pytest.raises(ValueError, match=rf"odd\.onnx: .*\[1, 3, 7\], which is no output of the form '{form}'"):
            find_regions(np.zeros((64, 64, 3), np.uint8), config)
    for data in ({"model": model, "image_size": 3}, {"model": model, "std": [0, 1, 1]}, {}):
        with pytest.raises(ValueError, match=r"image_size|std|model"):
            build_config(RegionsConfig, data)


@pytest.mark.parametrize(("place", "value"), [((0, 4), np.nan), ((2, 0), np.nan), ((2, 3), np.inf)])
def test_a_region_that_is_not_known_ends_the_run_and_is_not_published(
    tmp_path: Path, place: tuple[int, int], value: float
) -> None:
    rows = np.array(ROWS)
    rows[place] = value
    config = RegionsConfig(model=write_answer(tmp_path / "odd.onnx", rows))
    with pytest.raises(ValueError, match=r"odd\.onnx: gave a score that is no number, or a box that is not finite"):
        find_regions(np.zeros((640, 640, 3), np.uint8), config)


def test_a_heatmap_with_a_cell_that_is_no_number_is_refused(tmp_path: Path) -> None:
    heat = np.zeros((1, 1, 160, 160))
    heat[0, 0, 20, 20] = np.nan
    config = RegionsConfig(model=write_answer(tmp_path / "odd.onnx", heat), output="heatmap")
    with pytest.raises(ValueError, match=r"odd\.onnx: gave a score that is no number"):
        find_regions(np.zeros((640, 640, 3), np.uint8), config)


def test_a_box_that_scores_too_low_may_be_anything(tmp_path: Path) -> None:
    rows = np.array([*ROWS[:3], (np.nan, 0, np.inf, 9, 0.1, 0)])
    found = find_regions(
        np.zeros((640, 640, 3), np.uint8), RegionsConfig(model=write_answer(tmp_path / "m.onnx", rows))
    )
    assert len(found.boxes) == 2
