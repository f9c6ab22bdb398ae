"""Several detectors, tiles and the second check: what they hide, what they drop, and that nothing else changes."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from headrace.config import build_config
from headrace.curation.annotate.annotators.faces import FaceBoxes, FacesConfig, find_faces
from headrace.curation.annotate.detectors.boxes import Found, best_of_overlapping, overlaps
from headrace.curation.annotate.detectors.combine import SAME_FACE, combined
from headrace.curation.annotate.detectors.second_look import are_face_like

Draw = Callable[..., np.ndarray]

corner = st.tuples(*[st.floats(0, 0.75, width=32)] * 2, *[st.floats(0.03125, 0.1875, width=32)] * 2)
boxes = st.lists(corner, max_size=5).map(
    lambda rows: np.array([(x, y, x + w, y + h) for x, y, w, h in rows], np.float32).reshape(-1, 4)
)


def found_of(rows: np.ndarray) -> Found:
    return Found(boxes=rows, scores=np.linspace(0.9, 0.4, len(rows), dtype=np.float32))


@given(boxes, boxes)
def test_union_covers_what_any_detector_saw_and_agreement_what_both_saw(ones: np.ndarray, others: np.ndarray) -> None:
    both = [found_of(ones), found_of(others)]
    union, agreement = combined(both, "union").boxes, combined(both, "agreement").boxes
    for box in (*ones, *others):
        assert ((union[:, :2] <= box[:2]).all(axis=1) & (union[:, 2:] >= box[2:]).all(axis=1)).any()
    assert len(union) <= len(ones) + len(others)
    has_match = (overlaps(ones, others) >= SAME_FACE).any(axis=1) if len(others) else np.zeros(len(ones), np.bool_)
    assert len(agreement) == has_match.sum()


@given(boxes)
def test_of_boxes_that_stay_no_two_overlap_and_each_that_goes_overlaps_a_better_one(rows: np.ndarray) -> None:
    kept = best_of_overlapping(found_of(rows), 0.3).boxes
    between = overlaps(kept, kept) - np.eye(len(kept), dtype=np.float32)
    assert (between <= 0.3 + 1e-6).all()
    assert len(kept) == 0 or (overlaps(rows, kept).max(axis=1) > 0.3).all()


def test_two_detectors_hide_more_and_agree_on_less(green_centerface: Path, green_picture: Draw) -> None:
    pixels = green_picture([(60, 80), (20, 30)])
    pixels[80:84, 120:124] = (0, 150, 0)  # the weaker one: half the score
    one, other = {"model": str(green_centerface), "min_score": 0.9}, {"model": str(green_centerface)}
    for rule, expected in (("union", 2), ("agreement", 1)):
        config = build_config(FacesConfig, {"detectors": [one, other], "combine": rule})
        assert len(find_faces(pixels, config).boxes) == expected
        assert FaceBoxes(config).settings()["combine"] == rule
        assert len(FaceBoxes(config).files()) == 2


def test_a_small_face_of_a_large_image_is_found_by_tiles_and_counted_once(
    green_centerface: Path, green_picture: Draw
) -> None:
    pixels = green_picture([(100, 100), (300, 500)], height=1600, width=2560)
    whole = FacesConfig(model=str(green_centerface), min_score=0.8)
    tiled = FacesConfig(model=str(green_centerface), min_score=0.8, tile_pixels=1280)
    assert len(find_faces(pixels, whole).boxes) == 0
    found = find_faces(pixels, tiled)
    middles = (found.boxes[:, :2] + found.boxes[:, 2:]) / 2 * [2560, 1600]
    np.testing.assert_allclose(middles, [(402, 402), (2002, 1202)], atol=0.1)
    assert FaceBoxes(tiled).settings() == {**FaceBoxes(whole).settings(), "tile_pixels": 1280}


def test_a_face_on_the_border_of_two_tiles_is_whole(green_centerface: Path, green_picture: Draw) -> None:
    for column in (300, 317, 320, 338):  # tiles of 1280 begin at 0, 960, 1280
        pixels = green_picture([(100, column)], height=800, width=2560)
        found = find_faces(pixels, FacesConfig(model=str(green_centerface), min_score=0.8, tile_pixels=1280))
        sides = (found.boxes[:, 2:] - found.boxes[:, :2]) * [2560, 800]
        np.testing.assert_allclose(sides, [(60, 40)], atol=0.1)


FACE = [(0.3, 0.35), (0.7, 0.35), (0.5, 0.55), (0.35, 0.75), (0.65, 0.75)]


@pytest.mark.parametrize(
    ("points", "good"),
    [
        (FACE, True),
        ([(0.6, 0.35), (0.7, 0.35), (0.75, 0.55), (0.6, 0.75), (0.7, 0.75)], True),  # a profile
        ([*FACE[:2], (0.5, 0.95), *FACE[3:]], False),  # the nose under the mouth
        ([*FACE[:3], (0.35, 0.45), (0.65, 0.45)], False),  # the mouth on the eyes
        ([(x, 1 - y) for x, y in FACE], False),  # upside down
        ([(np.nan, np.nan)] * 5, True),  # a detector without landmarks
    ],
)
def test_landmarks_that_no_face_has_are_told_from_those_of_a_face(points: Any, good: bool) -> None:
    answer = are_face_like(np.array([points], np.float32) * 100, np.array([[0, 0, 100, 100]], np.float32))
    assert answer.tolist() == [good]


def test_a_large_box_needs_a_higher_score_than_a_small_one(green_centerface: Path, green_picture: Draw) -> None:
    pixels = green_picture([(60, 80)])
    pixels[240:244, 320:324] = (0, 128, 0)  # about 0.5
    for share, found in ((0.5, 1), (0.05, 0)):
        check = {"large_share": share, "landmarks": False}
        config = build_config(FacesConfig, {"model": str(green_centerface), "check": check})
        assert len(find_faces(pixels, config).boxes) == found
    unasked = build_config(FacesConfig, {"model": str(green_centerface), "check": {"large_min_score": 0}})
    assert len(find_faces(pixels, unasked).boxes) == 1


def test_a_second_model_confirms_what_the_first_found(
    green_centerface: Path, green_picture: Draw, tmp_path: Path, write_centerface: Any
) -> None:
    # The crop around a box of 60 pixels is enlarged to 640.
    close = write_centerface(tmp_path / "close.onnx", sides=3.5)
    blind = write_centerface(tmp_path / "blind.onnx", weight=0.1)
    pixels = green_picture([(60, 80), (20, 30)])
    for model, expected in ((close, 2), (blind, 0)):
        check = {"large_min_score": 0, "confirm": {"model": str(model)}}
        config = build_config(FacesConfig, {"model": str(green_centerface), "check": check})
        assert len(find_faces(pixels, config).boxes) == expected
        assert FaceBoxes(config).files()["confirm"] == str(model)


def test_settings_that_say_nothing_new_keep_the_digest_of_before(shared_data: Path) -> None:
    """What annotators of before wrote is named by these settings, so it must count as done."""
    model = str(shared_data / "yunet_n_640_640.onnx")
    assert FaceBoxes(FacesConfig(detector="haar", accept_weak=True)).settings() == {"detector": "haar"}
    assert FaceBoxes(FacesConfig(detector="yunet", model=model)).settings() == {
        "detector": "yunet",
        "min_score": 0.6,
        "nms_overlap": 0.3,
    }
    assert FaceBoxes(FacesConfig(detector="yunet", model=model)).files() == {"model": model}


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({"detectors": [{}], "model": "x"}, "inside `detectors`"),
        ({"detectors": [{}, {}]}, "no two alike"),
        ({"detectors": [{"detector": "scrfd"}]}, "scrfd needs `model`"),
        ({"tile_pixels": 5}, "tile_pixels must be 0 or at least 128"),
        ({"check": {"large_share": 2}}, "large_share"),
        ({"check": {"confirm": {"detector": "yunet"}}}, "yunet needs `model`"),
        ({"min_score": 3}, "between 0 and 1"),
    ],
)
def test_settings_that_do_not_fit_together_are_refused(data: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build_config(FacesConfig, data)


def test_agreement_with_a_weak_detector_is_weak(shared_data: Path) -> None:
    both = [{"detector": "haar"}, {"detector": "yunet", "model": str(shared_data / "yunet_n_640_640.onnx")}]
    assert build_config(FacesConfig, {"detectors": both, "combine": "agreement"}).is_weak
    assert not build_config(FacesConfig, {"detectors": both}).is_weak
    assert build_config(FacesConfig, {"check": {"confirm": {"detector": "haar"}}}).is_weak
