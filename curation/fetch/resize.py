"""img2dataset's resize modes, for those who cannot keep the images as they are.

An image that need not change keeps its bytes. What is resized is stored upright and without metadata, as JPEG;
img2dataset leaves the orientation out and the pixels turned.
"""

import cv2
import numpy as np
import simplejpeg
from numpy.typing import NDArray

from headrace.curation.fetch.config import FetchConfig
from headrace.curation.fetch.errors import FetchError
from headrace.shards.images.decode import decode_rgb
from headrace.shards.images.header import ImageHeader
from headrace.text import MAX_SHOWN, one_line

WHITE = 255
MAX_SIDE_PIXELS = 16_384

Pixels = NDArray[np.uint8]


def resize_image(data: bytes, header: ImageHeader, config: FetchConfig) -> tuple[bytes, ImageHeader]:
    """Return the image in its new size, or as it is where nothing changes. Raises FetchError `resize`.

    keep_ratio and center_crop bring the shorter side to `image_size`, keep_ratio_largest and border the longer one;
    center_crop then cuts a square, border fills one up with white.
    """
    mode, image_size = config.resize, config.image_size
    by_shorter = mode in ("keep_ratio", "center_crop")
    side = (min if by_shorter else max)(header.width, header.height)
    square = header.width == header.height or mode in ("keep_ratio", "keep_ratio_largest")
    if (config.resize_only_if_bigger and side <= image_size) or (side == image_size and square):
        return data, header
    try:
        pixels = decode_rgb(data, max_pixels=config.max_pixels, header=header)
    except ValueError as error:
        raise FetchError("resize", f"cannot be decoded: {one_line(str(error))[:MAX_SHOWN]}") from error
    scale = image_size / side
    height, width = pixels.shape[:2]
    target = (max(1, round(width * scale)), max(1, round(height * scale)))
    if max(target) > MAX_SIDE_PIXELS:
        raise FetchError("resize", f"{width} x {height} would become {target[0]} x {target[1]}")
    pixels = cv2.resize(pixels, target, interpolation=cv2.INTER_AREA if scale < 1 else cv2.INTER_LANCZOS4)
    if mode == "center_crop":
        pixels = _crop(pixels, image_size)
    elif mode == "border":
        pixels = _pad(pixels, image_size)
    encoded = simplejpeg.encode_jpeg(np.ascontiguousarray(pixels), quality=config.encode_quality, colorspace="RGB")
    return encoded, ImageHeader("jpeg", pixels.shape[1], pixels.shape[0])


def _crop(pixels: Pixels, size: int) -> Pixels:
    top, left = (pixels.shape[0] - size) // 2, (pixels.shape[1] - size) // 2
    return pixels[top : top + size, left : left + size]


def _pad(pixels: Pixels, size: int) -> Pixels:
    canvas = np.full((size, size, 3), WHITE, np.uint8)
    top, left = (size - pixels.shape[0]) // 2, (size - pixels.shape[1]) // 2
    canvas[top : top + pixels.shape[0], left : left + pixels.shape[1]] = pixels
    return canvas
