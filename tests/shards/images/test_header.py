"""Image headers: what Pillow says, for every format and orientation, and bounded answers to hostile bytes."""

import contextlib
import io
import struct
import time
from collections.abc import Callable

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from headrace.shards.images.decode import decode_rgb
from headrace.shards.images.header import ImageHeader, check_complete, read_header

FORMATS = ("jpeg", "png", "webp", "gif", "bmp", "tiff", "avif")

Encode = Callable[..., bytes]


@pytest.mark.parametrize("image_format", FORMATS)
def test_header_is_what_pillow_says(encode_image: Encode, image_format: str) -> None:
    data = encode_image(image_format, (37, 22))
    assert read_header(data) == ImageHeader(image_format, 37, 22, 1)
    check_complete(data, read_header(data))


@pytest.mark.parametrize("image_format", ["jpeg", "png", "webp", "tiff"])
@pytest.mark.parametrize("orientation", range(2, 9))
def test_orientation_is_read_from_exif(encode_image: Encode, image_format: str, orientation: int) -> None:
    header = read_header(encode_image(image_format, (37, 22), orientation=orientation))
    assert header == ImageHeader(image_format, 37, 22, orientation)
    assert header.upright_size == ((22, 37) if orientation >= 5 else (37, 22))


@pytest.mark.parametrize("options", [{"progressive": True}, {"restart_marker_blocks": 1}, {"quality": 100}])
def test_jpeg_variants(options: dict[str, object]) -> None:
    sink = io.BytesIO()
    Image.effect_noise((65, 43), 90).convert("RGB").save(sink, "JPEG", **options)
    data = sink.getvalue()
    assert read_header(data) == ImageHeader("jpeg", 65, 43, 1)
    check_complete(data, read_header(data))
    check_complete(data + b"trailing\xff\xd8\xff", read_header(data))


@pytest.mark.parametrize("lossless", [True, False])
@pytest.mark.parametrize("alpha", [True, False])
def test_webp_variants(lossless: bool, alpha: bool) -> None:
    sink = io.BytesIO()
    Image.new("RGBA" if alpha else "RGB", (301, 7), (9, 99, 200, 128)[: 4 if alpha else 3]).save(
        sink, "WEBP", lossless=lossless
    )
    assert read_header(sink.getvalue()) == ImageHeader("webp", 301, 7, 1)


@pytest.mark.parametrize("image_format", ["jpeg", "png", "webp", "gif", "bmp", "avif"])
def test_a_cut_image_is_not_complete_wherever_it_is_cut(encode_image: Encode, image_format: str) -> None:
    data = encode_image(image_format, (64, 48), seed=3)
    header = read_header(data)
    trailer = image_format == "gif"  # which is no part of the picture
    for size in range(len(data) - 1 - trailer, len(data) // 3, -7):
        with pytest.raises(ValueError, match="truncated"):
            check_complete(data[:size], header)


def test_the_end_of_an_exif_thumbnail_is_not_the_end_of_the_image(encode_image: Encode) -> None:
    data = encode_image("jpeg", (64, 48))
    thumbnail = encode_image("jpeg", (8, 8))
    segment = b"\xff\xe1" + struct.pack(">H", len(thumbnail) + 2) + thumbnail
    whole = data[:2] + segment + data[2:]
    check_complete(whole, read_header(whole))
    cut = whole[: len(segment) + (len(whole) - len(segment)) // 2]
    with pytest.raises(ValueError, match="truncated"):
        check_complete(cut, ImageHeader("jpeg", 64, 48))


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "not an image"),
        (b"<!DOCTYPE html><html>", "not an image"),
        (b"\xff\xd8\xff", "no marker"),
        (b"\xff\xd8\xff\xe0\xff\xff", "runs past the end"),
        (b"\xff\xd8" + b"\xff\xe0\0\2" * 5000 + b"\xff\xd9", "segments"),
        (b"\xff\xd8\xff\xd9", "no frame header"),
        (b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR\0\0\0\0\0\0\0\1", "0 x 1"),
        (b"\x89PNG\r\n\x1a\n\0\0\0\rJUNK", "IHDR"),
        (b"RIFF\0\0\0\0WEBPVP8 ", "key frame"),
        (b"RIFF\0\0\0\0WEBPALPH", "unknown first chunk"),
        (b"GIF89a\1", "ends after"),
        (b"BM" + b"\0" * 40, "unknown header"),
        (b"II*\0\0\0\0\0", "tiff"),
    ],
)
def test_what_is_wrong_is_said(data: bytes, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        read_header(data)


@pytest.mark.filterwarnings("ignore::UserWarning:PIL")
@settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    prefix=st.sampled_from(
        [
            b"",
            b"\xff\xd8\xff",
            b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR",
            b"RIFFxxxxWEBPVP8X",
            b"II*\0",
            b"GIF89a",
            b"BM",
            b"MM\0*",
            b"\0\0\0\x1cftypavif",
        ]
    ),
    tail=st.binary(max_size=300),
)
def test_any_bytes_give_a_header_or_a_value_error(prefix: bytes, tail: bytes) -> None:
    _header_or_value_error(prefix + tail)


@pytest.mark.filterwarnings("ignore::UserWarning:PIL")
@settings(max_examples=200, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_mutated_images_give_a_header_or_a_value_error(encode_image: Encode, data: st.DataObject) -> None:
    image_format = data.draw(st.sampled_from(FORMATS))
    mutated = bytearray(encode_image(image_format, (9, 7), orientation=6 if image_format != "bmp" else 1))
    for _ in range(data.draw(st.integers(1, 8))):
        mutated[data.draw(st.integers(0, len(mutated) - 1))] = data.draw(st.integers(0, 255))
    _header_or_value_error(bytes(mutated[: data.draw(st.integers(0, len(mutated)))]))


def _header_or_value_error(data: bytes) -> None:
    try:
        header = read_header(data)
    except ValueError:
        return
    assert header.width > 0
    assert header.height > 0
    assert 1 <= header.orientation <= 8
    with contextlib.suppress(ValueError):
        check_complete(data, header)


@pytest.mark.parametrize(("left", "top"), [(0, 0), (5, 0), (0, 9), (30, 30)])
def test_a_first_gif_frame_over_the_screen_makes_it_larger_for_header_and_decoder(left: int, top: int) -> None:
    sink = io.BytesIO()
    Image.new("P", (20, 12), 1).save(sink, "GIF")
    data = bytearray(sink.getvalue())
    frame = data.index(b",", 13 + 3 * (2 << (data[10] & 7) if data[10] & 0x80 else 0))
    data[frame + 1 : frame + 5] = struct.pack("<HH", left, top)
    header = read_header(bytes(data))
    assert (header.width, header.height) == (20 + left, 12 + top)
    assert decode_rgb(bytes(data)).shape == (12 + top, 20 + left, 3)
    check_complete(bytes(data), header)


def test_a_run_of_fill_bytes_costs_no_more_than_its_length() -> None:
    """A hundred thousand took minutes, and a body may hold two hundred times as many."""
    began = time.process_time()
    with pytest.raises(ValueError, match="no marker after byte 2"):
        read_header(b"\xff\xd8" + b"\xff" * 100_000 + b"\0")
    assert time.process_time() - began < 5


def test_fill_bytes_before_a_marker_are_passed_over(encode_image: Encode) -> None:
    data = encode_image("jpeg")
    assert read_header(data[:2] + b"\xff" * 1000 + data[2:]) == read_header(data)
