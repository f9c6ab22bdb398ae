"""Crops of the photographs that ship inside scikit-image, with true captions; one of them shows a face.

The files are read as files from the installed package: functions of `skimage.data` may reach for the network, these
never do.
"""

import importlib.resources
import io
from functools import cache

import numpy as np
from PIL import Image

from headrace.demo.scenes import Pixels

PHOTOGRAPHS = {
    "astronaut.png": (
        "a photograph of a smiling astronaut in an orange suit",
        "portrait of a woman astronaut, a flag behind",
    ),
    "brick.png": ("a photograph of a brick wall", "close view of old bricks and mortar"),
    "chelsea.png": ("a photograph of a tabby cat", "the face of a cat with green eyes, close up"),
    "coffee.png": ("a photograph of a cup of coffee", "an espresso in a cup with a saucer and a spoon"),
    "gravel.png": ("a photograph of gravel", "small stones seen from above"),
    "grass.png": ("a photograph of grass", "blades of grass from above, in grey"),
    "hubble_deep_field.jpg": ("a photograph of distant galaxies", "the deep field of a space telescope"),
    "ihc.png": ("stained tissue under a microscope", "a micrograph of tissue, brown and violet"),
    "moon.png": ("a photograph of the surface of the moon", "craters on the moon"),
    "motorcycle_left.png": ("a photograph of a motorcycle in a garage", "a motorbike between tools"),
    "retina.jpg": ("a photograph of a retina", "vessels of an eye, orange on black"),
    "rocket.jpg": ("a photograph of a rocket at night", "a rocket on its launch pad in bright light"),
}
FACE_PHOTOGRAPH = "astronaut.png"
# x0, y0, x1, y1 of the face in the astronaut's 512 x 512 pixels, forehead to chin.
FACE_BOX = (178, 66, 272, 166)
MAX_SIDE = 400


@cache
def load_photograph(name: str) -> Pixels:
    """Return a photograph as RGB. Raises ModuleNotFoundError without scikit-image (extra `demo`)."""
    data = (importlib.resources.files("skimage") / "data" / name).read_bytes()
    with Image.open(io.BytesIO(data)) as image:
        return np.asarray(image.convert("RGB"))


def crop_photograph(rng: np.random.Generator, name: str) -> Pixels:
    """Return a random window of a photograph, scaled to a random size."""
    pixels = load_photograph(name)
    height, width = pixels.shape[:2]
    share = rng.uniform(0.5, 0.85, 2)
    w, h = int(width * share[0]), int(height * share[1])
    if max(w, h) > 1.8 * min(w, h):
        w = h = min(w, h)
    x, y = int(rng.integers(0, width - w + 1)), int(rng.integers(0, height - h + 1))
    return _scaled(pixels[y : y + h, x : x + w], float(rng.uniform(150, 300)) / max(w, h))


def crop_face(rng: np.random.Generator) -> tuple[Pixels, tuple[float, float, float, float]]:
    """Return a window of the astronaut that holds the whole face, and the face's box as fractions of it."""
    pixels = load_photograph(FACE_PHOTOGRAPH)
    x0, y0, x1, y1 = FACE_BOX
    left, top = int(rng.integers(0, 110)), int(rng.integers(0, 30))
    right, bottom = int(rng.integers(330, 513)), int(rng.integers(250, 513))
    window = pixels[top:bottom, left:right]
    height, width = window.shape[:2]
    box = ((x0 - left) / width, (y0 - top) / height, (x1 - left) / width, (y1 - top) / height)
    return _scaled(window, float(rng.uniform(320, MAX_SIDE)) / max(width, height)), box


def _scaled(pixels: Pixels, factor: float) -> Pixels:
    height, width = pixels.shape[:2]
    size = (round(width * factor), round(height * factor))
    return np.asarray(Image.fromarray(pixels).resize(size, Image.Resampling.LANCZOS))
