"""The decoder of every machine: libjpeg-turbo and Pillow, one picture a call, in as many threads as there are cores.

JPEGs take a short way: libjpeg-turbo writes the part that the windows need, four bytes a pixel, into a buffer of the
thread, and each window is mapped in place and resized (triangle filter widened when shrinking: torchvision's
antialias=True). Both release the GIL. Everything else, and every JPEG that libjpeg-turbo finds a fault in, is judged
by `decode_rgb`.
"""

import logging
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Self

import cv2
import numpy as np
from numpy.typing import NDArray

from headrace.pipeline.augment.crop import Window
from headrace.pipeline.augment.views import ChooseWindow
from headrace.pipeline.decode.cores import own_cores
from headrace.pipeline.decode.decoder import Images, Item
from headrace.pipeline.decode.memory import host_memory, pinned_memory
from headrace.pipeline.decode.region import Box, decode_region, decode_whole, largest_denominator, part_of, region_fault
from headrace.pipeline.decode.resize import RESIZERS, Resize, Span, resizer_of
from headrace.pipeline.decode.upright import stored_window, turned
from headrace.pipeline.errors import SampleError
from headrace.pipeline.mixture import Mixture
from headrace.shards.images.decode import decode_rgb
from headrace.shards.images.header import check_complete
from headrace.text import one_line

Pixels = NDArray[np.uint8]

END = b"\xff\xd9"
KEPT_BYTES = 64 << 20
MAX_REASONS = 16

log = logging.getLogger(__name__)


class Turbo:
    """libjpeg-turbo for JPEGs, Pillow for other formats. One picture a call, a thread a core."""

    def __init__(self, mixture: Mixture) -> None:
        self.items_per_call = 1
        self._memory = host_memory
        self.on_augment: Callable[[float], None] = lambda _: None
        self.calls_at_once = mixture.decode_threads or own_cores()
        self._max_pixels = mixture.max_pixels
        self._margin = mixture.jpeg_scaling_margin if mixture.jpeg_scaling == "on" else 0.0
        self._by_region = mixture.jpeg_regions and not region_fault()
        self._new_resize = RESIZERS[resizer_of(mixture)]
        self._threads = threading.local()
        self._said: set[str] = set()

    @classmethod
    def for_device(cls, mixture: Mixture, device: str) -> Self:
        """Return a decoder that writes into pinned memory, unless the device is the CPU."""
        decoder = cls(mixture)
        if device != "cpu":
            decoder._memory = pinned_memory
        return decoder

    def empty(self, num_items: int, sizes: Sequence[int]) -> tuple[Images, ...]:
        """Return memory for one batch."""
        return self._memory(num_items, sizes)

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

    def _decode_one(self, item: Item, choose: Sequence[ChooseWindow], out: Sequence[Images]) -> None:
        header = item.header
        if header.format == "jpeg":
            width, height = header.upright_size
            windows = [one(item.position, height, width) for one in choose]
            spans = self._jpeg(item, windows, out)
            if spans is not None:
                self._write_views(item.row, zip(spans, windows, out, strict=True))
                return
        pixels = decode_rgb(item.data, max_pixels=self._max_pixels, header=header)
        windows = [one(item.position, *pixels.shape[:2]) for one in choose]
        self._write_views(item.row, zip(map(partial(_cut, pixels), windows), windows, out, strict=True))

    def _jpeg(self, item: Item, windows: Sequence[Window], out: Sequence[Images]) -> list[Span] | None:
        """Return a JPEG's windows; None if `decode_rgb` must judge it: a fault, or other colours (CMYK, YCCK).

        Raises ValueError if its end is missing.
        """
        header = item.header
        width, height = header.upright_size
        stored = [stored_window(window, (height, width), header.orientation) for window in windows]
        sides = [view.shape[1] for view in out]
        denominator = largest_denominator(stored, sides, margin=self._margin) if self._margin else 1
        parts = [part_of(window, denominator) for window in stored]
        if not item.data.endswith(END):
            check_complete(item.data, header)  # rows that are not decoded may be missing
        try:
            if self._by_region:
                decoded = decode_region(item.data, header, Box.around(parts), self._scratch, denominator=denominator)
            else:
                decoded = decode_whole(item.data, header, self._scratch, denominator=denominator)
        except ValueError as error:
            self._say_slow(str(error))
            return None
        return [turned(decoded.span(part), header.orientation) for part in parts]

    def _write_views(self, row: int, views: Iterable[tuple[Span, Window, Images]]) -> None:
        begun = time.perf_counter()
        resize: Resize | None = self._threads.__dict__.get("resize")
        if resize is None:
            resize = self._threads.resize = self._new_resize()
        for span, window, view in views:
            pixels = view[row]
            top, left, height, width = window.inside(len(pixels))
            if window.fill is not None:
                pixels[:] = window.fill
                pixels = pixels[top : top + height, left : left + width]
            _write_square(resize(span, height, width, window.interpolation), window.flipped, pixels)
        self.on_augment(time.perf_counter() - begun)

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


def _cut(pixels: Pixels, window: Window) -> Span:
    rows, columns = slice(window.top, window.top + window.height), slice(window.left, window.left + window.width)
    four = cv2.cvtColor(pixels[rows, columns], cv2.COLOR_RGB2RGBA)
    return Span(four.reshape(-1), 4 * window.width, window.height, window.width)


def _write_square(square: Pixels, flipped: bool, out: Pixels) -> None:
    if flipped:
        square = cv2.flip(square, 1)
    cv2.cvtColor(square, cv2.COLOR_RGBA2RGB, dst=out)
