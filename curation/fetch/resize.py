"""img2dataset's resize modes and blurred boxes, for those who cannot keep the images as they are.

An image that need not change keeps its bytes. What is changed is stored upright and without metadata; img2dataset
leaves the orientation out and the pixels turned. A JPEG keeps its chroma sampling.
"""

import threading
from collections.abc import Sequence

import cv2
import numpy as np

from headrace.curation.fetch.boxes import Box, cut_to, turned
from headrace.curation.fetch.config import RESIZING, FetchConfig
from headrace.curation.fetch.encode import Pixels, encode, sampling_of
from headrace.curation.fetch.errors import FetchError
from headrace.shards.images.area import shrink
from headrace.shards.images.decode import apply_orientation, decode_rgb, decode_stored
from headrace.shards.images.header import ImageHeader
from headrace.text import MAX_SHOWN, one_line

WHITE = 255
MAX_SIDE_PIXELS = 16_384
KEPT_BYTES = 16 << 20


class _Memory(threading.local):
    """What a thread decodes into, picture after picture."""

    kept: Pixels = np.empty(0, np.uint8)

    def scratch(self, num_bytes: int) -> Pixels:
        """Return at least so many bytes: the same ones again, unless that would keep too much."""
        if num_bytes > KEPT_BYTES:
            return np.empty(num_bytes, np.uint8)
        if num_bytes > len(self.kept):
            self.kept = np.empty(num_bytes, np.uint8)
        return self.kept


_MEMORY = _Memory()


def change_image(
    data: bytes, header: ImageHeader, config: FetchConfig, boxes: Sequence[Box] = (), *, resizing: int = RESIZING
) -> tuple[bytes, ImageHeader]:
    """Return the image in its new size, its boxes blurred or cut out; or as it is where nothing changes.

    keep_ratio and center_crop bring the shorter side to `image_size`, keep_ratio_largest and border the longer one;
    center_crop then cuts a square, border fills one up with white. Blurring comes between. `resizing` is how: see
    RESIZING. Raises FetchError `resize`, and `bad-boxes` for boxes that hold nothing to cut out.
    """
    if not boxes and _scale(header.width, header.height, config) is None:
        return data, header
    upright = list(boxes) if config.boxes_upright else turned(boxes, header.orientation)
    cut = upright if config.boxes == "crop" else []
    way = _resized if resizing > 1 else _resized_first
    try:
        pixels, is_scaled = way(data, header, config, cut)
    except ValueError as error:
        raise FetchError("resize", f"cannot be decoded: {one_line(str(error))[:MAX_SHOWN]}") from error
    if boxes and config.boxes == "blur":
        from headrace.curation.blur import blur_boxes

        pixels = blur_boxes(pixels, upright)
    if is_scaled and config.resize == "center_crop":
        pixels = _crop(pixels, config.image_size)
    elif is_scaled and config.resize == "border":
        pixels = _pad(pixels, config.image_size)
    sampling = sampling_of(data, header) if resizing > 1 else "444"
    return encode(pixels, config.encode_format, config.encode_quality, sampling)


def _resized(data: bytes, header: ImageHeader, config: FetchConfig, cut: Sequence[Box]) -> tuple[Pixels, bool]:
    """Return an image's pixels, upright RGB, cut to the boxes and scaled, and whether they were scaled."""
    pixels, orientation = decode_stored(data, max_pixels=config.max_pixels, header=header, scratch=_MEMORY.scratch)
    if cut:
        pixels, orientation = cut_to(apply_orientation(pixels, orientation), cut), 1
    scale = _scale(pixels.shape[1], pixels.shape[0], config)
    if scale is not None and scale < 1:
        width, height = _target(pixels, scale)
        pixels = shrink(pixels, height, width)
    # Turned when it is small: to turn and to shrink comes to the same, in either order.
    pixels = apply_orientation(np.asarray(cv2.cvtColor(pixels, cv2.COLOR_RGBA2RGB), np.uint8), orientation)
    if scale is not None and scale >= 1:
        pixels = _scaled(pixels, scale)
    return pixels, scale is not None


def _resized_first(data: bytes, header: ImageHeader, config: FetchConfig, cut: Sequence[Box]) -> tuple[Pixels, bool]:
    """Return what `_resized` does, as jobs of before RESIZING 2 go on with it."""
    pixels = decode_rgb(data, max_pixels=config.max_pixels, header=header)
    if cut:
        pixels = cut_to(pixels, cut)
    scale = _scale(pixels.shape[1], pixels.shape[0], config)
    return pixels if scale is None else _scaled(pixels, scale), scale is not None


def _scale(width: int, height: int, config: FetchConfig) -> float | None:
    """Return by what an image is scaled; None if it stays as it is."""
    mode, image_size = config.resize, config.image_size
    if mode == "none":
        return None
    side = (min if mode in ("keep_ratio", "center_crop") else max)(width, height)
    square = width == height or mode in ("keep_ratio", "keep_ratio_largest")
    if (config.resize_only_if_bigger and side <= image_size) or (side == image_size and square):
        return None
    return image_size / side


def _target(pixels: Pixels, scale: float) -> tuple[int, int]:
    """Return width and height of an image that is scaled. Raises FetchError `resize` if that is too much."""
    height, width = pixels.shape[:2]
    target = (max(1, round(width * scale)), max(1, round(height * scale)))
    if max(target) > MAX_SIDE_PIXELS:
        raise FetchError("resize", f"{width} x {height} would become {target[0]} x {target[1]}")
    return target


def _scaled(pixels: Pixels, scale: float) -> Pixels:
    interpolation = cv2.INTER_AREA if scale < 1 else cv2.INTER_LANCZOS4
    return np.asarray(cv2.resize(pixels, _target(pixels, scale), interpolation=interpolation), np.uint8)


def _crop(pixels: Pixels, size: int) -> Pixels:
    top, left = (pixels.shape[0] - size) // 2, (pixels.shape[1] - size) // 2
    return pixels[top : top + size, left : left + size]


def _pad(pixels: Pixels, size: int) -> Pixels:
    canvas = np.full((size, size, 3), WHITE, np.uint8)
    top, left = (size - pixels.shape[0]) // 2, (size - pixels.shape[1]) // 2
    canvas[top : top + pixels.shape[0], left : left + pixels.shape[1]] = pixels
    return canvas
