"""What the demo trains on: clean pairs for the filtering network, a labelled set, unsafe and safe drawings.

All of it comes from other seeds than the web's. The one thing a reader would get wrong: these are files for the real
commands (`headrace import`), not arrays handed over inside the process.
"""

import dataclasses
from pathlib import Path

import numpy as np
import pyarrow as pa

from headrace.demo.encode import EXTENSIONS, encode, padded
from headrace.demo.photographs import FACE_PHOTOGRAPH, PHOTOGRAPHS, crop_face, crop_photograph
from headrace.demo.scenes import COLOURS, Pixels, caption, draw, draw_attributes, generator
from headrace.demo.web import random_size
from headrace.shards.parquet import write_parquet

SIGN_SHARE = 0.1
PHOTOGRAPH_SHARE = 0.12
PADDED_SHARE = 0.12


def write_clean_pairs(path: Path, *, seed: int, count: int) -> None:
    """Write a parquet of image bytes and true captions: drawn scenes, signs, windows of the photographs."""
    images, captions = [], []
    for number in range(count):
        rng = generator(seed, "clean", number)
        kind = rng.random()
        if kind < PHOTOGRAPH_SHARE:
            name = str(rng.choice(list(PHOTOGRAPHS)))
            captions.append(str(rng.choice(PHOTOGRAPHS[name])))
            images.append(encode(_photograph(rng, name)))
            continue
        scene = draw_attributes(rng, sign=kind < PHOTOGRAPH_SHARE + SIGN_SHARE)
        width, height = random_size(rng)
        captions.append(caption(rng, scene))
        picture = draw(scene, rng, width=width, height=height)
        images.append(encode(padded(picture, int(rng.integers(256))) if rng.random() < PADDED_SHARE else picture))
    table = pa.table({"image": pa.array(images, pa.binary()), "caption": pa.array(captions, pa.string())})
    write_parquet(str(path), table)


def write_labelled(folder: Path, *, seed: int, per_class: int) -> None:
    """Write drawn scenes into one folder a colour: a small stand-in for a labelled set such as ImageNet-1k."""
    for colour in COLOURS:
        (folder / colour).mkdir(parents=True)
        for number in range(per_class):
            rng = generator(seed, "labelled", colour, number)
            scene = dataclasses.replace(draw_attributes(rng), colour=colour)
            width, height = random_size(rng)
            data = encode(draw(scene, rng, width=width, height=height))
            (folder / colour / f"{number:04d}.{EXTENSIONS['jpeg']}").write_bytes(data)


def unsafe_drawings(*, seed: int, count: int) -> tuple[list[Pixels], list[bool]]:
    """Return pictures and whether each is of the unsafe class; many safe ones differ in the drawn symbol only."""
    pictures, unsafe = [], []
    for number in range(count):
        rng = generator(seed, "unsafe", number)
        if number % 8 == 7:
            pictures.append(_photograph(rng, str(rng.choice(list(PHOTOGRAPHS)))))
            unsafe.append(False)
            continue
        scene = draw_attributes(rng, sign=number % 4 != 1)
        unsafe.append(number % 2 == 0)
        if unsafe[-1]:
            scene = dataclasses.replace(scene, shape="trefoil")
        width, height = random_size(rng)
        pictures.append(draw(scene, rng, width=width, height=height))
    return pictures, unsafe


def _photograph(rng: np.random.Generator, name: str) -> Pixels:
    return crop_face(rng)[0] if name == FACE_PHOTOGRAPH else crop_photograph(rng, name)
