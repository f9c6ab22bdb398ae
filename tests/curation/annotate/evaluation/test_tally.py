"""`headrace faces evaluate`: faces counted by size, boxes that no face explains, and annotations of others read."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from headrace.cli.faces import Action, faces_command
from headrace.curation.annotate.evaluation.known_boxes import read_marked

Draw = Callable[..., np.ndarray]

WIDER = """\
0--Parade/a.png
3
292 222 60 40 0 0 0 0 0 0
92 62 60 40 0 0 0 1 0 0
400 300 20 20 1 0 0 0 2 1
0--Parade/b.png
0
0 0 0 0 0 0 0 0 0 0
c.png
0
d.png
1
0 0 0 0 0 0 0 0 0 0
"""


@pytest.fixture
def photographs(tmp_path: Path, green_picture: Draw, encode: Any) -> Path:
    """Faces at the first and the second marked place; the third is missed, and b.png has a box where no face is."""
    folder = tmp_path / "photos"
    (folder / "0--Parade").mkdir(parents=True)
    cells = {"0--Parade/a.png": [(60, 80), (20, 30)], "0--Parade/b.png": [(50, 50)], "c.png": [], "d.png": []}
    for name, places in cells.items():
        (folder / name).write_bytes(encode(green_picture(places), "PNG"))
    (tmp_path / "wider.txt").write_text(WIDER)
    return folder


@pytest.mark.parametrize("form", ["wider", "json"])
def test_faces_are_counted_by_size_and_boxes_without_a_face_are_told(
    photographs: Path, green_centerface: Path, capsys: pytest.CaptureFixture[str], form: str
) -> None:
    annotations, out = photographs.parent / "wider.txt", photographs.parent / "out.json"
    if form == "json":
        boxes = {"0--Parade/a.png": [[292, 222, 60, 40], [400, 300, 20, 20]], "0--Parade/b.png": [], "d.png": []}
        annotations.write_text(json.dumps(boxes))
    faces_command(
        Action.EVALUATE,
        str(photographs),
        annotations=str(annotations),
        detectors=[f"centerface:{green_centerface}", f"centerface:{green_centerface}:0.9", "haar"],
        out=str(out),
    )
    text = capsys.readouterr().out
    rows = json.loads(out.read_text())["detectors"]
    assert len(rows) == 5
    row = rows[f"centerface:{green_centerface}"]
    assert (row["images"], row["faces"], row["found"], row["recall"]) == (4 if form == "wider" else 3, 2, 1, 0.5)
    assert row["by_size"]["32-63"] == {"faces": 1, "found": 1}
    assert row["by_size"]["16-31"] == {"faces": 1, "found": 0}
    # A face that is marked as invalid explains a box, but is neither found nor missed.
    assert (row["boxes"], row["extra_boxes"]) == (3, 1 if form == "wider" else 2)
    assert rows["union"]["found"] == rows["agreement"]["found"] == 1
    assert "1/2" in text
    assert "16-31 px" in text


def test_images_alone_count_boxes_and_shrinking_makes_faces_small(
    photographs: Path, green_centerface: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    spec = [f"centerface:{green_centerface}"]
    faces_command(Action.EVALUATE, str(photographs), detectors=spec, json=True)
    assert json.loads(capsys.readouterr().out)["detectors"]["centerface"]["extra_boxes"] == 3
    (photographs.parent / "one.json").write_text(json.dumps({"0--Parade/a.png": [[292, 222, 60, 40]]}))
    annotations = str(photographs.parent / "one.json")
    faces_command(Action.EVALUATE, str(photographs), annotations=annotations, detectors=spec, shrink=4, json=True)
    sizes = json.loads(capsys.readouterr().out)["detectors"]["centerface"]["by_size"]
    assert sizes["0-15"]["faces"] == 1


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a.png\nx\n", "line 2: expected the number of faces of 'a.png'"),
        ("a.png\n2\n1 2 3 4\n", "line 4: expected left, top, width, height"),
        ("a.png\n1\n1 2 3\n", "line 3: expected left"),
        ("nowhere.png\n0\n", "no image 'nowhere.png', which the annotations name"),
        ('{"a.png": 3}', "expected JSON of file -> list"),
        ('{"a.png": [[1, 2]]}', "expected JSON of file -> list"),
        ("", "no images"),
    ],
)
def test_annotations_that_cannot_be_read_are_one_line(photographs: Path, text: str, message: str) -> None:
    path = photographs.parent / "bad.txt"
    path.write_text(text)
    with pytest.raises(ValueError, match=message) as why:
        faces_command(Action.EVALUATE, str(photographs), annotations=str(path), detectors=["haar"])
    assert "\n" not in str(why.value)


def test_a_detector_that_is_not_known_or_not_here_is_refused_before_an_image_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HEADRACE_MODELS", str(tmp_path))
    for spec, message in (("nobody", "--detector nobody: "), ("yunet", "models get yunet"), ("haar:x", "no `model`")):
        with pytest.raises(ValueError, match=message):
            faces_command(Action.EVALUATE, str(tmp_path / "none"), detectors=[spec])


def test_wider_files_with_and_without_a_line_of_zeros_are_read_alike(tmp_path: Path) -> None:
    (tmp_path / "w.txt").write_text(WIDER)
    marked = read_marked(str(tmp_path / "w.txt"))
    assert list(marked) == ["0--Parade/a.png", "0--Parade/b.png", "c.png", "d.png"]
    assert marked["0--Parade/a.png"].counted.tolist() == [True, False, True]
    assert marked["d.png"].counted.tolist() == [False]
