"""Decode one image to upright RGB.

The pixel cap is checked from the header before anything is decoded. The result is upright (orientation applied), so
its shape may be the header's width and height swapped.
"""

import re
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from headrace.shards.images.depth import gray16_to_rgb, png_with_transparent_colour
from headrace.shards.images.header import ImageHeader, check_complete, read_header
from headrace.shards.images.jpeg import is_one_plain_scan
from headrace.shards.images.pillow import PILLOW_ERRORS, open_image, without_metadata

MAX_PIXELS = 64 * 1024 * 1024

# libjpeg's warnings where data is missing, not only odd: all that follows is gray.
_ENDS_EARLY = re.compile("premature end|found marker 0xd9 instead of rst", re.IGNORECASE)

Pixels = NDArray[np.uint8]


def decode_rgb(data: bytes, *, max_pixels: int = MAX_PIXELS, header: ImageHeader | None = None) -> Pixels:
    """Return uint8 [H, W, 3], upright, alpha on white; of an animation the first frame.

    Raises ValueError for what cannot be decoded whole, or holds more than `max_pixels`.
    """
    header = header or read_header(data)
    _check_pixels(header.width, header.height, max_pixels)
    pixels = _decode_jpeg(data, header) if header.format == "jpeg" else None
    if pixels is None:
        pixels = _decode_by_pillow(data, header, max_pixels)
    # Pillow turns a TIFF upright as it loads, and no other format.
    return pixels if header.format == "tiff" else apply_orientation(pixels, header.orientation)


def decode_stored(
    data: bytes, *, max_pixels: int, header: ImageHeader, scratch: Callable[[int], Pixels]
) -> tuple[Pixels, int]:
    """Return uint8 [H, W, 4], red, green, blue and one of no meaning, and the orientation that is still to be applied.

    The same pixels as those of `decode_rgb`. Of most JPEGs they lie in memory of `scratch(bytes)`, flat and at least so
    long: memory that is new for each picture costs up to a quarter of its decoding. Raises ValueError as `decode_rgb`.
    """
    _check_pixels(header.width, header.height, max_pixels)
    pixels = _stored_jpeg(data, header, scratch) if header.format == "jpeg" else None
    if pixels is not None:
        return pixels, header.orientation
    upright = decode_rgb(data, max_pixels=max_pixels, header=header)
    import cv2

    # In half of the time that NumPy takes.
    return np.asarray(cv2.cvtColor(upright, cv2.COLOR_RGB2RGBA), np.uint8), 1


def _stored_jpeg(data: bytes, header: ImageHeader, scratch: Callable[[int], Pixels]) -> Pixels | None:
    """Decode as `decode_rgb` decodes most JPEGs; None where it must judge."""
    import simplejpeg

    if not is_one_plain_scan(data):
        check_complete(data, header)
    try:
        height, width, colorspace, _ = simplejpeg.decode_jpeg_header(data)
        if colorspace in ("CMYK", "YCCK") or (height, width) != (header.height, header.width):
            return None
        pixels: Pixels = simplejpeg.decode_jpeg(data, colorspace="RGBX", buffer=scratch(4 * height * width))
    except ValueError:
        return None
    return pixels


def apply_orientation(pixels: Pixels, orientation: int) -> Pixels:
    """Return [H, W, C] turned upright from EXIF `orientation` 1..8."""
    if orientation in (5, 6, 7, 8):
        pixels = pixels.transpose(1, 0, 2)
    if orientation in (2, 3, 6, 7):
        pixels = pixels[:, ::-1]
    if orientation in (3, 4, 7, 8):
        pixels = pixels[::-1]
    return np.ascontiguousarray(pixels)


def _check_pixels(width: int, height: int, max_pixels: int) -> None:
    if width * height > max_pixels:
        raise ValueError(f"{width} x {height} pixels are over the cap of {max_pixels}")


def _decode_jpeg(data: bytes, header: ImageHeader) -> Pixels | None:
    """Decode by libjpeg-turbo; None if Pillow must: other colours (CMYK, YCCK), or a fault that it tolerates.

    So whatever Pillow decodes is decoded (bytes too many, odd markers), but for a picture whose data ends early:
    Pillow fills what is missing with gray, and no one would notice.
    """
    check_complete(data, header)
    try:
        return _by_turbo(data)
    except ValueError as error:
        _refuse_early_end(error)
    # Only the first of its faults was named: without the bytes between segments, is there still one?
    try:
        return _by_turbo(without_metadata(data))
    except (ValueError, IndexError) as error:
        _refuse_early_end(error)
        return None


def _by_turbo(jpeg: bytes) -> Pixels | None:
    """Decode; None for colours that Pillow must convert. Raises ValueError at the first fault."""
    import simplejpeg

    in_cmyk = simplejpeg.decode_jpeg_header(jpeg)[2] in ("CMYK", "YCCK")
    pixels: Pixels = simplejpeg.decode_jpeg(jpeg, colorspace="CMYK" if in_cmyk else "RGB")
    return None if in_cmyk else pixels


def _refuse_early_end(error: Exception) -> None:
    if _ENDS_EARLY.search(str(error)):
        raise ValueError(f"jpeg: truncated: {error}") from error


def _decode_by_pillow(data: bytes, header: ImageHeader, max_pixels: int) -> Pixels:
    try:
        with open_image(header.format, without_metadata(data) if header.format == "jpeg" else data) as image:
            # A GIF frame may be larger than the screen its header names.
            _check_pixels(*image.size, max_pixels)
            image.load()
            pixels = png_with_transparent_colour(data, image) if header.format == "png" else None
            return pixels if pixels is not None else _to_rgb(image)
    except PILLOW_ERRORS as error:
        raise ValueError(f"{header.format}: {error or type(error).__name__}") from error


def _to_rgb(image: Image.Image) -> Pixels:
    if image.mode.startswith("I;16"):
        return gray16_to_rgb(image)
    if image.mode in ("I", "F"):
        raise ValueError(f"pixels of mode {image.mode} have no agreed range")
    if image.has_transparency_data:
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, (255, 255, 255, 255))
        image = Image.alpha_composite(white, image)
    return np.array(image.convert("RGB"))
