"""Shrinking by the mean over area: exact, and the same with the C extension and without."""

import importlib.util

import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from headrace.shards.images import area
from headrace.shards.images.area import shrink, shrink_by_numpy
from headrace.shards.images.decode import apply_orientation

HAS_EXTENSION = importlib.util.find_spec("headrace.shards.images._area") is not None


def by_numpy(pixels: np.ndarray, height: int, width: int) -> np.ndarray:
    out = np.empty((height, width, 4), np.uint8)
    shrink_by_numpy(pixels, pixels.shape[:2], out, (height, width))
    return out


def exact(pixels: np.ndarray, height: int, width: int) -> np.ndarray:
    """Cut each pixel into height x width units and take the mean of those of each pixel of the answer."""
    units = pixels.astype(np.int64).repeat(height, 0).repeat(width, 1)
    sums = units.reshape(height, pixels.shape[0], width, pixels.shape[1], 4).sum((1, 3))
    num_units = pixels.shape[0] * pixels.shape[1]
    return ((2 * sums + num_units) // (2 * num_units)).astype(np.uint8)


sides = st.tuples(st.integers(1, 40), st.integers(1, 40)).map(lambda two: (max(two), min(two)))


@given(rows=sides, columns=sides, seed=st.integers(0, 99), darkest=st.sampled_from([0, 254, 255]))
def test_every_value_is_the_mean_over_its_area_rounded_once(
    rows: tuple[int, int], columns: tuple[int, int], seed: int, darkest: int
) -> None:
    pixels = np.random.default_rng(seed).integers(darkest, 256, (rows[0], columns[0], 4), np.uint8)
    expected = exact(pixels, rows[1], columns[1])
    assert (by_numpy(pixels, rows[1], columns[1]) == expected).all()
    assert (shrink(pixels, rows[1], columns[1]) == expected).all()


@pytest.mark.parametrize("size", [(70_000, 3, 11, 2), (3, 70_000, 1, 16_384), (600, 800, 256, 341)])
def test_the_extension_and_numpy_give_the_same_bytes_of_any_size(size: tuple[int, ...], monkeypatch) -> None:
    height, width, out_height, out_width = size
    pixels = np.random.default_rng(0).integers(0, 256, (height, width, 4), np.uint8)
    fast = shrink(pixels, out_height, out_width)
    monkeypatch.setattr(area, "_shrinker", lambda: shrink_by_numpy)
    assert (shrink(pixels, out_height, out_width) == fast).all()
    by_opencv = cv2.resize(pixels, (out_width, out_height), interpolation=cv2.INTER_AREA)
    assert np.abs(by_opencv.astype(int) - fast).max() <= 1
    assert (by_opencv != fast).mean() < 1e-3


@pytest.mark.parametrize("orientation", range(1, 9))
def test_turning_and_shrinking_come_to_the_same_in_either_order(orientation: int) -> None:
    pixels = np.random.default_rng(orientation).integers(0, 256, (61, 83, 4), np.uint8)
    sides = (19, 27) if orientation < 5 else (27, 19)
    before = shrink(apply_orientation(pixels, orientation), *sides)
    assert (before == apply_orientation(shrink(pixels, 19, 27), orientation)).all()


def test_a_picture_does_not_grow_and_its_bytes_are_counted(monkeypatch) -> None:
    with pytest.raises(ValueError, match="cannot be shrunk"):
        shrink(np.zeros((4, 4, 4), np.uint8), 5, 4)
    monkeypatch.setattr(area, "_shrinker", lambda: shrink_by_numpy)  # it is held to the limits of the extension
    for side, wanted in ((area.MOST_STORED + 1, 2), (area.MOST_OUT + 1, area.MOST_OUT + 1)):
        with pytest.raises(ValueError, match="cannot be shrunk"):
            shrink(np.broadcast_to(np.zeros(4, np.uint8), (1, side, 4)), 1, wanted)
    if not HAS_EXTENSION:  # without a compiler; the wheel of CI has it (tests/test_package.py)
        return
    from headrace.shards.images import _area

    stored, out = bytes(64), bytearray(16)
    for size, out_size in (((4, 5), (2, 2)), ((4, 4), (2, 3)), ((4, 4), (0, 2)), ((1 << 31, 1 << 31), (2, 2))):
        with pytest.raises(ValueError, match=r"cannot be shrunk|number of bytes"):
            _area.shrink(stored, size, out, out_size)
    assert out == bytearray(16)
    for side, wanted in ((area.MOST_STORED, 2), (area.MOST_OUT, area.MOST_OUT)):  # they are the extension's own
        for more, message in ((0, "number of bytes"), (1, "cannot be shrunk")):
            with pytest.raises(ValueError, match=message):
                _area.shrink(stored, (side + more, 1), out, (min(wanted + more, side + more), 1))
