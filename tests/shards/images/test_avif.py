"""Promises of AVIF boxes: pixels may lie anywhere that the locations name, and must be there."""

import struct
from collections.abc import Callable

import numpy as np
import pytest

from headrace.shards.images.avif import is_whole
from headrace.shards.images.decode import decode_rgb
from headrace.shards.images.header import read_header, sniff_format

Encode = Callable[..., bytes]


def _box(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", 8 + len(content)) + kind + content


def _boxes(data: bytes) -> list[tuple[bytes, bytes]]:
    found, position = [], 0
    while position < len(data):
        size = int.from_bytes(data[position : position + 4], "big")
        found.append((data[position + 4 : position + 8], data[position + 8 : position + size]))
        position += size
    return found


def _pixels_in_idat(avif: bytes) -> bytes:
    """Move the coded picture from `mdat` into the item data box of `meta`."""
    boxes = dict(_boxes(avif))
    coded = boxes[b"mdat"]
    iloc = struct.pack(">BBHBBHHHHHII", 1, 0, 0, 0x44, 0, 1, 1, 1, 0, 1, 0, len(coded))
    inside = [(kind, iloc if kind == b"iloc" else content) for kind, content in _boxes(boxes[b"meta"][4:])]
    meta = boxes[b"meta"][:4] + b"".join(_box(*one) for one in [*inside, (b"idat", coded)])
    return _box(b"ftyp", boxes[b"ftyp"]) + _box(b"meta", meta)


def test_pixels_inside_the_item_data_box_are_whole(encode_image: Encode) -> None:
    data = encode_image("avif", (33, 11))
    moved = _pixels_in_idat(data)
    assert b"mdat" not in moved
    assert is_whole(moved)
    assert (read_header(moved).width, read_header(moved).height) == (33, 11)
    np.testing.assert_array_equal(decode_rgb(moved), decode_rgb(data))


@pytest.mark.parametrize("bytes_missing", [1, 10, 100])
def test_a_cut_file_is_not_whole(encode_image: Encode, bytes_missing: int) -> None:
    data = encode_image("avif", (64, 48))
    assert is_whole(data)
    assert not is_whole(data[:-bytes_missing])
    assert not is_whole(_pixels_in_idat(data)[:-bytes_missing])


def test_a_location_beyond_the_end_is_not_whole(encode_image: Encode) -> None:
    data = encode_image("avif", (64, 48))
    place = data.index(b"mdat") - 4
    size = int.from_bytes(data[place : place + 4], "big")
    shorter = data[:place] + struct.pack(">I", size - 50) + data[place + 4 : -50]  # the box fits the file again
    assert not is_whole(shorter)


def test_a_media_box_up_to_the_end_of_the_file_and_bytes_behind_boxes_are_fine(encode_image: Encode) -> None:
    data = encode_image("avif", (64, 48))
    place = data.index(b"mdat") - 4
    assert is_whole(data[:place] + b"\0\0\0\0" + data[place + 4 :])
    assert is_whole(data + b"\0\0\0")


def test_the_brand_may_stand_late_in_a_long_list(encode_image: Encode) -> None:
    data = encode_image("avif")
    size = int.from_bytes(data[:4], "big")
    brands = b"mif1miafMA1BMA1Ahei1hei2hei3hei4avif"
    odd = _box(b"ftyp", b"mif1" + b"\0\0\0\0" + brands) + data[size:]
    assert sniff_format(odd) == "avif"
    assert sniff_format(_box(b"ftyp", b"heic" + b"\0\0\0\0" + b"mif1heic")) is None
