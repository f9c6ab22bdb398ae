"""JPEGs -> the pixels that the windows need, four bytes a pixel, in a buffer of the thread.

`decode_region` decodes only the rows and columns of the windows, bit for bit as the whole picture would be. It is a
small C extension (`native/jpeg_region.c`) on the libjpeg-turbo that Pillow's wheel carries; where there was no compiler
or is no such library, whole pictures are decoded by simplejpeg. A fault of the file outside the rows that are decoded
goes unnoticed, so the checksum and the file's end are looked at before.
"""

import importlib
import logging
import math
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from headrace.pipeline.augment.crop import Window
from headrace.pipeline.decode.resize import Inside, Span
from headrace.shards.images.header import ImageHeader

Pixels = NDArray[np.uint8]
Scratch = Callable[[int], Pixels]
"""(bytes) -> a flat buffer of at least so many."""

# The extension keeps a margin of one MCU (at most 32 columns) on both sides and begins on a whole MCU.
MARGIN_COLUMNS = 128

log = logging.getLogger(__name__)


class Box(NamedTuple):
    """A part of a stored picture, in pixels."""

    top: int
    left: int
    height: int
    width: int

    @classmethod
    def around(cls, parts: Sequence[Inside]) -> "Box":
        """Return the least box of whole pixels that holds all parts."""
        top, left = math.floor(min(part.top for part in parts)), math.floor(min(part.left for part in parts))
        bottom = math.ceil(max(part.top + part.height for part in parts))
        right = math.ceil(max(part.left + part.width for part in parts))
        return cls(top, left, bottom - top, right - left)


class Decoded(NamedTuple):
    """What was decoded of a stored picture: its rows lie one after the other, four bytes a pixel."""

    buffer: Pixels
    """Flat, and one row longer than the picture."""
    box: Box
    """Which part it is, in pixels of the picture, or of the scaled picture."""

    def span(self, part: Inside) -> Span:
        """Return one window of it."""
        top, left, height, width = Box.around([part])
        row_bytes = 4 * self.box.width
        buffer = self.buffer[(top - self.box.top) * row_bytes + 4 * (left - self.box.left) :]
        inside = Inside(part.top - top, part.left - left, part.height, part.width)
        is_all = inside == (0, 0, height, width)
        return Span(buffer, row_bytes, height, width, None if is_all else inside)


def largest_denominator(windows: Sequence[Window], sides: Sequence[int], *, margin: float) -> int:
    """Return by what a picture may be divided so that each window stays `margin` times its side, both ways."""
    least = min(min(window.height, window.width) / (margin * side) for window, side in zip(windows, sides, strict=True))
    # Of a picture of a few pixels simplejpeg would take another factor; it costs nothing whole.
    small = max(max(window[2:4]) for window in windows) < 64
    return next((denominator for denominator in (8, 4, 2) if denominator <= least and not small), 1)


def part_of(window: Window, denominator: int = 1) -> Inside:
    """Return where a window of the stored picture lies in the one scaled by 1/`denominator`."""
    return Inside(*(length / denominator for length in window[:4]))


def decode_region(data: bytes, header: ImageHeader, box: Box, scratch: Scratch, *, denominator: int = 1) -> Decoded:
    """Decode a JPEG's part, perhaps of the picture scaled by 1/`denominator`, in whose pixels `box` is then.

    What comes holds the box and some columns beside it. Raises ValueError at the first fault, and for other colours
    (CMYK, YCCK): then `decode_rgb` must judge.
    """
    library, _ = _library()
    scaled_width = -(-header.width // denominator)
    most = min(scaled_width, box.width + MARGIN_COLUMNS)
    buffer = scratch(4 * (box.height + 1) * most)
    stored = (header.height, header.width)
    left, width = library.decode(data, stored, tuple(box), denominator, buffer[: 4 * box.height * most])
    return Decoded(buffer, Box(box.top, left, box.height, width))


def decode_whole(data: bytes, header: ImageHeader, scratch: Scratch, *, denominator: int = 1) -> Decoded:
    """Decode a whole JPEG by simplejpeg. Raises ValueError as `decode_region` does."""
    import simplejpeg

    high, wide, colorspace, _ = simplejpeg.decode_jpeg_header(data)
    if colorspace in ("CMYK", "YCCK") or (high, wide) != (header.height, header.width):
        raise ValueError("other colours")
    high, wide = -(-high // denominator), -(-wide // denominator)
    buffer = scratch(4 * (high + 1) * wide)
    if denominator == 1:
        simplejpeg.decode_jpeg(data, colorspace="RGBX", buffer=buffer)
    else:  # of the factors it knows it takes the least that gives so many pixels
        pixels = simplejpeg.decode_jpeg(data, colorspace="RGBX", min_height=high, min_width=wide, buffer=buffer)
        assert pixels.shape == (high, wide, 4), (pixels.shape, high, wide)
    return Decoded(buffer, Box(0, 0, high, wide))


def region_fault() -> str:
    """Return why only whole pictures can be decoded here; empty if regions can."""
    return _library()[1]


def describe_jpeg_decoder() -> str:
    """Return which library decodes the stream's JPEGs here, for people."""
    library, fault = _library()
    if fault:
        return f"simplejpeg, whole pictures ({fault})"
    return f"libjpeg-turbo, the rows and columns that are needed ({Path(library.path).name})"


class _Opened(NamedTuple):
    decode: Callable[..., tuple[int, int]]
    path: str


@cache
def _library() -> tuple[Any, str]:
    """Return the extension with its library opened, or why there is none."""
    try:
        extension = importlib.import_module("headrace.pipeline.decode._jpeg_region")
    except ImportError:
        return None, "the C extension was not built: install headrace again where there is a C compiler"
    fault = "no libjpeg-turbo was found"
    for path in _candidates():
        try:
            extension.open(path)
        except OSError as error:
            fault = str(error)
            continue
        return _Opened(extension.decode, path), ""
    log.info("whole JPEGs are decoded: %s", fault)
    return None, fault


def _candidates() -> list[str]:
    """Return the libraries to try: the one in Pillow's wheel, which is newest, then the system's."""
    import PIL

    package = Path(PIL.__file__).parent
    carried = [*package.parent.glob("[Pp]illow.libs/libjpeg-*.so.62*"), *package.glob(".dylibs/libjpeg.62*.dylib")]
    return [*map(str, sorted(carried)), "libjpeg.so.62"]
