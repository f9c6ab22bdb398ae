"""The resizers: a window of a picture -> a rectangle, by the triangle filter or the cubic, widened when shrinking.

torchvision calls that antialias=True; the cubic is Keys' with a = -0.5. fast_image_resize (`fast`) has vector
instructions: 0.05 to 0.15 ms a window where Pillow takes 0.2 to 0.9. The two differ by one level in some pixels, so
which one ran is part of a stream's state. What a reader would get wrong: a resizer's answer lies in memory that its
next call overwrites.
"""

import logging
from collections.abc import Callable
from functools import cache
from typing import ClassVar, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from headrace.pipeline.augment.config import Interpolation
from headrace.pipeline.mixture import Mixture

Pixels = NDArray[np.uint8]

MAX_TARGETS = 16

log = logging.getLogger(__name__)


class Inside(NamedTuple):
    """A window within a span, where it does not begin and end on whole pixels: that of a scaled picture."""

    top: float
    left: float
    height: float
    width: float


class Span(NamedTuple):
    """A window of decoded pixels, mapped in place: four bytes a pixel, red, green, blue and one of no meaning."""

    buffer: Pixels
    """Flat, from the first pixel of the window on; the last row is whole too, up to `row_bytes`."""
    row_bytes: int
    height: int
    width: int
    inside: Inside | None = None
    """Which part of it is the window; None = all."""

    def mapped(self, mode: str) -> Image.Image:
        """Return it as a Pillow image of `mode`, nothing copied."""
        size = (self.width, self.height)
        return Image.frombuffer(mode, size, self.buffer[: self.height * self.row_bytes], "raw", mode, self.row_bytes, 1)


class Resize(Protocol):
    """A resizer. One of its own a thread."""

    def __call__(self, span: Span, height: int, width: int = 0, interpolation: Interpolation = "bilinear") -> Pixels:
        """Return the window as uint8 [height, width, 4], valid until the next call; width 0 = a square."""


class PillowResize:
    """Pillow: there on every machine."""

    filters: ClassVar = {"bilinear": Image.Resampling.BILINEAR, "bicubic": Image.Resampling.BICUBIC}

    def __call__(self, span: Span, height: int, width: int = 0, interpolation: Interpolation = "bilinear") -> Pixels:
        """Return the window resized."""
        size, kind = (width or height, height), self.filters[interpolation]
        image = span.mapped("RGBX")
        if span.inside is not None:
            top, left, high, wide = span.inside
            box = (left, top, min(left + wide, span.width), min(top + high, span.height))
            return np.asarray(image.resize(size, kind, box=box))
        if image.size != size:
            image = image.resize(size, kind)
        return np.asarray(image)


class FastResize:
    """fast_image_resize: vector instructions, the same bytes with SSE4.1, AVX2 or none."""

    def __init__(self) -> None:
        from cykooz_resizer import CropBox, FilterType, ResizeAlg, ResizeOptions, Resizer

        self._resizer = Resizer()
        self._options = {
            "bilinear": ResizeOptions(resize_alg=ResizeAlg.convolution(FilterType.bilinear)),
            "bicubic": ResizeOptions(resize_alg=ResizeAlg.convolution(FilterType.catmull_rom)),
        }
        self._crop_box = CropBox
        self._targets: dict[tuple[int, int], tuple[Pixels, Image.Image]] = {}

    def __call__(self, span: Span, height: int, width: int = 0, interpolation: Interpolation = "bilinear") -> Pixels:
        """Return the window resized."""
        size = (width or height, height)
        # The library refuses RGBX and multiplies the colours of RGBA by the fourth byte; in CMYK all four are equal.
        image = span.mapped("CMYK")
        if image.size == size and span.inside is None:
            return np.asarray(image)
        pixels, target = self._target(*size)
        options = self._options[interpolation]
        # Only then by a box: the filter reaches over its edge (46 dB at worst against a crop), here by under a pixel.
        if span.inside is not None:
            top, left, high, wide = span.inside
            options = options.copy()
            options.crop_box = self._crop_box(left, top, wide, high)
        self._resizer.resize_pil(image, target, options)
        return pixels

    def _target(self, width: int, height: int) -> tuple[Pixels, Image.Image]:
        """Return memory of a size as an array and as the image that is written to."""
        found = self._targets.get((width, height))
        if found is None:
            if len(self._targets) >= MAX_TARGETS:  # padded pictures have as many sizes as there are ratios
                self._targets.clear()
            pixels = np.empty((height, width, 4), np.uint8)
            image = Span(pixels.reshape(-1), 4 * width, height, width).mapped("CMYK")
            found = self._targets[width, height] = pixels, image
        return found


RESIZERS: dict[str, Callable[[], Resize]] = {"fast": FastResize, "pillow": PillowResize}


def resizer_of(mixture: Mixture) -> str:
    """Return which resizer the mixture's `resizer` means on this machine. Raises ValueError if it is not there."""
    fault = fast_fault()
    if mixture.resizer == "fast" and fault:
        raise ValueError(f"resizer: fast does not work here ({fault}); pip install cykooz-resizer, or say pillow")
    if mixture.resizer == "auto":
        return "pillow" if fault else "fast"
    return mixture.resizer


def describe_resizer() -> str:
    """Return which resizer `auto` is here, for people."""
    fault = fast_fault()
    return f"Pillow (fast_image_resize: {fault})" if fault else "fast_image_resize"


@cache
def fast_fault() -> str:
    """Return why `fast` cannot be used here; empty if it can.

    It reads the memory of Pillow's images, so it is tried once against Pillow's own answer.
    """
    pixels = np.random.default_rng(0).integers(0, 256, (24, 31, 4), np.uint8)
    span = Span(pixels.reshape(-1)[4 * 3 :], 4 * 31, 23, 17)
    try:
        ours = FastResize()(span, 16)
    except ImportError:
        return "not installed"
    except (ValueError, TypeError, RuntimeError, AttributeError) as error:
        return f"{type(error).__name__}: {error}"
    worst = int(np.abs(ours[..., :3].astype(int) - PillowResize()(span, 16)[..., :3]).max())
    if worst > 1:
        log.warning("resizer fast differs from Pillow by %d levels here, so Pillow resizes", worst)
        return f"differs from Pillow by {worst} levels"
    return ""
