"""Things in a picture as a stream brings them: boxes, classes and masks in the square that it delivers.

The column of the index holds one picture's things as JSON: `id`, `height`, `width` and a list `instances` of `class`,
`box` (left, top, width, height), `area`, `crowd` and COCO's `segmentation`. pycocotools reads the masks.
"""

# N things of a picture, S side of the square

import importlib
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from headrace.pipeline import Mixture, Sample, SampleError
from headrace.pipeline.augment.crop import Window
from headrace.pipeline.augment.views import view_windows
from headrace.text import shown
from headrace.train.objectives.dense.placement import boxes_in_view, cut_mask

INSTANCES_COLUMN = "instances"
THINGS = "things"
"""Column of a batch: a `Things` a row."""
LEAST_SIDE = 1.0
"""Pixels of the square: what is cut to less is no thing any more."""
MAX_PIXELS = 64 << 20
"""Most of a picture whose things are read: a few letters of run lengths stand for any number of them."""
MAX_COORDINATE = 1 << 20
MAX_OUTLINE = 1 << 22
"""Pixels that the outline of a thing may go along: pycocotools takes some 100 bytes for each."""
MAX_LENGTH_BITS = 40
"""Of one run: longer than any picture."""
MISSING_EXTRA = (
    "detection needs torchvision and pycocotools, which are not installed here: pip install 'headrace[detection]'"
)


@dataclass(frozen=True, slots=True)
class Things:
    """What a picture's square shows. Crowds are not in it: nobody learns from them."""

    boxes_N4: NDArray[np.float32]
    """Left, top, right, bottom, pixels of the square."""
    class_N: NDArray[np.int64]
    bits: NDArray[np.uint8]
    """[N, S, S / 8] the masks, eight pixels a byte."""
    side: int

    @property
    def masks_NSS(self) -> NDArray[np.uint8]:
        """1 where a thing is."""
        return np.unpackbits(self.bits, axis=2, count=self.side)


def check_detection() -> None:
    """Raise ValueError if what detection stands on is not installed."""
    try:
        for name in ("pycocotools.mask", "torchvision.ops"):
            importlib.import_module(name)
    except ImportError as error:
        raise ValueError(f"{MISSING_EXTRA} ({error})") from None


class PlaceThings:
    """Map function of a stream: things in the square, from the JSON in a column of the index."""

    def __init__(self, mixture: Mixture, column: str, *, num_classes: int) -> None:
        self._choose = view_windows(mixture)[0]
        self._side, self._column, self._classes = mixture.image_size, column, num_classes

    def __call__(self, sample: Sample, _rng: np.random.Generator) -> Mapping[str, Any]:
        """Return THINGS. Raises SampleError for JSON that is none, and for a class that is not learnt."""
        text = sample.columns[self._column]
        try:
            if not text or text == "null":
                return {THINGS: _things([], [], np.zeros((0, 4)), side=self._side)}
            record = read_record(text)
            if wrong := [one["class"] for one in record["instances"] if not 0 <= one["class"] < self._classes]:
                raise ValueError(f"class {wrong[0]} is out of range: num_classes is {self._classes}")
            own = (record["height"], record["width"])
            if any(sample.upright_size) and own != sample.upright_size:
                height, width = sample.upright_size
                raise ValueError(f"its things are of {own[1]} x {own[0]} pixels, its picture has {width} x {height}")
            window = self._choose(sample.position, *own)
            return {THINGS: placed(record, window, side=self._side)}
        except (ValueError, KeyError, TypeError) as error:
            raise SampleError("instances", f"sample {sample.key!r} of source {sample.source!r}: {error!r}") from error


def read_record(text: str) -> dict[str, Any]:
    """Return what the column says of one picture. Raises ValueError for sizes that no picture has."""
    record = json.loads(text)
    if not isinstance(record, dict):
        raise ValueError(f"expected a mapping, got {type(record).__name__}")
    width, height = record.get("width"), record.get("height")
    if type(width) is not int or type(height) is not int or min(width, height) < 1 or width * height > MAX_PIXELS:
        raise ValueError(
            f"width and height must be whole numbers, of {MAX_PIXELS:,} pixels at most, got {shown(str(width))} and "
            f"{shown(str(height))}"
        )
    return dict(record)


def placed(record: Mapping[str, Any], window: Window, *, side: int) -> Things:
    """Return the things of a picture as its window shows them; those that it cuts off are left out."""
    own = [thing for thing in record["instances"] if not thing["crowd"]]
    if not own:
        return _things([], [], np.zeros((0, 4)), side=side)
    boxes_N4 = np.array([thing["box"] for thing in own], np.float64)
    boxes_N4[:, 2:] += boxes_N4[:, :2]
    boxes_N4 = boxes_in_view(boxes_N4, window, side=side)
    seen = np.flatnonzero((boxes_N4[:, 2:] - boxes_N4[:, :2]).min(axis=1) >= LEAST_SIDE).tolist()
    height, width = record["height"], record["width"]
    masks = [
        cut_mask(mask_of(own[row]["segmentation"], height=height, width=width), window, side=side, fill=0)
        for row in seen
    ]
    return _things(masks, [own[row]["class"] for row in seen], boxes_N4[seen], side=side)


def mask_of(segmentation: Any, *, height: int, width: int) -> NDArray[np.uint8]:
    """Return polygons, as pycocotools fills them, or run lengths as a mask [height, width]. Raises ValueError."""
    if isinstance(segmentation, list):
        from pycocotools import mask as coco_mask

        check_polygons(segmentation)
        counts = coco_mask.merge(coco_mask.frPyObjects(segmentation, height, width))["counts"].decode()
    else:
        counts = segmentation["counts"]
    lengths = counts if isinstance(counts, list) else decoded_lengths(counts)
    if sum(lengths) != height * width or min(lengths, default=0) < 0:
        raise ValueError(f"run lengths of {sum(lengths)} pixels, the picture has {width} x {height}")
    values = np.arange(len(lengths), dtype=np.uint8) & 1
    return np.repeat(values, lengths).reshape(width, height).T


def decoded_lengths(text: str) -> list[int]:
    """Return the run lengths that a text of COCO's stands for: zeros first, column by column.

    Five bits a letter, the lowest first, a sixth where more follow; from the fourth length on the difference to the
    last but one. Here and not by pycocotools, whose arrays NumPy 2 warns of. Raises ValueError.
    """
    lengths: list[int] = []
    place = 0
    while place < len(text):
        value, shift, more = 0, 0, True
        while more:
            if place >= len(text):
                raise ValueError("the text of run lengths ends in the middle of one")
            bits = ord(text[place]) - 48
            if not 0 <= bits < 64 or shift > MAX_LENGTH_BITS:
                raise ValueError(f"the text of run lengths is none: letter {place} is {shown(text[place])}")
            value |= (bits & 31) << shift
            more, shift, place = bool(bits & 32), shift + 5, place + 1
            if not more and bits & 16:
                value |= -1 << shift
        lengths.append(value + (lengths[-2] if len(lengths) > 2 else 0))
    return lengths


def check_polygons(polygons: Sequence[Any]) -> None:
    """Raise ValueError for what are no polygons, and for such as would take any amount of memory to fill."""
    most = 0.0
    for polygon in polygons:
        good = isinstance(polygon, list) and len(polygon) >= 6 and len(polygon) % 2 == 0
        if not good or not all(is_number(one) for one in polygon):
            raise ValueError(f"a polygon is x, y of three corners or more, got {shown(str(polygon))}")
        farthest = max(*polygon, -min(polygon))
        if farthest > MAX_COORDINATE:
            raise ValueError(f"a polygon has a corner at {farthest:g}, over {MAX_COORDINATE:,}")
        most += len(polygon) * farthest
    if not polygons or (most > MAX_OUTLINE and _outline(polygons) > MAX_OUTLINE):
        raise ValueError(f"polygons must be 1 or more and go along {MAX_OUTLINE:,} pixels at most, got {len(polygons)}")


def _outline(polygons: Sequence[list[float]]) -> float:
    corners = [np.array(polygon, np.float64).reshape(-1, 2) for polygon in polygons]
    return sum(float(np.abs(one_N2 - np.roll(one_N2, 1, axis=0)).max(axis=1).sum()) for one_N2 in corners)


def is_number(value: Any) -> bool:
    """True for a finite number of JSON."""
    return (type(value) is int and abs(value) < 1 << 53) or (type(value) is float and math.isfinite(value))


def _things(
    masks: Sequence[NDArray[Any]], classes: Sequence[int], boxes_N4: NDArray[np.float64], *, side: int
) -> Things:
    stacked = np.stack(masks) if masks else np.zeros((0, side, side), np.uint8)
    return Things(
        boxes_N4=boxes_N4.astype(np.float32),
        class_N=np.array(classes, np.int64),
        bits=np.packbits(stacked.astype(np.uint8), axis=2),
        side=side,
    )
