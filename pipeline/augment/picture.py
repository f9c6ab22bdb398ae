"""Colour operations on one picture in the host's memory: what the decode threads do.

The same operations as `pixels` does on a batch of tensors, by tables, NumPy and OpenCV: for one picture at a time they
take a tenth of what tensors do, start no threads of their own and let go of the GIL. Both are torchvision's within a
level in less than one value of a thousand.
"""

from collections.abc import Callable

import cv2
import numpy as np
from numpy.typing import NDArray

from headrace.pipeline.augment.colour import Colour, Step, steps_of, taps_of

Pixels = NDArray[np.uint8]

GREY = np.array([[0.2989, 0.587, 0.114]], np.float32)
LEVELS = np.arange(256, dtype=np.float32)
TO_BYTES = np.float32(256 - 1e-3)  # torchvision's way from [0, 1] to whole levels


def recolour_picture(pixels_HWC: Pixels, colour: Colour) -> None:
    """Change the colours of a uint8 [S, S, 3] in place."""
    image = pixels_HWC
    for step in steps_of(colour):
        image = OPERATIONS[step.operation](image, step)
    if image is not pixels_HWC:
        pixels_HWC[:] = image


def _whole(levels: NDArray[np.float32]) -> Pixels:
    """Cut off to whole levels, as torchvision does, in the memory of `levels`' own."""
    return np.clip(levels, 0, 255, out=levels).astype(np.uint8)


def _grey(image: Pixels) -> Pixels:
    """Return the grey values, [S, S]."""
    grey: Pixels = cv2.transform(image.astype(np.float32), GREY).astype(np.uint8)
    return grey


def _by_table(image: Pixels, table: Pixels) -> Pixels:
    looked_up: Pixels = cv2.LUT(image, table)
    return looked_up


def _brightness(image: Pixels, step: Step) -> Pixels:
    return _by_table(image, _whole(LEVELS * np.float32(step.value)))


def _contrast(image: Pixels, step: Step) -> Pixels:
    # Product and sum are rounded once, as torchvision's add with alpha does it.
    mixed = (LEVELS * np.float32(step.value)).astype(np.float64)
    mean = float(np.float32(_grey(image).mean(dtype=np.float64)))
    return _by_table(image, _whole((mixed + mean * float(np.float32(1 - step.value))).astype(np.float32)))


def _saturation(image: Pixels, step: Step) -> Pixels:
    grey = cv2.cvtColor(_grey(image), cv2.COLOR_GRAY2RGB).astype(np.float32)
    # Rounded once too, where the machine has such an instruction; else a level off in 1 % where sums are whole numbers.
    mixed: NDArray[np.float32] = cv2.scaleAdd(grey, float(np.float32(1 - step.value)), image * np.float32(step.value))
    return _whole(mixed)


def _hue(image: Pixels, step: Step) -> Pixels:
    hsv = cv2.cvtColor(image * np.float32(1 / 255), cv2.COLOR_RGB2HSV)
    hsv[..., 0] += np.float32(360 * (step.value % 1))  # OpenCV takes what is over 360 back, and nothing under 0
    turned: NDArray[np.float32] = cv2.cvtColor(hsv, cv2.COLOR_HSV2RGB)
    turned *= TO_BYTES
    return _whole(turned)


def _grayscale(image: Pixels, _: Step) -> Pixels:
    grey: Pixels = cv2.cvtColor(_grey(image), cv2.COLOR_GRAY2RGB)
    return grey


def _blur(image: Pixels, step: Step) -> Pixels:
    reach = int(taps_of(np.array(step.value), np.array(step.kernel))) // 2
    weights = np.exp(-0.5 * (np.arange(-reach, reach + 1) / step.value) ** 2)
    taps = (weights / weights.sum()).astype(np.float32)
    # Floats to floats: from bytes to bytes OpenCV takes weights of 8 bits, and is two levels off.
    blurred = cv2.sepFilter2D(image.astype(np.float32), cv2.CV_32F, taps, taps, borderType=cv2.BORDER_REFLECT_101)
    rounded: Pixels = cv2.convertScaleAbs(blurred)
    return rounded


def _solarize(image: Pixels, step: Step) -> Pixels:
    return _by_table(image, np.where(step.value <= LEVELS, 255 - LEVELS, LEVELS).astype(np.uint8))


OPERATIONS: dict[str, Callable[[Pixels, Step], Pixels]] = {
    "brightness": _brightness,
    "contrast": _contrast,
    "saturation": _saturation,
    "hue": _hue,
    "grayscale": _grayscale,
    "blur": _blur,
    "solarize": _solarize,
}
