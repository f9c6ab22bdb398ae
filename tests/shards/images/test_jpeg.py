"""Promises of the walk over a JPEG's markers: what decoders read is whole, what was cut is not."""

import io
import random

import numpy as np
import pytest
from PIL import Image

from headrace.shards.images.decode import decode_rgb
from headrace.shards.images.header import ImageHeader, check_complete, read_header
from headrace.shards.images.jpeg import is_one_plain_scan, is_whole

VARIANTS = {
    "baseline": {},
    "restart every 7 blocks": {"restart_marker_blocks": 7},
    "restart every row": {"restart_marker_rows": 1},
    "progressive": {"progressive": True},
    "progressive with restarts": {"progressive": True, "restart_marker_blocks": 5},
    "one sample a pixel": {"progressive": True, "subsampling": 0},
}


def _photograph(mode: str = "RGB", size: tuple[int, int] = (150, 101), **options: object) -> bytes:
    noise = np.random.default_rng(1).integers(0, 256, (14, 20, 3), np.uint8)
    image = Image.fromarray(noise).resize(size, Image.Resampling.BICUBIC).convert(mode)
    sink = io.BytesIO()
    image.save(sink, "JPEG", quality=85, **options)
    return sink.getvalue()


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK"])
def test_what_encoders_write_is_whole(variant: str, mode: str) -> None:
    options = {key: value for key, value in VARIANTS[variant].items() if mode == "RGB" or key != "subsampling"}
    assert is_whole(_photograph(mode, **options))


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_picture_that_was_cut_and_given_an_end_never_decodes_to_other_pixels(variant: str) -> None:
    data = _photograph(**VARIANTS[variant])
    whole, first = decode_rgb(data), data.index(b"\xff\xda") + 20
    draws = random.Random(variant)
    for _ in range(60):
        cut = data[: draws.randrange(first, len(data) - 2)] + b"\xff\xd9"
        try:
            pixels = decode_rgb(cut)
        except ValueError as error:
            assert "truncated" in str(error)  # noqa: PT017
        else:
            np.testing.assert_array_equal(pixels, whole)


def test_a_progressive_picture_without_its_last_scans_is_cut() -> None:
    data = _photograph(progressive=True)
    last = data.rindex(b"\xff\xda")
    cut = data[:last] + b"\xff\xd9"
    Image.open(io.BytesIO(cut)).load()  # others take it: nothing in the file says that more was meant
    assert not is_whole(cut)


def test_a_restart_marker_lost_in_the_middle_is_damage_that_decoders_bridge() -> None:
    data = _photograph(restart_marker_blocks=7)
    place = data.index(b"\xff\xd3", data.index(b"\xff\xda"))
    assert is_whole(data[:place] + data[place + 2 :])


@pytest.mark.parametrize(
    ("before", "junk"),
    [(b"\xff\xdb", b"\0\0"), (b"\xff\xc4", b"camera padding"), (b"\xff\xc0", b"\xff\0\xff\0"), (b"\xff\xda", b"\r\n")],
)
def test_bytes_between_header_segments_are_skipped_as_every_decoder_does(before: bytes, junk: bytes) -> None:
    data = _photograph()
    place = data.index(before)
    odd = data[:place] + junk + data[place:]
    header = read_header(odd)
    assert header == ImageHeader("jpeg", 150, 101, 1)
    check_complete(odd, header)
    np.testing.assert_array_equal(decode_rgb(odd), decode_rgb(data))


def test_bytes_behind_the_start_are_skipped() -> None:
    data = _photograph()
    odd = data[:2] + b"\r\n" + data[2:]
    np.testing.assert_array_equal(decode_rgb(odd), decode_rgb(data))


def test_bytes_after_the_end_are_fine() -> None:
    assert is_whole(_photograph() + b"\xff\xd8\xff trailing")


def test_bytes_between_segments_do_not_hide_that_the_data_ends_early() -> None:
    data = _photograph()
    place = data.index(b"\xff\xdb")
    cut = data[:place] + b"\0\0" + data[place:-400] + b"\xff\xd9"
    with pytest.raises(ValueError, match="truncated"):
        decode_rgb(cut)


def test_one_plain_scan_is_told_from_files_that_a_decoder_bridges() -> None:
    assert is_one_plain_scan(_photograph())
    assert is_one_plain_scan(_photograph("L"))
    assert not is_one_plain_scan(_photograph(progressive=True))
    assert not is_one_plain_scan(_photograph(restart_marker_rows=1))
    # A scan of one of three components: more must follow, and may follow without end.
    one = bytearray(_photograph())
    one[one.index(b"\xff\xda") + 4] = 1
    assert not is_one_plain_scan(bytes(one))
    for data in (b"", b"\xff\xd8", b"\xff\xd8\xff", b"\xff\xd8\xff\xd9", _photograph()[:100], b"\xff\xe1" * 9):
        assert not is_one_plain_scan(data)
