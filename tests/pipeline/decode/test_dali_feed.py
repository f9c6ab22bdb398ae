"""Where windows lie in boxes, and what the end of a box tells of missing data."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from headrace.pipeline.augment.crop import Window
from headrace.pipeline.decode.dali_feed import prepare
from headrace.pipeline.decode.dali_pipeline import PATTERN_COLUMNS, PATTERN_ROWS, TAIL_PIXELS, Fed
from headrace.pipeline.decode.decoder import Item
from headrace.shards.images.header import ImageHeader


def item(height: int, width: int, orientation: int = 1) -> Item:
    return Item(b"jpeg", ImageHeader("jpeg", width, height, orientation), position=3, row=0)


@given(st.data(), st.integers(48, 400), st.integers(48, 400), st.integers(1, 8))
def test_boxes_hold_windows_tails_and_patterns_and_lie_within_the_picture(
    data: st.DataObject, height: int, width: int, orientation: int
) -> None:
    upright = (width, height) if orientation >= 5 else (height, width)
    windows = []
    for _ in range(2):
        tall, wide = data.draw(st.integers(1, upright[0])), data.draw(st.integers(1, upright[1]))
        top, left = data.draw(st.integers(0, upright[0] - tall)), data.draw(st.integers(0, upright[1] - wide))
        windows.append(Window(top, left, tall, wide, False))
    choose = [lambda _position, _height, _width, window=window: window for window in windows]
    feed = prepare([item(height, width, orientation)], choose, [32, 16]).feed
    top, left, tall, wide = feed.boxes[0].tolist()
    assert 0 <= top <= top + tall <= height
    assert 0 <= left <= left + wide <= width
    inside = [*feed.windows[:, 0].tolist()]
    inside.append([*feed.tails[0].tolist(), TAIL_PIXELS, TAIL_PIXELS])
    inside.append([*feed.patterns[0].tolist(), PATTERN_ROWS, PATTERN_COLUMNS])
    for part_top, part_left, part_tall, part_wide in inside:
        assert 0 <= part_top <= part_top + part_tall <= tall
        assert 0 <= part_left <= part_left + part_wide <= wide
    assert (left + feed.patterns[0, 1]) % 16 == 0
    # Two rows of blocks are below the windows, or the end of the picture is in the box.
    bottom = max(window[0] + window[2] for window in inside[:2])
    assert tall - bottom >= 32 or (top + tall, left + wide) == (height, width)


def _fed(tail: NDArray[np.uint8] | int, pattern: NDArray[np.uint8] | int) -> Fed:
    tails = np.empty((1, TAIL_PIXELS, TAIL_PIXELS, 3), np.uint8)
    patterns = np.empty((1, PATTERN_ROWS, PATTERN_COLUMNS, 3), np.uint8)
    tails[0], patterns[0] = tail, pattern
    return Fed([], tails, patterns)


def _noise(height: int, width: int) -> NDArray[np.uint8]:
    return np.random.default_rng(0).integers(0, 200, (height, width, 3), np.uint8)


@pytest.mark.parametrize(
    ("fed", "on_cpu", "on_device"),
    [
        (_fed(_noise(8, 8), _noise(16, 32)), [], []),
        (_fed(128, 128), [0], [0]),
        (_fed(_noise(8, 8), np.tile(_noise(16, 16), (1, 2, 1))), [], [0]),
        (_fed(_noise(8, 8), np.concatenate([_noise(16, 16), _noise(16, 16) + 9], axis=1)), [], [0]),
        (_fed(127, _noise(16, 32)), [], []),
    ],
    ids=["photograph", "grey", "repeated", "repeated, brighter", "nearly grey"],
)
def test_the_end_of_a_box_tells_of_missing_data(fed: Fed, on_cpu: list[int], on_device: list[int]) -> None:
    choose = [lambda _position, _height, _width: Window(0, 0, 20, 20, False)]
    prepared = prepare([item(200, 200)], choose, [16])
    assert prepared.doubts([0], fed, repeats=False) == on_cpu
    assert prepared.doubts([0], fed, repeats=True) == on_device


def test_only_what_is_of_the_last_block_alone_is_looked_at() -> None:
    prepared = prepare([item(117, 133)], [lambda _p, height, width: Window(0, 0, height, width, False)], [16])
    assert prepared.last_blocks.tolist() == [[4, 4, 4]]
    tail, pattern = _noise(8, 8), _noise(16, 32)
    tail[-4:, -4:] = 128
    assert prepared.doubts([0], _fed(tail, pattern), repeats=True) == [0]
    pattern[-4:] = np.tile(pattern[-4:, :16], (1, 2, 1))
    assert prepared.doubts([0], _fed(_noise(8, 8), pattern), repeats=True) == [0]
    pattern[-2, -2] += 20
    assert prepared.doubts([0], _fed(_noise(8, 8), pattern), repeats=True) == []
