"""Every bad image has a class; the message is the same each time."""

import re
import struct

from hypothesis import given, settings
from hypothesis import strategies as st

from headrace.curation.annotate.decode import MAX_MESSAGE_CHARS, decode, error_class, failure

CLASSES = {"not-image", "bomb", "truncated", "damaged"}


def test_each_fault_has_its_class(scene, encode):
    jpeg, png = encode(scene(1)), encode(scene(1), "PNG")
    huge = png[:16] + struct.pack(">II", 60000, 60000) + png[24:]
    cases = {
        "not-image": [b"", b"<html>", b"\xff\xd8\xff"],
        "bomb": [huge],
        "truncated": [jpeg[:-200], png[:-20]],
        "damaged": [png[:60] + bytes(200) + png[260:]],
    }
    for kind, files in cases.items():
        for data in files:
            decoded = decode(data)
            assert decoded.pixels is None
            assert decoded.error is not None
            assert error_class(decoded.error) == kind, decoded.error
    assert decode(jpeg).error is None


def test_the_pixel_cap_comes_before_decoding(scene, encode):
    decoded = decode(encode(scene(1)), max_pixels=320 * 240 - 1)
    assert decoded.error == "bomb: 320 x 240 pixels, over 76799"


def test_messages_hold_no_addresses_and_one_line():
    message = failure(
        "damaged",
        OSError("cannot read <_io.BytesIO object at 0x7f12ab34cd56>\nin block 0x7f12ab34cd56\u00e9" + "x" * 500),
    )
    assert "0x" not in message
    assert "\n" not in message
    assert message.isascii()
    assert len(message) <= len("damaged: ") + MAX_MESSAGE_CHARS


@settings(deadline=None, max_examples=150)
@given(
    image_format=st.sampled_from(["JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF"]),
    position=st.floats(0, 1),
    noise=st.binary(min_size=1, max_size=40),
)
def test_damaged_files_give_the_same_answer_twice(image_format, position, noise, picture_files):
    data = bytearray(picture_files[image_format])
    start = int(position * (len(data) - 1))
    data[start : start + len(noise)] = noise
    first, second = decode(bytes(data), 1 << 20), decode(bytes(data), 1 << 20)
    assert first.error == second.error
    if first.error is not None:
        assert error_class(first.error) in CLASSES
        assert not re.search(r"0x[0-9a-f]{6}", first.error)
    else:
        assert first.pixels is not None
        assert first.pixels.ndim == 3
