"""What a GPU would refuse, or silently read otherwise, is left to the CPU; what is odd is never plain."""

import io

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from headrace.pipeline.decode.plain import is_plain_jpeg


def jpeg(mode: str = "RGB", size: tuple[int, int] = (60, 50), **options: object) -> bytes:
    noise = np.random.default_rng(0).integers(0, 256, (size[1], size[0], 3), np.uint8)
    sink = io.BytesIO()
    Image.fromarray(noise).convert(mode).save(sink, "JPEG", **options)
    return sink.getvalue()


@pytest.mark.parametrize(
    "options", [{}, {"subsampling": 0}, {"subsampling": 1}, {"subsampling": 2}, {"optimize": True}]
)
def test_baseline_ycc_in_a_common_sampling_is_plain(options: dict[str, object]) -> None:
    assert is_plain_jpeg(jpeg(**options))


def test_grey_and_a_file_with_restarts_are_plain() -> None:
    assert is_plain_jpeg(jpeg("L"))
    assert is_plain_jpeg(jpeg(restart_marker_blocks=2))


@pytest.mark.parametrize(
    "data",
    [
        jpeg(progressive=True),
        jpeg("CMYK"),
        jpeg(keep_rgb=True),
        jpeg(subsampling=0).replace(b"\x03\x01\x11\x00", b"\x03\x01\x41\x00", 1),
        jpeg(size=(47, 60)),
        jpeg(size=(60, 47)),
        b"",
        b"\xff\xd8",
        b"\xff\xd8\xff\xd9",
        b"<html>not an image</html>",
        b"\x89PNG\r\n\x1a\n" + bytes(64),
    ],
)
def test_everything_else_is_not(data: bytes) -> None:
    assert not is_plain_jpeg(data)


def test_components_that_are_called_r_g_and_b_are_not_plain_without_a_word_on_their_colours() -> None:
    data = jpeg()
    frame = data.index(b"\xff\xc0")
    named = bytearray(data)
    for number, name in enumerate(b"RGB"):
        named[frame + 10 + 3 * number] = name
    bare = bytes(named[:2]) + bytes(named[20:])  # without its JFIF segment
    assert data[6:10] == b"JFIF"
    assert not is_plain_jpeg(bare)
    assert is_plain_jpeg(data[:2] + data[20:])


@given(st.lists(st.tuples(st.integers(0, 700), st.integers(0, 255)), max_size=8), st.integers(0, 800))
def test_no_bytes_raise(changes: list[tuple[int, int]], length: int) -> None:
    data = bytearray(jpeg())
    for place, value in changes:
        data[place] = value
    assert is_plain_jpeg(bytes(data[:length])) in (True, False)
