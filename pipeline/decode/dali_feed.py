"""From items to what DALI's pipeline is fed: boxes of the stored pictures, and the windows within them.

What a reader would get wrong: DALI says nothing of a picture whose data end early, and leaves what is missing grey. So
each box reaches down over two rows of blocks more, and its last pixels are looked at: where they are that grey, the
picture is `turbo`'s to judge. A window outside its picture would stop the pipeline, and the next run the process.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from headrace.pipeline.augment.crop import Window
from headrace.pipeline.augment.views import ChooseWindow
from headrace.pipeline.decode.dali_pipeline import TAIL_PIXELS, Feed
from headrace.pipeline.decode.decoder import Item
from headrace.pipeline.decode.upright import FLIPPED, MIRRORED, TRANSPOSED, stored_window

BLOCK_ROWS = 16
"""Height of the tallest row of blocks that a plain JPEG is coded in; the least is TAIL_PIXELS."""
ROWS_BELOW = 2
"""Libjpeg reads one row of blocks below the window, to smooth colours; if data end there, the row below has none."""
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
    tails: NDArray[np.int32]
    """[N, 2]: so many of its tail's last rows and columns belong to the last block."""

    def doubts(self, numbers: Sequence[int], tails: NDArray[np.uint8]) -> list[int]:
        """Return the places in `numbers` whose tails, uint8 [N, 8, 8, 3], are what is left of missing data."""
        is_missing = (tails == MISSING).all(axis=3)
        across = np.arange(TAIL_PIXELS, 0, -1) <= self.tails[numbers, 1, None]
        down = np.arange(TAIL_PIXELS, 0, -1) <= self.tails[numbers, 0, None]
        looked_at = down[:, :, None] & across[:, None, :]
        return np.flatnonzero((is_missing | ~looked_at).all(axis=(1, 2))).tolist()


class _Placed(NamedTuple):
    """Where one item lies."""

    box: tuple[int, int, int, int]
    tail: tuple[int, int]
    last_block: tuple[int, int]
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
            windows=np.array([one.windows for one in placed], np.int32).reshape(by_view).swapaxes(0, 1),
            mirrored=np.array([one.mirrored for one in placed], np.int32).reshape(by_view).swapaxes(0, 1),
            insides=np.array([one.insides for one in placed], np.int32).reshape(by_view).swapaxes(0, 1),
        ),
        rows=np.array([item.row for item in items], np.intp),
        transposed=np.array([item.header.orientation in TRANSPOSED for item in items], np.bool_),
        tails=np.array([one.last_block for one in placed], np.int32),
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
    bottom = (-(-bottom // BLOCK_ROWS) + ROWS_BELOW) * BLOCK_ROWS
    last_block = (TAIL_PIXELS, TAIL_PIXELS)
    if bottom >= header.height:  # no row below: then the end of the last one
        bottom, right = header.height, header.width
        last_block = (_in_last_block(bottom), _in_last_block(right))
    top, left = min(top, bottom - TAIL_PIXELS), min(left, max(0, right - TAIL_PIXELS))
    right = max(right, left + TAIL_PIXELS)
    return _Placed(
        (top, left, bottom - top, right - left),
        (bottom - top - TAIL_PIXELS, right - left - TAIL_PIXELS),
        last_block,
        [(window.top - top, window.left - left, window.height, window.width) for window in stored],
        [_mirrored(window.flipped, header.orientation) for window in upright],
        [_inside(window, side, header.orientation) for window, side in zip(upright, sides, strict=True)],
    )


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
