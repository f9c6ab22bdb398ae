"""Pixels -> the bytes of an image that was changed while it was fetched: no metadata, sRGB, one thread."""

import io

import cv2
import numpy as np
import simplejpeg
from numpy.typing import NDArray
from PIL import Image

from headrace.curation.fetch.errors import FetchError
from headrace.shards.images.header import ImageHeader

MAX_WEBP_SIDE = 16_383

Pixels = NDArray[np.uint8]


def encode(pixels: Pixels, image_format: str, quality: int, sampling: str = "444") -> tuple[bytes, ImageHeader]:
    """Return an RGB image [H, W, 3] as bytes of `image_format`, and their header. Raises FetchError `resize`.

    `sampling` is that of a JPEG's chroma.
    """
    height, width = pixels.shape[:2]
    pixels, header = np.ascontiguousarray(pixels), ImageHeader(image_format, width, height)
    if image_format == "jpeg":
        return bytes(simplejpeg.encode_jpeg(pixels, quality, colorspace="RGB", colorsubsampling=sampling)), header
    return _ENCODERS[image_format](pixels, quality), header


def sampling_of(data: bytes, header: ImageHeader) -> str:
    """Return with what chroma an image is to be written again, upright, as JPEG: as much as it has."""
    if header.format != "jpeg":
        return "444"
    try:
        sampling = str(simplejpeg.decode_jpeg_header(data)[3])
    except ValueError:
        return "444"
    return _SAMPLINGS.get(sampling, ("444", "444"))[header.orientation >= 5]


def _png(pixels: Pixels, _quality: int) -> bytes:
    return _by_opencv(pixels, ".png", [])


def _webp(pixels: Pixels, quality: int) -> bytes:
    if max(pixels.shape[:2]) > MAX_WEBP_SIDE:
        raise FetchError("resize", f"webp holds sides of at most {MAX_WEBP_SIDE} pixels; the image has {pixels.shape}")
    return _by_opencv(pixels, ".webp", [cv2.IMWRITE_WEBP_QUALITY, quality])


def _by_opencv(pixels: Pixels, extension: str, parameters: list[int]) -> bytes:
    done, data = cv2.imencode(extension, cv2.cvtColor(pixels, cv2.COLOR_RGB2BGR), parameters)
    if not done:
        raise FetchError("resize", f"cannot be encoded as {extension[1:]}")
    return data.tobytes()


def _avif(pixels: Pixels, quality: int) -> bytes:
    stream = io.BytesIO()
    # One thread: the tiles, and so the bytes, must not depend on the machine.
    Image.fromarray(pixels).save(stream, "AVIF", quality=quality, max_threads=1)
    return stream.getvalue()


_SAMPLINGS = {
    "Gray": ("420", "420"),
    "420": ("420", "420"),
    "411": ("420", "420"),
    "422": ("422", "440"),
    "440": ("440", "422"),
}
"""Of a JPEG -> of what is written of it: as it is stored, and turned by a quarter."""

_ENCODERS = {"png": _png, "webp": _webp, "avif": _avif}
