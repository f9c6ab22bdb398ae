"""Faces in the nine photographs whose truth is known, and boxes in the upright frame."""

import json

import numpy as np
import pytest
from PIL import Image

from headrace.curation.annotate.annotators.faces import FaceBoxes, FacesConfig, find_faces
from headrace.curation.annotate.decode import decode
from headrace.shards.images.decode import decode_rgb

MIN_OVERLAP = 0.3
HAAR = FacesConfig(detector="haar")


def overlap(one, other):
    """Return intersection over union of two (x0, y0, x1, y1)."""
    width = min(one[2], other[2]) - max(one[0], other[0])
    height = min(one[3], other[3]) - max(one[1], other[1])
    if width <= 0 or height <= 0:
        return 0.0
    both = width * height
    return both / ((one[2] - one[0]) * (one[3] - one[1]) + (other[2] - other[0]) * (other[3] - other[1]) - both)


def count(shared_data, config):
    """Return (faces found, faces in truth, boxes that are no face of the truth)."""
    found = total = wrong = 0
    for name, boxes in json.loads((shared_data / "faces" / "boxes.json").read_text()).items():
        pixels = decode_rgb((shared_data / "faces" / name).read_bytes())
        height, width = pixels.shape[:2]
        truth = [(x / width, y / height, (x + w) / width, (y + h) / height) for x, y, w, h in boxes]
        guessed = find_faces(pixels, config).boxes.tolist()
        total += len(truth)
        found += sum(any(overlap(box, guess) >= MIN_OVERLAP for guess in guessed) for box in truth)
        wrong += sum(not any(overlap(box, guess) >= MIN_OVERLAP for box in truth) for guess in guessed)
    return found, total, wrong


@pytest.fixture
def yunet(shared_data):
    return FacesConfig(detector="yunet", model=str(shared_data / "yunet_n_640_640.onnx"))


def test_yunet_finds_every_face(shared_data, yunet):
    found, total, wrong = count(shared_data, yunet)
    assert (found, total) == (43, 43)
    assert wrong <= 7


def test_haar_finds_most_frontal_faces(shared_data):
    found, total, wrong = count(shared_data, HAAR)
    assert total == 43
    assert found >= 38
    assert wrong <= 6


@pytest.mark.parametrize("orientation", [3, 6, 8])
def test_boxes_are_of_the_upright_image(orientation, shared_data, yunet, encode):
    pixels = decode_rgb((shared_data / "faces" / "2008_002506.jpg").read_bytes())
    turns = {3: 2, 6: 1, 8: 3}[orientation]
    exif = Image.Exif()
    exif[0x0112] = orientation
    stored = encode(np.rot90(pixels, turns), "JPEG", quality=98, exif=exif)
    decoded = decode(stored)
    assert decoded.pixels is not None
    assert decoded.pixels.shape == pixels.shape
    upright, turned = find_faces(pixels, yunet), find_faces(decoded.pixels, yunet)
    assert len(upright.boxes) == len(turned.boxes) == 3
    assert all(overlap(a, b) > 0.9 for a, b in zip(upright.boxes, turned.boxes, strict=True))


def test_columns_of_each_detector(shared_data, yunet, batch_of):
    pixels = decode_rgb((shared_data / "faces" / "2008_002506.jpg").read_bytes())
    blank = np.full((80, 60, 3), 127, np.uint8)
    columns = FaceBoxes(yunet).annotate(batch_of([pixels, None, blank]))
    assert columns["num_faces"] == [3, None, 0]
    assert columns["face_boxes"][1:] == [None, []]
    assert columns["face_scores"][1:] == [None, []]
    assert all(0.6 <= score <= 1 for score in columns["face_scores"][0])
    boxes = np.array(columns["face_boxes"][0])
    assert ((boxes >= 0) & (boxes <= 1)).all()
    assert (boxes[:, :2] < boxes[:, 2:]).all()
    assert boxes[:, 0].tolist() == sorted(boxes[:, 0].tolist())
    without_scores = FaceBoxes(HAAR).annotate(batch_of([pixels, blank]))
    assert without_scores["face_scores"] == [None, None]
    assert without_scores["num_faces"][1] == 0


@pytest.mark.parametrize("shape", [(1, 1), (1, 5000), (5000, 3), (17, 17), (2000, 40)])
def test_odd_shapes_have_an_answer(shape, yunet):
    pixels = np.random.default_rng(0).integers(0, 256, (*shape, 3), np.uint8)
    for config in (yunet, HAAR):
        assert find_faces(pixels, config).boxes.shape[1] == 4


def test_a_file_that_is_no_yunet_model_is_refused_by_name(tmp_path, scene):
    (tmp_path / "noise.onnx").write_bytes(b"noise" * 100)
    for name, message in (("noise.onnx", "not a YuNet model"), ("nowhere.onnx", "cannot be read")):
        with pytest.raises(ValueError, match=rf"{name}.*{message}"):
            find_faces(scene(1), FacesConfig(detector="yunet", model=str(tmp_path / name)))


def test_a_detector_without_its_model_is_refused():
    with pytest.raises(ValueError, match="yunet needs `model`"):
        FacesConfig(detector="yunet")
    with pytest.raises(ValueError, match="haar takes no `model`"):
        FacesConfig(detector="haar", model="x.onnx")
    with pytest.raises(ValueError, match="haar gives no scores"):
        FacesConfig(detector="haar", min_score=0.5)


def test_what_is_found_does_not_depend_on_the_images_before(yunet):
    rng = np.random.default_rng(1)
    images = [rng.integers(0, 256, (*shape, 3), np.uint8) for shape in ((26, 1280), (40, 1280), (1280, 26), (480, 640))]
    answers = [set[bytes]() for _ in images]
    for _ in range(10):
        for number in rng.permutation(len(images)):
            answers[number].add(find_faces(images[number], yunet).boxes.tobytes())
    assert [len(answer) for answer in answers] == [1, 1, 1, 1]
