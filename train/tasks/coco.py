"""COCO's json of boxes and masks, and the folder of its pictures, as a lot to pack.

Everything in the json is checked before a picture is read: what is wrong is one line that names the file and the entry.
What official files hold and nobody can learn from, boxes without an area, is left out and counted. The pictures keep
their ids, so that results can be judged by pycocotools against the same json.
"""

import hashlib
import json
import logging
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import pyarrow as pa

from headrace.config import canonical_json
from headrace.shards.images.formats import IMAGE_EXTENSIONS
from headrace.shards.images.header import read_header
from headrace.shards.write import Sample
from headrace.text import shown
from headrace.train.objectives.dense.instances import (
    INSTANCES_COLUMN,
    MAX_PIXELS,
    check_polygons,
    decoded_lengths,
    is_number,
)
from headrace.train.tasks.pack import key_of

MAX_JSON_BYTES = 4 << 30
SHOWN = 3

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class CocoImage:
    """One picture of the json."""

    id: int
    file_name: str
    width: int
    height: int
    instances: tuple[Mapping[str, Any], ...]


@dataclass(frozen=True, kw_only=True)
class CocoLot:
    """The pictures of a json, as a lot to pack."""

    where: str
    folder: Path
    images: Sequence[CocoImage]
    categories: Sequence[int]
    """The json's id of each class."""
    names: Sequence[str]
    schema: pa.Schema = field(default_factory=lambda: pa.schema([(INSTANCES_COLUMN, pa.string())]))

    def __len__(self) -> int:
        """Return the number of pictures."""
        return len(self.images)

    @property
    def facts(self) -> Mapping[str, Any]:
        """Names and ids of the classes."""
        return {"classes": list(self.names), "categories": list(self.categories)}

    @cached_property
    def digest(self) -> str:
        """Sum over the json's content and the sizes of the pictures."""
        hashed = hashlib.sha256(canonical_json(dict(self.facts)).encode())
        for image in self.images:
            size = (self.folder / image.file_name).stat().st_size
            hashed.update(canonical_json([image.file_name, size, _record(image)]).encode())
        return hashed.hexdigest()

    def sample(self, number: int) -> Sample:
        """Read a picture. Raises ValueError, naming it, if its size is not the json's."""
        image = self.images[number]
        path = self.folder / image.file_name
        data = path.read_bytes()
        try:
            header = read_header(data)
            if header.upright_size != (image.width, image.height):
                width, height = header.upright_size
                turned = ", turned by its EXIF orientation" if header.orientation != 1 else ""
                raise ValueError(
                    f"the picture has {width} x {height} pixels{turned}, the json says {image.width} x {image.height}"
                )
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from error
        extension = path.suffix[1:].lower()
        if extension not in IMAGE_EXTENSIONS:
            raise ValueError(f"{path}: its name does not end in {', '.join(IMAGE_EXTENSIONS)}")
        return Sample(key_of(image.file_name), data, extension, {INSTANCES_COLUMN: canonical_json(_record(image))})


def read_coco(json_path: str, folder: str, *, categories: Sequence[int] = ()) -> CocoLot:
    """Return the pictures of a json, in order of their ids; classes are its categories, or those given.

    Raises ValueError, naming the entry, for what is no such json, or a picture that is not in the folder.
    """
    content = _read(json_path)
    known = _by_id(content["categories"], json_path, "categories")
    ids = list(categories) or sorted(known)
    if lacking := sorted(known.keys() - set(ids)):
        raise ValueError(f"{json_path}: category {lacking[0]} is none of the classes trained on: {ids[:20]}")
    classes = {category: place for place, category in enumerate(ids)}
    images = _by_id(content["images"], json_path, "images")
    found: dict[int, list[Mapping[str, Any]]] = {number: [] for number in images}
    sizes = {number: _size(image, json_path, number) for number, image in images.items()}
    flat, seen = 0, set[int]()
    for place, entry in enumerate(content["annotations"]):
        where = f"{json_path}: annotations[{place}]"
        instance = _instance(entry, where, classes=classes, sizes=sizes, seen=seen)
        if instance is None:
            flat += 1
        else:
            found[entry["image_id"]].append(instance)
    if flat:
        log.warning("%s: %d annotations have a box without an area; left out", json_path, flat)
    listed = tuple(
        CocoImage(number, _name(image, json_path, number), *sizes[number], tuple(found[number]))
        for number, image in sorted(images.items())
    )
    if twice := [name for name, count in Counter(image.file_name for image in listed).items() if count > 1]:
        raise ValueError(f"{json_path}: {len(twice)} pictures are in two entries of images, such as {shown(twice[0])}")
    root = Path(folder)
    absent = [image.file_name for image in listed if not (root / image.file_name).is_file()]
    if not listed or absent:
        what = f"{len(absent)} of its {len(listed)} pictures are not in {folder}, such as {shown(absent[0])}"
        raise ValueError(f"{json_path}: {what if absent else 'it lists no images'}")
    names = [str(known[number].get("name", number)) if number in known else str(number) for number in ids]
    return CocoLot(where=json_path, folder=root, images=listed, categories=ids, names=names)


def _record(image: CocoImage) -> dict[str, Any]:
    return {"id": image.id, "height": image.height, "width": image.width, "instances": list(image.instances)}


def _read(path: str) -> dict[str, Any]:
    file = Path(path)
    if not file.is_file():
        raise ValueError(f"{path}: no such file")
    if file.stat().st_size > MAX_JSON_BYTES:
        raise ValueError(f"{path}: {file.stat().st_size:,} bytes, over {MAX_JSON_BYTES:,}")
    try:
        content = json.loads(file.read_bytes())
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path}: not JSON: {error}") from error
    lists = ("images", "annotations", "categories")
    lacking = [n for n in lists if not isinstance(content, dict) or not isinstance(content.get(n), list)]
    if lacking:
        raise ValueError(f"{path}: not in COCO's form: it has no list {lacking[0]!r}; expected {', '.join(lists)}")
    if not content["categories"]:
        raise ValueError(f"{path}: its list 'categories' is empty; boxes need a class")
    return dict(content)


def _by_id(entries: Sequence[Any], path: str, name: str) -> dict[int, Mapping[str, Any]]:
    found: dict[int, Mapping[str, Any]] = {}
    for place, entry in enumerate(entries):
        number = entry.get("id") if isinstance(entry, dict) else None
        if type(number) is not int:
            raise ValueError(f"{path}: {name}[{place}] has no whole number 'id', got {shown(str(number))}")
        if number in found:
            raise ValueError(f"{path}: {name}[{place}]: id {number} is there twice")
        found[number] = entry
    return found


def _size(image: Mapping[str, Any], path: str, number: int) -> tuple[int, int]:
    sides = [image.get(name) for name in ("width", "height")]
    if not all(type(side) is int and 0 < side <= 1 << 16 for side in sides):
        raise ValueError(f"{path}: image {number}: width and height must be whole numbers above 0, got {sides}")
    width, height = sides
    assert isinstance(width, int) and isinstance(height, int), "just looked"  # noqa: PT018
    if width * height > MAX_PIXELS:
        raise ValueError(f"{path}: image {number}: {width} x {height} pixels, over {MAX_PIXELS:,}")
    return width, height


def _name(image: Mapping[str, Any], path: str, number: int) -> str:
    name = image.get("file_name")
    if not isinstance(name, str) or not name or Path(name).is_absolute() or ".." in Path(name).parts:
        raise ValueError(f"{path}: image {number}: file_name must name a file in the folder, got {shown(str(name))}")
    return name


def _instance(
    entry: Any, where: str, *, classes: Mapping[int, int], sizes: Mapping[int, tuple[int, int]], seen: set[int]
) -> dict[str, Any] | None:
    """Return one thing as the index has it; None if its box has no area. Raises ValueError."""
    if not isinstance(entry, dict):
        raise ValueError(f"{where}: expected a mapping, got {type(entry).__name__}")
    where = f"{where} (id {entry.get('id')})"
    number = entry.get("id")
    if type(number) is not int or number in seen:
        raise ValueError(f"{where}: its id must be a whole number that no other has")
    seen.add(number)
    for name, known, among in (("image_id", sizes, "images"), ("category_id", classes, "categories")):
        if not is_number(entry.get(name)) or entry[name] not in known:
            raise ValueError(f"{where}: {name} {shown(str(entry.get(name)))} is in no entry of {among}")
    box = entry.get("bbox")
    if not isinstance(box, list) or len(box) != 4 or not all(is_number(side) for side in box):
        raise ValueError(f"{where}: bbox must be four finite numbers, left, top, width, height, got {shown(str(box))}")
    width, height = sizes[entry["image_id"]]
    if box[2] <= 0 or box[3] <= 0 or box[0] >= width or box[1] >= height or min(box[0] + box[2], box[1] + box[3]) <= 0:
        return None
    crowd = entry.get("iscrowd", 0)
    if crowd not in (0, 1):
        raise ValueError(f"{where}: iscrowd must be 0 or 1, got {shown(str(crowd))}")
    segmentation = entry.get("segmentation")
    _check_segmentation(segmentation, where, width=width, height=height)
    area = entry.get("area", box[2] * box[3])
    if not is_number(area) or area < 0:
        raise ValueError(f"{where}: area must be a number of pixels, got {shown(str(area))}")
    return {
        "id": number,
        "class": classes[entry["category_id"]],
        "box": [float(side) for side in box],
        "area": float(area),
        "crowd": int(crowd),
        "segmentation": segmentation,
    }


def _check_segmentation(segmentation: Any, where: str, *, width: int, height: int) -> None:
    if isinstance(segmentation, list) and segmentation:
        try:
            check_polygons(segmentation)
        except ValueError as error:
            raise ValueError(f"{where}: {error}") from error
        return
    counts = segmentation.get("counts") if isinstance(segmentation, dict) else None
    if counts is None or not isinstance(segmentation, dict):
        raise ValueError(
            f"{where}: segmentation must be a list of polygons or run lengths with size and counts, got "
            f"{shown(str(segmentation))}"
        )
    if segmentation.get("size") != [height, width]:
        raise ValueError(
            f"{where}: run lengths of the size {shown(str(segmentation.get('size')))}, its picture has height "
            f"{height} and width {width}"
        )
    if not isinstance(counts, list | str):
        raise ValueError(f"{where}: counts must be a list or a text, got {type(counts).__name__}")
    try:
        lengths = counts if isinstance(counts, list) else decoded_lengths(counts)
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from error
    if not all(type(one) is int and one >= 0 for one in lengths) or sum(lengths) != width * height:
        raise ValueError(f"{where}: run lengths do not add up to {width} x {height} pixels")
