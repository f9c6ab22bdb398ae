"""The decoder of every machine: libjpeg-turbo and Pillow, one picture a call, in as many threads as there are cores.

Upright JPEGs take a short way: libjpeg-turbo writes four-byte pixels into a buffer of the thread, and each window is
mapped in place and resized (triangle filter widened when shrinking: torchvision's antialias=True). Both release the
GIL. Everything else, and every JPEG that libjpeg-turbo finds a fault in, is judged by `decode_rgb`.
"""

import logging
import threading
from collections.abc import Callable, Sequence

import cv2
import numpy as np
import simplejpeg
from numpy.typing import NDArray

from headrace.pipeline.augment.crop import Window
from headrace.pipeline.augment.views import ChooseWindow
from headrace.pipeline.decode.cores import own_cores
from headrace.pipeline.decode.decoder import Images, Item
from headrace.pipeline.decode.resize import RESIZERS, Resize, Span, resizer_of
from headrace.pipeline.errors import SampleError
from headrace.pipeline.mixture import Mixture
from headrace.shards.images.decode import decode_rgb
from headrace.text import one_line

Pixels = NDArray[np.uint8]
Cut = Callable[[Window], Span]
"""A window of the decoded picture, four bytes a pixel."""

KEPT_BYTES = 64 << 20
MAX_REASONS = 16

log = logging.getLogger(__name__)


class Turbo:
    """libjpeg-turbo for JPEGs, Pillow for other formats. One picture a call, a thread a core."""

    def __init__(self, mixture: Mixture) -> None:
        self.items_per_call = 1
        self.calls_at_once = mixture.decode_threads or own_cores()
        self._max_pixels = mixture.max_pixels
        self._new_resize = RESIZERS[resizer_of(mixture)]
        self._threads = threading.local()
        self._said: set[str] = set()

    def empty(self, num_items: int, sizes: Sequence[int]) -> tuple[Images, ...]:
        """Return memory for one batch."""
        return tuple(np.empty((num_items, size, size, 3), np.uint8) for size in sizes)

    def decode(
        self, items: Sequence[Item], windows_per_view: Sequence[ChooseWindow], out: Sequence[Images]
    ) -> list[SampleError | None]:
        """Decode each item once and write each of its views."""
        errors: list[SampleError | None] = []
        for item in items:
            try:
                self._decode_one(item, windows_per_view, out)
            except ValueError as error:
                errors.append(SampleError("decode", str(error)))
            else:
                errors.append(None)
        return errors

    def close(self) -> None:
        """Nothing to free: buffers are those of the threads."""

    def _decode_one(self, item: Item, windows: Sequence[ChooseWindow], out: Sequence[Images]) -> None:
        header = item.header
        if header.format == "jpeg" and header.orientation == 1:
            cut = self._jpeg(item.data, header.height, header.width)
            if cut is not None:
                self._write_views(item, (header.height, header.width), cut, windows, out)
                return
        pixels = decode_rgb(item.data, max_pixels=self._max_pixels, header=header)
        self._write_views(item, (pixels.shape[0], pixels.shape[1]), _cut_of(pixels), windows, out)

    def _jpeg(self, data: bytes, height: int, width: int) -> Cut | None:
        """Decode an upright JPEG; None if `decode_rgb` must judge it: a fault, or other colours (CMYK, YCCK)."""
        scratch = self._scratch(4 * (height + 1) * width)
        try:
            high, wide, colorspace, _ = simplejpeg.decode_jpeg_header(data)
            if colorspace in ("CMYK", "YCCK") or (high, wide) != (height, width):
                self._say_slow("other colours")
                return None
            simplejpeg.decode_jpeg(data, colorspace="RGBX", buffer=scratch)
        except ValueError as error:
            self._say_slow(str(error))
            return None

        def cut(window: Window) -> Span:
            # The bytes behind the last row exist because the buffer is one row longer.
            return Span(scratch[4 * (window.top * width + window.left) :], 4 * width, window.height, window.width)

        return cut

    def _write_views(
        self, item: Item, size: tuple[int, int], cut: Cut, windows: Sequence[ChooseWindow], out: Sequence[Images]
    ) -> None:
        resize: Resize | None = self._threads.__dict__.get("resize")
        if resize is None:
            resize = self._threads.resize = self._new_resize()
        for choose, view in zip(windows, out, strict=True):
            window = choose(item.position, *size)
            pixels = view[item.row]
            _write_square(resize(cut(window), pixels.shape[0]), window.flipped, pixels)

    def _say_slow(self, why: str) -> None:
        """Say once for each reason that a JPEG takes the slow way."""
        if why not in self._said and len(self._said) < MAX_REASONS:
            self._said.add(why)
            log.info("a JPEG is decoded the slow way, as others like it will be: %s", one_line(why))

    def _scratch(self, num_bytes: int) -> Pixels:
        """Return a buffer of at least `num_bytes`: this thread's own, unless that would be kept too large."""
        if num_bytes > KEPT_BYTES:
            return np.empty(num_bytes, np.uint8)
        scratch: Pixels | None = self._threads.__dict__.get("scratch")
        if scratch is None or len(scratch) < num_bytes:
            scratch = np.empty(num_bytes, np.uint8)
            self._threads.scratch = scratch
        return scratch


def _cut_of(pixels: Pixels) -> Cut:
    def cut(window: Window) -> Span:
        rows, columns = slice(window.top, window.top + window.height), slice(window.left, window.left + window.width)
        four = cv2.cvtColor(pixels[rows, columns], cv2.COLOR_RGB2RGBA)
        return Span(four.reshape(-1), 4 * window.width, window.height, window.width)

    return cut


def _write_square(square: Pixels, flipped: bool, out: Pixels) -> None:
    if flipped:
        square = cv2.flip(square, 1)
    cv2.cvtColor(square, cv2.COLOR_RGBA2RGB, dst=out)
