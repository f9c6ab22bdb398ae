"""From items to what DALI's pipeline is fed: boxes of the stored pictures, and the windows within them.

What a reader would get wrong: DALI says nothing of a picture whose data end early. libjpeg leaves what is missing grey;
nvJPEG goes on decoding zeros, so that every block is like the one before. So each box reaches down over two rows of
blocks more, and its end is looked at: where it is grey, or on a device repeats itself, the picture is `turbo`'s to
judge. A window outside its picture would stop the pipeline, and the next run the process.
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
from headrace.pipeline.decode.upright import FLIPPED, MIRRORED, TRANSPOSED, stored_window

BLOCK_PIXELS = 16
"""Side of the largest blocks that a plain JPEG is coded in; the smallest are of TAIL_PIXELS."""
ROWS_BELOW = 2
"""Libjpeg reads one row of blocks below the window, to smooth colours; if data end there, the row below has none."""
REPEATS_WITHIN = 2
"""Levels by which a block that repeats itself may differ, as colours are smoothed."""
MISSING = 128
"""libjpeg's value of all three colours where there are no data."""


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


class _Placed(NamedTuple):
    """Where one item lies."""

    box: tuple[int, int, int, int]
    tail: tuple[int, int]
    pattern: tuple[int, int]
    last_blocks: tuple[int, int, int]
    windows: list[tuple[int, int, int, int]]
    mirrored: list[tuple[bool, bool]]
    insides: list[tuple[int, int, int, int]]


def prepare(items: Sequence[Item], choose: Sequence[ChooseWindow], sides: Sequence[int]) -> PreparedItems:
    """Choose the windows of every view, a square of its side, of some items.

    Raises ValueError for a window outside its picture.
    """
    placed = [_place(item, choose, sides) for item in items]
    by_view = (len(items), len(choose), -1)
    return PreparedItems(
        Feed(
            [np.frombuffer(item.data, np.uint8) for item in items],
            boxes=np.array([one.box for one in placed], np.int32),
            tails=np.array([one.tail for one in placed], np.int32),
            patterns=np.array([one.pattern for one in placed], np.int32),
            windows=np.array([one.windows for one in placed], np.int32).reshape(by_view).swapaxes(0, 1),
            mirrored=np.array([one.mirrored for one in placed], np.int32).reshape(by_view).swapaxes(0, 1),
            insides=np.array([one.insides for one in placed], np.int32).reshape(by_view).swapaxes(0, 1),
        ),
        rows=np.array([item.row for item in items], np.intp),
        transposed=np.array([item.header.orientation in TRANSPOSED for item in items], np.bool_),
        last_blocks=np.array([one.last_blocks for one in placed], np.int32),
    )


def _place(item: Item, choose: Sequence[ChooseWindow], sides: Sequence[int]) -> _Placed:
    header = item.header
    width, height = header.upright_size
    upright = [one(item.position, height, width) for one in choose]
    stored = [stored_window(window, (height, width), header.orientation) for window in upright]
    for window in stored:
        _check_inside(window, item)
    top, left = min(window.top for window in stored), min(window.left for window in stored)
    bottom = max(window.top + window.height for window in stored)
    right = max(window.left + window.width for window in stored)
    bottom, right = (-(-bottom // BLOCK_PIXELS) + ROWS_BELOW) * BLOCK_PIXELS, -(-right // BLOCK_PIXELS) * BLOCK_PIXELS
    last_blocks = (TAIL_PIXELS, TAIL_PIXELS, PATTERN_ROWS)
    if bottom >= header.height:  # no row below: then the end of the last one
        bottom, right = header.height, header.width
        pattern_rows = max(1, (bottom - 1) % BLOCK_PIXELS)
        last_blocks = (_in_last_block(bottom), _in_last_block(right), pattern_rows)
    right = min(max(right, PATTERN_COLUMNS), header.width)
    whole_blocks = right // BLOCK_PIXELS * BLOCK_PIXELS
    top, left = min(top, bottom - PATTERN_ROWS), min(left, whole_blocks - PATTERN_COLUMNS)
    return _Placed(
        (top, left, bottom - top, right - left),
        (bottom - top - TAIL_PIXELS, right - left - TAIL_PIXELS),
        (bottom - top - PATTERN_ROWS, whole_blocks - left - PATTERN_COLUMNS),
        last_blocks,
        [(window.top - top, window.left - left, window.height, window.width) for window in stored],
        [_mirrored(window.flipped, header.orientation) for window in upright],
        [_inside(window, side, header.orientation) for window, side in zip(upright, sides, strict=True)],
    )


def _repeat(patterns: NDArray[np.uint8], rows: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Return which patterns [N, 16, 32, 3] are one block twice, but for a change of brightness, in the rows looked at.

    The first column of a block takes some colour of the one before.
    """
    blocks = patterns.reshape(len(patterns), PATTERN_ROWS, 2, BLOCK_PIXELS, 3)[:, :, :, 1:].astype(np.int16)
    change = blocks[:, :, 1] - blocks[:, :, 0]
    least = np.where(rows[:, :, None, None], change, 255).min(axis=(1, 2))
    most = np.where(rows[:, :, None, None], change, -255).max(axis=(1, 2))
    return np.asarray((most - least <= REPEATS_WITHIN).all(axis=1))


def _in_last_block(length: int) -> int:
    """Return how many of the last pixels are of the last block alone: its first takes some colour of the one before."""
    return max(1, (length - 1) % TAIL_PIXELS)


def _check_inside(window: Window, item: Item) -> None:
    top, left, height, width = window[:4]
    stored = item.header
    if min(top, left) < 0 or min(height, width) < 1 or top + height > stored.height or left + width > stored.width:
        raise ValueError(
            f"position {item.position}: the window {tuple(window[:4])} (top, left, height, width) is not within "
            f"the picture of {stored.width} x {stored.height} pixels as stored"
        )


def _inside(window: Window, side: int, orientation: int) -> tuple[int, int, int, int]:
    """Return where in its square a window comes to lie, before axes are swapped."""
    top, left, height, width = window.inside(side)
    return (left, top, width, height) if orientation in TRANSPOSED else (top, left, height, width)


def _mirrored(flipped: bool, orientation: int) -> tuple[bool, bool]:
    """Return whether a square is mirrored left-right and up-down before its axes are swapped, if they are.

    Upright is: axes swapped, left-right, up-down; then the augmentation's left-right.
    """
    across, down = (orientation in MIRRORED) != flipped, orientation in FLIPPED
    return (down, across) if orientation in TRANSPOSED else (across, down)
