"""One compressed image -> its window, resized, in the batch's memory.

Upright JPEGs take a short way: libjpeg-turbo writes four-byte pixels into a buffer of the thread, Pillow maps the
window in place and resizes it (triangle filter widened when shrinking: torchvision's antialias=True). Both release
the GIL. The one thing a reader would get wrong: the orientation is the index's; curation cuts it out of the image.
"""

import dataclasses
import threading
from collections.abc import Callable

import cv2
import numpy as np
import simplejpeg
from numpy.typing import NDArray
from PIL import Image

from headrace.pipeline.augment.crop import Window
from headrace.pipeline.chunks import SampleError
from headrace.shards.images.decode import decode_rgb
from headrace.shards.images.header import read_header

Pixels = NDArray[np.uint8]
ChooseWindow = Callable[[int, int], Window]

JPEG_START = b"\xff\xd8\xff"
KEPT_BYTES = 64 << 20


class Decoder:
    """Decodes images; one per stream, used by all its threads."""

    def __init__(self, *, max_pixels: int) -> None:
        self._max_pixels = max_pixels
        self._threads = threading.local()

    def decode_into(self, data: bytes, orientation: int, choose: ChooseWindow, out: Pixels) -> None:
        """Write the window that `choose(height, width)` names into `out`, uint8 [S, S, 3]. Raises SampleError."""
        try:
            if orientation == 1 and data[:3] == JPEG_START and self._jpeg_into(data, choose, out):
                return
            header = dataclasses.replace(read_header(data), orientation=orientation)
            pixels = decode_rgb(data, max_pixels=self._max_pixels, header=header)
        except ValueError as error:
            raise SampleError("decode", str(error)) from error
        window = choose(pixels.shape[0], pixels.shape[1])
        cut = pixels[window.top : window.top + window.height, window.left : window.left + window.width]
        _resize_into(Image.fromarray(cut).convert("RGBX"), window.flipped, out)

    def _jpeg_into(self, data: bytes, choose: ChooseWindow, out: Pixels) -> bool:
        """Decode an upright JPEG; False if `decode_rgb` must judge it: a fault, or other colours (CMYK, YCCK)."""
        try:
            height, width, colorspace, _ = simplejpeg.decode_jpeg_header(data)
        except ValueError:
            return False
        if colorspace in ("CMYK", "YCCK"):
            return False
        if height * width > self._max_pixels:
            raise ValueError(f"{width} x {height} pixels are over the cap of {self._max_pixels}")
        scratch = self._scratch(4 * (height + 1) * width)
        try:
            simplejpeg.decode_jpeg(data, colorspace="RGBX", buffer=scratch)
        except ValueError:
            return False
        window = choose(height, width)
        # The window of the buffer, row by row; the bytes behind the last row exist because the buffer is longer.
        first = 4 * (window.top * width + window.left)
        view = scratch[first : first + 4 * width * window.height]
        size = (window.width, window.height)
        _resize_into(Image.frombuffer("RGBX", size, view, "raw", "RGBX", 4 * width, 1), window.flipped, out)
        return True

    def _scratch(self, num_bytes: int) -> Pixels:
        """Return a buffer of at least `num_bytes`: this thread's own, unless that would be kept too large."""
        if num_bytes > KEPT_BYTES:
            return np.empty(num_bytes, np.uint8)
        scratch: Pixels | None = self._threads.__dict__.get("scratch")
        if scratch is None or len(scratch) < num_bytes:
            scratch = np.empty(num_bytes, np.uint8)
            self._threads.scratch = scratch
        return scratch


def _resize_into(image: Image.Image, flipped: bool, out: Pixels) -> None:
    side = out.shape[0]
    if image.size != (side, side):
        image = image.resize((side, side), Image.Resampling.BILINEAR)
    pixels = np.asarray(image)
    if flipped:
        pixels = cv2.flip(pixels, 1)
    cv2.cvtColor(pixels, cv2.COLOR_RGBA2RGB, dst=out)
