"""Promises of pixels of other depths than eight bits: as bright as they are, transparent colours on white."""

import struct
import zlib

import numpy as np
import pytest
from numpy.typing import NDArray

from headrace.shards.images.decode import decode_rgb

Samples = NDArray[np.int64]


def _chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def _png(row: Samples, depth: int, transparent: tuple[int, ...] = ()) -> bytes:
    """One row of gray [W] or RGB [W, 3] samples, four times."""
    bits = (row.reshape(-1)[:, None] >> np.arange(depth - 1, -1, -1)) & 1
    packed = b"\0" + np.packbits(bits.astype(np.uint8)).tobytes()
    colour = 0 if row.ndim == 1 else 2
    head = struct.pack(">IIBBBBB", len(row), 4, depth, colour, 0, 0, 0)
    trns = _chunk(b"tRNS", b"".join(struct.pack(">H", value) for value in transparent)) if transparent else b""
    rest = _chunk(b"IDAT", zlib.compress(packed * 4)) + _chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + _chunk(b"IHDR", head) + trns + rest


def _tiff(row: Samples, *, bits: int, photometric: int, order: str = "<") -> bytes:
    """Four rows of gray samples, uncompressed."""
    packed = (row[:, None] >> np.arange(bits - 1, -1, -1)) & 1
    line = np.packbits(packed.astype(np.uint8)).tobytes() if bits == 12 else row.astype(f"{order}u2").tobytes()
    tags = [(256, len(row)), (257, 4), (258, bits), (259, 1), (262, photometric), (273, 8), (277, 1), (278, 4)]
    tags.append((279, 4 * len(line)))
    entries = b"".join(struct.pack(f"{order}HHIHH", tag, 3, 1, value, 0) for tag, value in tags)
    start = struct.pack(f"{order}HI", 42, 8 + 4 * len(line))
    directory = struct.pack(f"{order}H", len(tags)) + entries + b"\0\0\0\0"
    return (b"II" if order == "<" else b"MM") + start + line * 4 + directory


@pytest.mark.parametrize("depth", [1, 2, 4, 8, 16])
def test_a_transparent_gray_of_any_depth_is_laid_on_white(depth: int) -> None:
    row = np.arange(64) % (1 << depth) if depth < 16 else np.linspace(0, 65535, 64).astype(np.int64)
    want = row * 255 // ((1 << depth) - 1) if depth < 16 else row >> 8
    want[row == row[1]] = 255
    pixels = decode_rgb(_png(row, depth, (int(row[1]),)))
    np.testing.assert_array_equal(pixels, np.broadcast_to(want[None, :, None], (4, 64, 3)))


@pytest.mark.parametrize("depth", [8, 16])
def test_a_transparent_colour_is_compared_with_all_its_bits(depth: int) -> None:
    ramp = np.linspace(0, (1 << depth) - 1, 64).astype(np.int64)
    row = np.stack([ramp, ramp[::-1], ramp], axis=1)
    row[5] = row[4] + np.array([0, 0, -1])  # differs in its lowest bit only
    want = row >> (depth - 8)
    want[4] = 255
    pixels = decode_rgb(_png(row, depth, tuple(row[4].tolist())))
    np.testing.assert_array_equal(pixels, np.broadcast_to(want, (4, 64, 3)))


@pytest.mark.parametrize(
    ("bits", "order", "white_is_zero"), [(16, "<", False), (16, "<", True), (16, ">", False), (12, "<", False)]
)
def test_a_gray_tiff_is_as_bright_as_its_samples_say(bits: int, order: str, white_is_zero: bool) -> None:
    row = np.linspace(0, (1 << bits) - 1, 64).astype(np.int64)
    want = row >> (bits - 8)
    pixels = decode_rgb(_tiff(row, bits=bits, photometric=0 if white_is_zero else 1, order=order))
    want = 255 - want if white_is_zero else want
    np.testing.assert_array_equal(pixels, np.broadcast_to(want[None, :, None], (4, 64, 3)))
