"""Promises of orientations that a PNG keeps outside its eXIf chunk, and of bounded answers to odd texts."""

import io
import struct
import time
import zlib

import pytest
from PIL import Image, ImageOps

from headrace.shards.images.decode import decode_rgb
from headrace.shards.images.header import read_header

XMP = '<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:Description {} /></x:xmpmeta>'


def _exif(orientation: int) -> bytes:
    exif = Image.Exif()
    exif[0x0112] = orientation
    return exif.tobytes().removeprefix(b"Exif\0\0")


def _raw_profile(orientation: int) -> bytes:
    held = b"Exif\0\0" + _exif(orientation)
    digits = held.hex()
    lines = "\n".join(digits[start : start + 72] for start in range(0, len(digits), 72))
    return f"\nexif\n{len(held):8}\n{lines}\n".encode()


def _with_chunk(kind: bytes, data: bytes, *others: tuple[bytes, bytes]) -> bytes:
    sink = io.BytesIO()
    Image.linear_gradient("L").resize((24, 16)).convert("RGB").save(sink, "PNG")
    png = sink.getvalue()
    chunks = b"".join(
        struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))
        for name, content in ((kind, data), *others)
    )
    return png[:33] + chunks + png[33:]


def _places(orientation: int) -> dict[str, bytes]:
    xmp = XMP.format(f'tiff:Orientation="{orientation}"').encode()
    return {
        "raw profile": _with_chunk(b"zTXt", b"Raw profile type exif\0\0" + zlib.compress(_raw_profile(orientation))),
        "raw profile, plain": _with_chunk(b"tEXt", b"Raw profile type exif\0" + _raw_profile(orientation)),
        "XMP": _with_chunk(b"iTXt", b"XML:com.adobe.xmp\0\0\0\0\0" + xmp),
        "XMP as an element": _with_chunk(
            b"iTXt", b"XML:com.adobe.xmp\0\0\0\0\0<tiff:Orientation>%d</tiff:Orientation>" % orientation
        ),
    }


@pytest.mark.parametrize("orientation", [1, 3, 6, 8])
@pytest.mark.parametrize("place", _places(1))
def test_the_picture_is_as_upright_as_pillow_makes_it(place: str, orientation: int) -> None:
    data = _places(orientation)[place]
    upright = ImageOps.exif_transpose(Image.open(io.BytesIO(data)))
    assert read_header(data).orientation == orientation
    assert decode_rgb(data).shape[:2] == (upright.height, upright.width)
    assert (decode_rgb(data) == upright.convert("RGB")).all()


def test_exif_goes_before_a_raw_profile_and_that_before_xmp() -> None:
    xmp = (b"iTXt", b"XML:com.adobe.xmp\0\0\0\0\0" + XMP.format('tiff:Orientation="8"').encode())
    profile = (b"tEXt", b"Raw profile type exif\0" + _raw_profile(3))
    assert read_header(_with_chunk(*xmp, profile)).orientation == 3
    assert read_header(_with_chunk(*xmp, profile, (b"eXIf", _exif(6)))).orientation == 6


@pytest.mark.parametrize(
    "text",
    [
        b"Raw profile type exif\0\0no zlib",
        b"Raw profile type exif\0\0" + zlib.compress(b"\nexif\n 10\nnot hexadecimal"),
        b"Raw profile type exif\0\0" + zlib.compress(b"\nexif\n"),
        b"Raw profile type exif\0\0" + zlib.compress(b"0" * (64 << 20)),
        b"Raw profile type exif",
    ],
)
def test_a_damaged_or_huge_text_is_upright(text: bytes) -> None:
    assert read_header(_with_chunk(b"zTXt", text)).orientation == 1


def test_texts_that_inflate_a_thousandfold_are_looked_at_a_few_times() -> None:
    bomb = (b"zTXt", b"XML:com.adobe.xmp\0\0" + zlib.compress(b" " * (1 << 18)))
    data = _with_chunk(*bomb, *[bomb] * 3000)
    began = time.process_time()
    assert read_header(data).orientation == 1
    assert time.process_time() - began < 2
