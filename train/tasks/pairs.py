"""Pictures and masks of classes: a folder of each, or tars whose samples hold both.

A folder's picture and its mask have one name but for the extension (`train/0001.jpg`, `train/0001.png`). In a tar they
are members of one sample: the image, and `mask.png`, `seg.png`, `label.png`, or a plain `png` beside another image.
"""

import hashlib
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from headrace import files, urlpath
from headrace.config import canonical_json
from headrace.shards.foreign.find import expand_files
from headrace.shards.group import split_name
from headrace.shards.images.formats import IMAGE_EXTENSIONS, names_image
from headrace.shards.images.header import read_header
from headrace.shards.tar import iterate_members
from headrace.shards.windows import Windows
from headrace.shards.write import Sample
from headrace.text import shown
from headrace.train.objectives.dense.masks import MASK_COLUMN, MaskRules, read_mask
from headrace.train.tasks.pack import key_of

MASK_FOLDERS = ("masks", "annotations", "labels")
MASK_PARTS = ("mask", "seg", "label", "segmentation", "annotation")
SHOWN = 3

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Part:
    """Bytes somewhere: a file, or a member of a tar."""

    url: str
    offset: int
    size: int
    extension: str
    stamp: int = 0
    """When a file was changed last."""

    def read(self) -> bytes:
        """Read them."""
        return files.read_range(self.url, self.offset, self.size) if self.offset else files.read_bytes(self.url)


@dataclass(frozen=True, slots=True)
class Pair:
    """A picture and its mask."""

    name: str
    image: Part
    mask: Part


@dataclass(frozen=True, kw_only=True)
class Pairs:
    """Pictures with masks, as a lot to pack."""

    where: str
    pairs: Sequence[Pair]
    rules: MaskRules
    facts: Mapping[str, Any] = field(default_factory=dict)
    schema: pa.Schema = field(default_factory=lambda: pa.schema([(MASK_COLUMN, pa.binary())]))

    def __len__(self) -> int:
        """Return the number of pairs."""
        return len(self.pairs)

    @cached_property
    def digest(self) -> str:
        """Sum over names, sizes and times of the files, and the rules."""
        seen = [
            [pair.name, *((part.offset, part.size, part.stamp, part.extension) for part in (pair.image, pair.mask))]
            for pair in self.pairs
        ]
        rules: list[object] = [self.rules.num_classes, self.rules.ignore_label, self.rules.reduce_zero_label]
        if self.rules.other_sizes != "refuse":  # which packings from before do not name
            rules.append(self.rules.other_sizes)
        return hashlib.sha256(canonical_json({"masks": seen, "rules": rules}).encode()).hexdigest()

    def sample(self, number: int) -> Sample:
        """Read a pair. Raises ValueError, naming it, for a mask that is none or does not fit its picture."""
        pair = self.pairs[number]
        image, mask = pair.image.read(), pair.mask.read()
        try:
            _check(image, mask, self.rules)
        except ValueError as error:
            raise ValueError(f"{self.where}: sample {shown(pair.name)}: {error}") from error
        return Sample(key_of(pair.name), image, pair.image.extension, {MASK_COLUMN: mask})


def find_pairs(images: str, masks: str, rules: MaskRules) -> Pairs:
    """Return the pairs of a folder of pictures and one of masks; of one folder that holds both; or of tars.

    `masks` may be empty: a folder `images` and one of MASK_FOLDERS then lie in the folder, or it names tars. What has
    no partner is left out and told. Raises ValueError if there is no pair.
    """
    if masks or (Path(images) / "images").is_dir():
        where, pairs, alone = _of_folders(images, masks)
    else:
        where, pairs, alone = _of_tars(images)
    if not pairs:
        raise ValueError(
            f"{where}: no picture has a mask; expected a folder of pictures and --train-annotations with a folder of "
            f"masks of the same names, or a folder with images/ and {' or '.join(f'{name}/' for name in MASK_FOLDERS)},"
            f" or tars whose samples hold an image and a mask.png{_told(alone)}"
        )
    if alone:
        log.warning("%s: %d pictures have no mask, or masks no picture; left out%s", where, len(alone), _told(alone))
    return Pairs(where=where, pairs=pairs, rules=rules)


def count_mask_classes(pairs: Pairs) -> int:
    """Return one more than the largest class in all masks. Raises ValueError if that is under 2."""
    largest = -1
    for pair in pairs.pairs:
        try:
            numbers = np.unique(read_mask(pair.mask.read())).astype(np.int64)
        except ValueError as error:
            raise ValueError(f"{pairs.where}: sample {shown(pair.name)}: {error}") from error
        largest = max(largest, int(numbers[numbers != pairs.rules.ignore_label].max(initial=-1)))
    classes = largest + (0 if pairs.rules.reduce_zero_label else 1)
    if classes < 2:
        raise ValueError(f"{pairs.where}: its masks hold {max(0, classes)} classes, at least 2 are needed")
    return classes


def _check(image: bytes, mask: bytes, rules: MaskRules) -> None:
    width, height = read_header(image).upright_size
    numbers_HW = rules.fitted(read_mask(mask), (height, width))
    try:
        rules.classes_of(numbers_HW)
    except ValueError as error:
        raise ValueError(f"the mask has {error}") from error


def _of_folders(images: str, masks: str) -> tuple[str, list[Pair], list[str]]:
    root = Path(images)
    if masks:
        pictures, truth, where = root, Path(masks), f"{images} with masks of {masks}"
    else:
        found = [root / name for name in MASK_FOLDERS if (root / name).is_dir()]
        pictures, truth, where = root / "images", found[0] if found else root / MASK_FOLDERS[0], images
    for folder in (pictures, truth):
        if not folder.is_dir():
            raise ValueError(f"{folder}: no such folder")
    by_name, by_mask = _listed(pictures), _listed(truth)
    shared = sorted(by_name.keys() & by_mask.keys())
    return where, [Pair(name, by_name[name], by_mask[name]) for name in shared], sorted(by_name.keys() ^ by_mask.keys())


def _listed(folder: Path) -> dict[str, Part]:
    """Return the images of a folder and its subfolders by name without extension."""
    found: dict[str, Part] = {}
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).with_suffix("").as_posix()
        if not names_image(path.name) or path.name.startswith(".") or not path.is_file():
            continue
        if name in found:
            raise ValueError(f"{folder}: {shown(name)} is there twice, with two extensions; which one is meant?")
        stat = path.stat()
        found[name] = Part(str(path), 0, stat.st_size, path.suffix[1:].lower(), stat.st_mtime_ns)
    return found


def _of_tars(url: str) -> tuple[str, list[Pair], list[str]]:
    tars = expand_files(url, ".tar")
    if not tars:
        raise ValueError(f"{url}: neither a dataset, nor a folder with images/ and masks/, nor tars")
    pairs, alone = [], []
    for tar in tars:
        members: dict[str, dict[str, Part]] = {}
        with Windows(tar) as windows:
            for member in iterate_members(windows):
                split = split_name(member.name)
                if split is not None and names_image(member.name):
                    members.setdefault(split[0], {})[split[1]] = Part(tar, member.offset, member.size, split[1])
        for key, parts in members.items():
            pair = _paired(key, parts)
            if pair is None:
                alone.append(f"{urlpath.basename(tar)}:{key}")
            else:
                pairs.append(
                    pair if len(tars) == 1 else Pair(f"{urlpath.basename(tar)[:-4]}/{key}", pair.image, pair.mask)
                )
    return url, pairs, alone


def _paired(key: str, parts: Mapping[str, Part]) -> Pair | None:
    """Return which member of a sample is its image and which its mask; None where one is missing."""
    marked = [extension for extension in parts if extension.split(".")[0] in MASK_PARTS and "." in extension]
    plain = [extension for extension in parts if "." not in extension]
    if not marked and "png" in plain and len(plain) > 1:
        marked = ["png"]
    rest = [extension for extension in plain if extension not in marked] or [e for e in parts if e not in marked]
    if len(marked) != 1 or len(rest) != 1:
        return None
    image = parts[rest[0]]
    extension = rest[0].rpartition(".")[2]
    assert extension in IMAGE_EXTENSIONS, "names_image has looked"
    return Pair(key, Part(image.url, image.offset, image.size, extension), parts[marked[0]])


def _told(alone: Sequence[str]) -> str:
    if not alone:
        return ""
    return f"; such as {', '.join(map(shown, alone[:SHOWN]))}"
