"""RandAugment on one picture in the host's memory: what the decode threads do.

Each operation is Pillow's to the bit, as timm calls it. Pillow itself moves pixels and makes greys; the rest are
tables, NumPy and OpenCV, which let go of the GIL.
"""

from collections.abc import Callable, Sequence
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from headrace.pipeline.augment.config import Interpolation
from headrace.pipeline.augment.rand_augment import MOVES, Operation, affine_of
from headrace.pipeline.augment.rand_tables import LEVELS, level_table

Pixels = NDArray[np.uint8]
Floats = NDArray[np.float32]

RESAMPLING = {"bilinear": Image.Resampling.BILINEAR, "bicubic": Image.Resampling.BICUBIC}
# ImageFilter.SMOOTH: the middle five times, of 13.
SMOOTH = np.array([[1, 1, 1], [1, 5, 1], [1, 1, 1]], np.float32)


def rand_picture(
    pixels_HWC: Pixels, operations: Sequence[Operation], *, interpolation: Interpolation, fill: tuple[int, int, int]
) -> None:
    """Do the operations to a uint8 [S, S, 3] in place; `fill` are the levels where a move leaves nothing."""
    image = pixels_HWC
    for operation in operations:
        is_move = operation.name in MOVES
        image = _moved(image, operation, interpolation, fill) if is_move else _changed(image, operation)
    if image is not pixels_HWC:
        pixels_HWC[:] = image


def _changed(image: Pixels, operation: Operation) -> Pixels:
    table = level_table(operation)
    if table is None:
        return CHANGES[operation.name](image, operation.value)
    looked_up: Pixels = cv2.LUT(image, table)
    return looked_up


def _moved(image: Pixels, operation: Operation, interpolation: Interpolation, fill: tuple[int, int, int]) -> Pixels:
    affine = affine_of(operation, image.shape[0])
    if affine is None:
        return image
    picture = Image.fromarray(image)
    moved = picture.transform(
        picture.size, Image.Transform.AFFINE, affine, resample=RESAMPLING[interpolation], fillcolor=fill
    )
    return np.asarray(moved)


def _by_table(image: Pixels, table: NDArray[np.integer[Any]]) -> Pixels:
    """Look up levels in one table [256], or one for each channel [256, 3]; tables are cut off to 0..255."""
    levels = np.clip(table, 0, 255).astype(np.uint8)
    looked_up: Pixels = cv2.LUT(image, levels if levels.ndim == 1 else levels[None])
    return looked_up


def _histograms(image: Pixels) -> NDArray[np.int64]:
    """Return how many pixels have each level, [256, 3]."""
    counts = [cv2.calcHist([image], [channel], None, [256], [0, 256]) for channel in range(3)]
    return np.concatenate(counts, axis=1).astype(np.int64)  # floats, but whole up to 2**24 pixels, a square of 4096


def _auto_contrast(image: Pixels, _: float) -> Pixels:
    there = _histograms(image) > 0
    low, high = there.argmax(axis=0), 255 - there[::-1].argmax(axis=0)
    scale = np.where(high > low, 255.0 / np.maximum(high - low, 1), 1.0)
    stretched = LEVELS[:, None] * scale - np.where(high > low, low * scale, 0.0)
    return _by_table(image, stretched.astype(np.int64))


def _equalize(image: Pixels, _: float) -> Pixels:
    counts = _histograms(image)
    last = np.take_along_axis(counts, 255 - (counts[::-1] > 0).argmax(axis=0)[None], axis=0)[0]
    step = (counts.sum(axis=0) - last) // 255
    before = np.cumsum(counts, axis=0) - counts
    table = np.where(step > 0, (step // 2 + before) // np.maximum(step, 1), LEVELS[:, None])
    return _by_table(image, table)


def _blended(image: Floats, other: Floats | np.float32, factor: float) -> Floats:
    """Return other + factor * (image - other), each rounded to a float: Pillow's blend, not yet cut off."""
    image -= other
    image *= np.float32(factor)
    image += other
    return image


def _whole(levels: Floats) -> Pixels:
    return np.clip(levels, 0, 255, out=levels).astype(np.uint8)


def _color(image: Pixels, factor: float) -> Pixels:
    picture = Image.fromarray(image)
    return np.asarray(Image.blend(picture.convert("L").convert("RGB"), picture, factor))


def _contrast(image: Pixels, factor: float) -> Pixels:
    grey = np.asarray(Image.fromarray(image).convert("L"))
    mean = int(int(grey.sum(dtype=np.int64)) / grey.size + 0.5)
    return _by_table(image, _whole(_blended(LEVELS.astype(np.float32), np.float32(mean), factor)))


def _sharpness(image: Pixels, factor: float) -> Pixels:
    smooth = image.astype(np.float32)
    if min(image.shape[:2]) > 2:
        # Sums of whole numbers are exact in any order. The outermost pixels have no neighbours, and stay.
        sums = cv2.filter2D(smooth, -1, SMOOTH)[1:-1, 1:-1]
        smooth[1:-1, 1:-1] = np.floor(sums / np.float32(13) + np.float32(0.5))
    return _whole(_blended(image.astype(np.float32), smooth, factor))


CHANGES: dict[str, Callable[[Pixels, float], Pixels]] = {
    "AutoContrast": _auto_contrast,
    "Equalize": _equalize,
    "Color": _color,
    "Contrast": _contrast,
    "Sharpness": _sharpness,
}
