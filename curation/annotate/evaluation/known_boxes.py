"""Faces that somebody marked: WIDER FACE's text format, or JSON of boxes by file.

WIDER's `wider_face_val_bbx_gt.txt`, for each image: its name below the folder, the number of faces, and a line for each
(one line of zeros where there are none): left, top, width, height, blur, expression, illumination, invalid, occlusion,
pose. Faces marked invalid, and boxes without an area, count neither as found nor as missed. JSON: file -> list of
[left, top, width, height]. All in pixels of the image as stored upright. Source: Yang et al., "WIDER FACE: A Face
Detection Benchmark", CVPR 2016; the readme of its annotations.
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from headrace import files
from headrace.curation.annotate.detectors.boxes import Floats
from headrace.text import shown

INVALID = 7
MIN_VALUES = 4


@dataclass(frozen=True, slots=True)
class Marked:
    """The faces of one image: boxes [N, 4] as x0, y0, x1, y1 in pixels, and which of them count."""

    boxes: Floats
    counted: np.ndarray


def read_marked(url: str) -> dict[str, Marked]:
    """Return image name -> its faces. Raises ValueError naming file and line."""
    try:
        text = files.read_bytes(url).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{url}: not a text in UTF-8") from error
    if text.lstrip().startswith("{"):
        return _of_json(url, text)
    return dict(_of_wider(url, text.splitlines()))


def _of_json(url: str, text: str) -> dict[str, Marked]:
    try:
        found = json.loads(text)
        return {name: _marked(boxes, [False] * len(boxes)) for name, boxes in found.items()}
    except (ValueError, TypeError, AttributeError) as error:
        raise ValueError(
            f"{url}: expected JSON of file -> list of [left, top, width, height]: {shown(str(error))}"
        ) from error


def _of_wider(url: str, lines: list[str]) -> Iterator[tuple[str, Marked]]:
    position = 0
    while position < len(lines):
        name = lines[position].strip()
        if not name:
            position += 1
            continue
        count_line = lines[position + 1].strip() if position + 1 < len(lines) else ""
        if not count_line.isdecimal():
            raise ValueError(f"{url}, line {position + 2}: expected the number of faces of {shown(name)}")
        count = int(count_line)
        first = position + 2
        rows = [_row(url, lines, number) for number in range(first, first + count)]
        yield name, _marked([row[:4] for row in rows], [len(row) > INVALID and row[INVALID] == 1 for row in rows])
        position = first + count
        # Without faces there is a line of zeros all the same, in some copies of the file.
        if not count and position < len(lines) and _is_numbers(lines[position]):
            position += 1


def _row(url: str, lines: list[str], number: int) -> list[float]:
    line = lines[number] if number < len(lines) else ""
    if not _is_numbers(line) or len(line.split()) < MIN_VALUES:
        raise ValueError(f"{url}, line {number + 1}: expected left, top, width, height of a face, got {shown(line)}")
    return [float(value) for value in line.split()]


def _is_numbers(line: str) -> bool:
    try:
        return bool([float(value) for value in line.split()])
    except ValueError:
        return False


def _marked(boxes: list[list[float]], invalid: list[bool]) -> Marked:
    corners = np.array(boxes, np.float32).reshape(-1, 4)
    whole = (corners[:, 2:] > 0).all(axis=1)
    corners[:, 2:] += corners[:, :2]
    return Marked(corners, whole & ~np.array(invalid, np.bool_))
