"""Drawn pictures whose classes, masks and boxes are known, in the forms in which others keep them.

A folder of pictures and one of masks, as ADE20K has them, and a folder of pictures with a json, as COCO has it. The
class of a thing is its colour.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from headrace.demo.encode import encode
from headrace.demo.scenes import Pixels, Thing, draw_things, generator

TRUTH_COLOURS = ("red", "green", "blue")
"""Class 0, 1 and 2 of boxes; in masks 1, 2 and 3, as 0 is the background."""


def draw_truth(
    number: int, *, seed: int, side: int, colours: Sequence[str] = TRUTH_COLOURS, least: int = 1
) -> tuple[Pixels, list[Thing]]:
    """Draw picture `number` of a set, about `side` pixels high and wide."""
    rng = generator(seed, "truth", number)
    width, height = (round(side * float(rng.uniform(0.8, 1.2))) for _ in range(2))
    return draw_things(rng, width=width, height=height, colours=colours, least=least)


def class_mask(things: Sequence[Thing], pixels: Pixels) -> NDArray[np.uint8]:
    """Return the mask of classes of a drawn picture, [height, width]: 0 = background."""
    mask = np.zeros(pixels.shape[:2], np.uint8)
    for thing in things:
        mask[thing.mask] = 1 + TRUTH_COLOURS.index(thing.colour)
    return mask


def write_masked(folder: Path, *, seed: int, count: int, side: int = 64) -> Path:
    """Write FOLDER/images/N.jpg and FOLDER/masks/N.png; return the folder."""
    for name in ("images", "masks"):
        (folder / name).mkdir(parents=True)
    for number in range(count):
        pixels, things = draw_truth(number, seed=seed, side=side)
        (folder / "images" / f"{number:04d}.jpg").write_bytes(encode(pixels))
        Image.fromarray(class_mask(things, pixels)).save(folder / "masks" / f"{number:04d}.png")
    return folder


def write_coco(folder: Path, *, seed: int, count: int, side: int = 64) -> Path:
    """Write FOLDER/images/N.jpg and FOLDER/instances.json in COCO's form; return the folder. One in ten is empty."""
    (folder / "images").mkdir(parents=True)
    images, annotations = [], list[dict[str, Any]]()
    for number in range(count):
        pixels, things = draw_truth(number, seed=seed, side=side)
        if number % 10 == 9:
            pixels, things = draw_things(
                generator(seed, "empty", number), width=side, height=side, colours=TRUTH_COLOURS, least=0, most=0
            )
        name = f"{number:04d}.jpg"
        (folder / "images" / name).write_bytes(encode(pixels))
        images.append({"id": 100 + number, "file_name": name, "width": pixels.shape[1], "height": pixels.shape[0]})
        for thing in things:
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": 100 + number,
                    "category_id": 10 * (1 + TRUTH_COLOURS.index(thing.colour)),
                    "bbox": list(thing.box),
                    "area": int(thing.mask.sum()),
                    "iscrowd": 0,
                    "segmentation": {"size": list(thing.mask.shape), "counts": run_lengths(thing.mask)},
                }
            )
    categories = [{"id": 10 * (1 + place), "name": colour} for place, colour in enumerate(TRUTH_COLOURS)]
    content = {"images": images, "annotations": annotations, "categories": categories}
    (folder / "instances.json").write_text(json.dumps(content))
    return folder


def run_lengths(mask: NDArray[np.bool_]) -> list[int]:
    """Return COCO's uncompressed run lengths of a mask: column by column, zeros first."""
    flat = mask.T.ravel()
    edges = np.flatnonzero(np.diff(flat)) + 1
    lengths = np.diff([0, *edges, flat.size]).tolist()
    return [0, *lengths] if flat[0] else lengths
