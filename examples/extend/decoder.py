"""Pillow, one picture at a time: slow, and short enough to read."""

from collections.abc import Sequence

import numpy as np
from PIL import Image

from headrace.pipeline.augment.views import ChooseWindow
from headrace.pipeline.decode.decoder import Images, Item
from headrace.pipeline.errors import SampleError
from headrace.pipeline.mixture import Mixture
from headrace.shards.images.decode import decode_rgb

FILTERS = {"bilinear": Image.Resampling.BILINEAR, "bicubic": Image.Resampling.BICUBIC}


class PillowDecoder:
    """Decode, cut, resize."""

    items_per_call = 4
    calls_at_once = 1

    def __init__(self, mixture: Mixture) -> None:
        self._max_pixels = mixture.max_pixels

    def empty(self, num_items: int, sizes: Sequence[int]) -> tuple[Images, ...]:
        return tuple(np.empty((num_items, size, size, 3), np.uint8) for size in sizes)

    def decode(
        self, items: Sequence[Item], windows_per_view: Sequence[ChooseWindow], out: Sequence[Images]
    ) -> list[SampleError | None]:
        return [self._decode(item, windows_per_view, out) for item in items]

    def _decode(self, item: Item, windows: Sequence[ChooseWindow], out: Sequence[Images]) -> SampleError | None:
        try:
            pixels = decode_rgb(item.data, max_pixels=self._max_pixels, header=item.header)
        except ValueError as error:
            return SampleError("decode", str(error))
        for choose, images in zip(windows, out, strict=True):
            window = choose(item.position, *pixels.shape[:2])
            cut = pixels[window.top : window.top + window.height, window.left : window.left + window.width]
            top, left, height, width = window.inside(images.shape[1])
            resized = np.asarray(Image.fromarray(cut).resize((width, height), FILTERS[window.interpolation]))
            images[item.row] = window.fill or 0
            images[item.row, top : top + height, left : left + width] = resized[:, ::-1] if window.flipped else resized
        return None

    def close(self) -> None:
        pass
