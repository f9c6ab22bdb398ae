"""From items to what DALI's pipeline is fed: boxes of the stored pictures, and the windows within them.

DALI says nothing of a picture whose data end early. libjpeg leaves what is missing grey; nvJPEG goes on decoding zeros,
so that every block is like the one before. So each box reaches down over two rows of blocks more, and its end is looked
at: where it is grey, or on a device repeats itself, the picture is `turbo`'s to judge. A window outside its picture
would stop the pipeline, and the next run the process.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from headrace.pipeline.augment.crop import Window
from headrace.pipeline.augment.views import ChooseWindow
from headrace.pipeline.decode.dali_pipeline import PATTERN_COLUMNS, PATTERN_ROWS, TAIL_PIXELS, Fed, Feed
from headrace.pipeline.decode.decoder import Item
from headrace.pipeline.decode.upright import FLIPPED, MIRRORED, TRANSPOSED

IntArray = NDArray[np.int64]

BLOCK_PIXELS = 16
"""Side of the largest blocks that a plain JPEG is coded in; the smallest are of TAIL_PIXELS."""
ROWS_BELOW = 2
"""Libjpeg reads one row of blocks below the window, to smooth colours; if data end there, the row below has none."""
REPEATS_WITHIN = 2
"""Levels by which a block that repeats itself may differ, as colours are smoothed."""
MISSING = 128
"""libjpeg's value of all three colours where there are no data."""

IS_FLIPPED, IS_MIRRORED, IS_TRANSPOSED = (np.isin(np.arange(9), which) for which in (FLIPPED, MIRRORED, TRANSPOSED))
"""By EXIF orientation."""


@dataclass(frozen=True, slots=True)
class PreparedItems:
    """A run, ready to be fed."""

    feed: Feed
    rows: NDArray[np.intp]
    """[N] the row of each item in the batch."""
    transposed: NDArray[np.bool_]
    """[N] True: the axes of its squares are to be swapped, after the mirroring."""
    last_blocks: NDArray[np.int32]
    """[N, 3]: so many last rows and columns of the tail, and last rows of the pattern, are of the last blocks alone."""

    def doubts(self, numbers: Sequence[int], fed: Fed, *, repeats: bool) -> list[int]:
        """Return the places in `numbers` whose ends look as missing data do; with `repeats` also as those of nvJPEG."""
        rows, columns, pattern_rows = self.last_blocks[numbers].T[:, :, None]
        looked_at = (np.arange(TAIL_PIXELS, 0, -1) <= rows)[:, :, None]
        looked_at = looked_at & (np.arange(TAIL_PIXELS, 0, -1) <= columns)[:, None, :]
        is_missing = ((fed.tails == MISSING).all(axis=3) | ~looked_at).all(axis=(1, 2))
        if repeats:
            is_missing |= _repeat(fed.patterns, np.arange(PATTERN_ROWS, 0, -1) <= pattern_rows)
        return np.flatnonzero(is_missing).tolist()


class _Stored(NamedTuple):
    """Windows of the pictures as stored, int64 [N, V]."""

    top: IntArray
    left: IntArray
    height: IntArray
    width: IntArray


def prepare(items: Sequence[Item], choose: Sequence[ChooseWindow], sides: Sequence[int]) -> PreparedItems:
    """Choose the windows of every view, a square of its side, of some items.

    Raises ValueError for a window outside its picture.
    """
    sizes = [item.header.upright_size for item in items]
    upright = [
        [one(item.position, height, width) for one in choose]
        for item, (width, height) in zip(items, sizes, strict=True)
    ]
    # All pictures at once from here on: one by one it took 36 us each, and the interpreter is one for all threads.
    numbers = np.array([[window[:5] for window in views] for views in upright], np.int64)
    orientation = np.array([item.header.orientation for item in items], np.intp)
    stored = _stored(numbers, np.array(sizes, np.int64), orientation)
    whole = np.array([(item.header.height, item.header.width) for item in items], np.int64)
    _check_inside(stored, whole, items)
    boxes, last_blocks = _boxes(stored, whole)
    top, left, height, width = boxes.T
    whole_blocks = (left + width) // BLOCK_PIXELS * BLOCK_PIXELS
    return PreparedItems(
        Feed(
            [np.frombuffer(item.data, np.uint8) for item in items],
            boxes=boxes.astype(np.int32),
            tails=_pairs(height - TAIL_PIXELS, width - TAIL_PIXELS),
            patterns=_pairs(height - PATTERN_ROWS, whole_blocks - left - PATTERN_COLUMNS),
            windows=np.stack(
                [stored.top - top[:, None], stored.left - left[:, None], stored.height, stored.width], axis=2
            )
            .swapaxes(0, 1)
            .astype(np.int32),
            mirrored=_mirrored(numbers[:, :, 4] != 0, orientation),
            insides=_insides(upright, sides, orientation),
        ),
        rows=np.array([item.row for item in items], np.intp),
        transposed=IS_TRANSPOSED[orientation],
        last_blocks=last_blocks.astype(np.int32),
    )


def _stored(upright: IntArray, size: IntArray, orientation: NDArray[np.intp]) -> _Stored:
    """Return where windows [N, V, 5] of upright pictures of `size` (width, height) lie in the stored ones.

    As `upright.stored_window` does for one.
    """
    top, left, height, width = (upright[:, :, number] for number in range(4))
    top = np.where(IS_FLIPPED[orientation, None], size[:, 1, None] - top - height, top)
    left = np.where(IS_MIRRORED[orientation, None], size[:, 0, None] - left - width, left)
    swap = IS_TRANSPOSED[orientation, None]
    return _Stored(
        np.where(swap, left, top),
        np.where(swap, top, left),
        np.where(swap, width, height),
        np.where(swap, height, width),
    )


def _boxes(stored: _Stored, whole: IntArray) -> tuple[IntArray, IntArray]:
    """Return the box of each picture, [N, 4], and what of its end is of the last blocks alone: see `last_blocks`."""
    top, left = stored.top.min(axis=1), stored.left.min(axis=1)
    bottom = (stored.top + stored.height).max(axis=1)
    right = (stored.left + stored.width).max(axis=1)
    bottom = (-(-bottom // BLOCK_PIXELS) + ROWS_BELOW) * BLOCK_PIXELS
    right = np.maximum(-(-right // BLOCK_PIXELS) * BLOCK_PIXELS, PATTERN_COLUMNS)
    ends = bottom >= whole[:, 0]  # no row below: then the end of the last one is looked at
    bottom = np.minimum(bottom, whole[:, 0])
    right = np.where(ends, whole[:, 1], np.minimum(right, whole[:, 1]))
    top = np.minimum(top, bottom - PATTERN_ROWS)
    left = np.minimum(left, right // BLOCK_PIXELS * BLOCK_PIXELS - PATTERN_COLUMNS)
    # The first row and column of a block take some colour of the one before.
    last_blocks = [
        np.where(ends, np.maximum(1, (bottom - 1) % TAIL_PIXELS), TAIL_PIXELS),
        np.where(ends, np.maximum(1, (right - 1) % TAIL_PIXELS), TAIL_PIXELS),
        np.where(ends, np.maximum(1, (bottom - 1) % BLOCK_PIXELS), PATTERN_ROWS),
    ]
    return np.stack([top, left, bottom - top, right - left], axis=1), np.stack(last_blocks, axis=1)


def _check_inside(stored: _Stored, whole: IntArray, items: Sequence[Item]) -> None:
    is_inside = (stored.top >= 0) & (stored.left >= 0) & (stored.height > 0) & (stored.width > 0)
    is_inside &= stored.top + stored.height <= whole[:, 0, None]
    is_inside &= stored.left + stored.width <= whole[:, 1, None]
    if is_inside.all():
        return
    number, view = np.argwhere(~is_inside)[0]
    header, window = items[number].header, tuple(int(part[number, view]) for part in stored)
    raise ValueError(
        f"position {items[number].position}: the window {window} (top, left, height, width) is not within the picture "
        f"of {header.width} x {header.height} pixels as stored"
    )


def _insides(
    upright: Sequence[Sequence[Window]], sides: Sequence[int], orientation: NDArray[np.intp]
) -> NDArray[np.int32]:
    """Return where in its square each window comes to lie before axes are swapped, [V, N, 4]."""
    insides = np.empty((len(sides), len(upright), 4), np.int32)
    for view, side in enumerate(sides):
        if upright[0][view].fill is None:
            insides[view] = 0, 0, side, side
            continue
        insides[view] = [windows[view].inside(side) for windows in upright]
        swap = IS_TRANSPOSED[orientation]
        insides[view, swap] = insides[view, swap][:, [1, 0, 3, 2]]
    return insides


def _mirrored(flipped: NDArray[np.bool_], orientation: NDArray[np.intp]) -> NDArray[np.int32]:
    """Return whether squares are mirrored left-right and up-down before their axes are swapped, [V, N, 2].

    Upright is: axes swapped, left-right, up-down; then the augmentation's left-right.
    """
    across = IS_MIRRORED[orientation, None] != flipped
    down = np.broadcast_to(IS_FLIPPED[orientation, None], across.shape)
    swap = IS_TRANSPOSED[orientation, None]
    mirrored = [np.where(swap, down, across), np.where(swap, across, down)]
    return np.stack(mirrored, axis=2).swapaxes(0, 1).astype(np.int32)


def _pairs(first: IntArray, second: IntArray) -> NDArray[np.int32]:
    return np.stack([first, second], axis=1).astype(np.int32)


def _repeat(patterns: NDArray[np.uint8], rows: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Return which patterns [N, 16, 32, 3] are one block twice, but for a change of brightness, in the rows looked at.

    The first column of a block takes some colour of the one before.
    """
    blocks = patterns.reshape(len(patterns), PATTERN_ROWS, 2, BLOCK_PIXELS, 3)[:, :, :, 1:].astype(np.int16)
    change = blocks[:, :, 1] - blocks[:, :, 0]
    least = np.where(rows[:, :, None, None], change, 255).min(axis=(1, 2))
    most = np.where(rows[:, :, None, None], change, -255).max(axis=(1, 2))
    return np.asarray((most - least <= REPEATS_WITHIN).all(axis=1))
