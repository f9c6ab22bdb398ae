"""Stripping removes what must not be published and nothing that a pixel needs."""

import contextlib
import io
import re
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageCms, PngImagePlugin

from headrace.curation.build.strip import strip_metadata
from headrace.shards.images.decode import decode_rgb
from headrace.shards.images.header import read_header

SECRET = b"SECRET-51.5007N"
PROFILE = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()


def picture(seed: int = 0, mode: str = "RGB", size: tuple[int, int] = (70, 50)) -> Image.Image:
    rng = np.random.default_rng(seed)
    small = Image.fromarray(rng.integers(0, 256, (6, 8, 3), np.uint8))
    return small.resize(size, Image.Resampling.BICUBIC).convert(mode)


def exif(orientation: int = 6) -> bytes:
    data = Image.Exif()
    data[0x0112] = orientation
    data[0x010E] = SECRET.decode()
    return data.tobytes()


def save(image: Image.Image, kind: str, **options: Any) -> bytes:
    output = io.BytesIO()
    image.save(output, kind, **options)
    return output.getvalue()


def with_segments(jpeg: bytes, *segments: tuple[int, bytes]) -> bytes:
    made = b"".join(bytes([0xFF, marker]) + (len(body) + 2).to_bytes(2, "big") + body for marker, body in segments)
    return jpeg[:2] + made + jpeg[2:]


def entropy_coded(jpeg: bytes) -> list[bytes]:
    """Every scan's data, found independently of the code under test: from each SOS to the next real marker."""
    return re.findall(rb"\xff\xda..(?:[^\xff]|\xff\x00|\xff[\xd0-\xd7])*", jpeg, re.DOTALL)


JPEGS = {
    "baseline": lambda: save(picture(), "JPEG", exif=exif(), comment=SECRET),
    "progressive": lambda: save(picture(), "JPEG", progressive=True, exif=exif(), comment=SECRET),
    "restarts": lambda: save(picture(), "JPEG", restart_marker_blocks=2, exif=exif()),
    "4:4:4": lambda: save(picture(), "JPEG", subsampling=0, exif=exif()),
    "gray": lambda: save(picture(mode="L"), "JPEG", exif=exif()),
    "cmyk": lambda: save(picture(mode="CMYK"), "JPEG", exif=exif()),
    "icc": lambda: save(picture(), "JPEG", exif=exif(), icc_profile=PROFILE),
    "xmp": lambda: with_segments(save(picture(), "JPEG"), (0xE1, b"http://ns.adobe.com/xap/1.0/\0" + SECRET)),
    "photoshop": lambda: with_segments(save(picture(), "JPEG"), (0xED, b"Photoshop 3.0\0" + SECRET)),
    "jfxx": lambda: with_segments(save(picture(), "JPEG"), (0xE0, b"JFXX\0\x10" + SECRET)),
    "many": lambda: with_segments(save(picture(), "JPEG"), *[(0xE0 + n, SECRET) for n in range(16)], (0xFE, SECRET)),
    "junk": lambda: save(picture(), "JPEG") + SECRET,
    "second picture": lambda: save(picture(), "JPEG") + save(picture(1), "JPEG", comment=SECRET),
    "mpo": lambda: save(picture(), "MPO", save_all=True, append_images=[picture(1)], exif=exif()),
}

OTHERS = {
    "png text": ("png", lambda: save(picture(), "PNG", pnginfo=_png_text(), exif=exif())),
    "png palette": ("png", lambda: save(picture(mode="P"), "PNG", pnginfo=_png_text(), transparency=3)),
    "png alpha icc": ("png", lambda: save(picture(mode="RGBA"), "PNG", icc_profile=PROFILE, exif=exif())),
    "png junk": ("png", lambda: save(picture(), "PNG") + SECRET),
    "apng": ("png", lambda: save(picture(), "PNG", save_all=True, append_images=[picture(1)], pnginfo=_png_text())),
    "webp": ("webp", lambda: save(picture(), "WEBP", exif=exif(), xmp=SECRET)),
    "webp lossless alpha icc": (
        "webp",
        lambda: save(picture(mode="RGBA"), "WEBP", lossless=True, exif=exif(), xmp=SECRET, icc_profile=PROFILE),
    ),
    "webp junk": ("webp", lambda: save(picture(), "WEBP") + SECRET),
    "gif": ("gif", lambda: save(picture(), "GIF", comment=SECRET)),
    "gif animated": (
        "gif",
        lambda: save(picture(), "GIF", comment=SECRET, save_all=True, append_images=[picture(1), picture(2)], loop=0),
    ),
    "gif transparent": ("gif", lambda: save(picture(mode="P"), "GIF", comment=SECRET, transparency=5)),
}


def _png_text() -> PngImagePlugin.PngInfo:
    info = PngImagePlugin.PngInfo()
    info.add_text("Author", SECRET.decode())
    info.add_itxt("GPS", SECRET.decode())
    info.add_text("Zipped", SECRET.decode() * 40, zip=True)
    info.add(b"prIv", SECRET)
    return info


def stored_pixels(data: bytes) -> np.ndarray:
    with Image.open(io.BytesIO(data)) as image:
        return np.asarray(image.convert("RGBA"))


@pytest.mark.parametrize("name", JPEGS)
def test_a_jpeg_keeps_its_entropy_coded_data_byte_for_byte(name: str) -> None:
    data = JPEGS[name]()
    stripped = strip_metadata(data, "jpeg")
    assert stripped is not None
    scans = entropy_coded(data)[: len(entropy_coded(stripped))]
    assert scans
    assert entropy_coded(stripped) == scans
    assert (stored_pixels(stripped) == stored_pixels(data)).all()
    assert strip_metadata(stripped, "jpeg") == stripped


@pytest.mark.parametrize("name", JPEGS)
def test_a_jpeg_loses_its_metadata(name: str) -> None:
    stripped = strip_metadata(JPEGS[name](), "jpeg")
    assert stripped is not None
    assert SECRET not in stripped
    assert b"Exif" not in stripped
    assert b"MPF" not in stripped
    assert stripped.endswith(b"\xff\xd9")
    assert stripped.count(b"\xff\xd8") == 1
    with Image.open(io.BytesIO(stripped)) as image:
        assert image.format == "JPEG"
        assert not image.getexif()


def test_the_icc_profile_and_the_colour_transform_stay() -> None:
    for kind, name in (("JPEG", "jpeg"), ("PNG", "png"), ("WEBP", "webp")):
        stripped = strip_metadata(save(picture(), kind, icc_profile=PROFILE, exif=exif()), name)
        assert stripped is not None
        with Image.open(io.BytesIO(stripped)) as image:
            assert image.info["icc_profile"] == PROFILE
    cmyk = strip_metadata(JPEGS["cmyk"](), "jpeg")
    assert cmyk is not None
    assert b"Adobe" in cmyk


def test_the_thumbnail_of_jfif_is_cut() -> None:
    plain = save(picture(), "JPEG")
    assert plain[6:11] == b"JFIF\0"
    jfif = plain[6:18] + bytes([2, 2]) + SECRET[:12]
    data = plain[:2] + b"\xff\xe0" + (len(jfif) + 2).to_bytes(2, "big") + jfif + plain[20:]
    assert strip_metadata(data, "jpeg") == plain


def test_metadata_between_the_scans_of_a_progressive_file_is_cut() -> None:
    data = save(picture(), "JPEG", progressive=True)
    second = [found.start() for found in re.finditer(rb"\xff\xda", data)][1]
    comment = b"\xff\xfe" + (len(SECRET) + 2).to_bytes(2, "big") + SECRET
    between = data.rindex(b"\xff\xc4", 0, second)
    assert strip_metadata(data[:between] + comment + data[between:], "jpeg") == strip_metadata(data, "jpeg")


@pytest.mark.parametrize("name", OTHERS)
def test_other_formats_keep_pixels_and_lose_metadata(name: str) -> None:
    image_format, make = OTHERS[name]
    data = make()
    stripped = strip_metadata(data, image_format)
    assert stripped is not None
    assert SECRET not in stripped
    assert len(stripped) < len(data)
    assert read_header(stripped).format == image_format
    assert (stored_pixels(stripped) == stored_pixels(data)).all()
    assert strip_metadata(stripped, image_format) == stripped
    with Image.open(io.BytesIO(stripped)) as image:
        assert getattr(image, "n_frames", 1) == 1
        assert not image.getexif()


def test_the_pixel_data_of_png_and_webp_is_the_same_bytes() -> None:
    png = save(picture(), "PNG", pnginfo=_png_text(), exif=exif())
    stripped = strip_metadata(png, "png")
    assert stripped is not None
    idat = re.compile(rb"IDAT.*?(?=....IEND)", re.DOTALL)
    assert idat.findall(png) == idat.findall(stripped) != []
    webp = save(picture(), "WEBP", exif=exif())
    stripped = strip_metadata(webp, "webp")
    assert stripped is not None
    at = stripped.index(b"VP8 ")
    assert stripped[at:] in webp


@pytest.mark.parametrize("kind", ["BMP", "TIFF", "AVIF"])
def test_formats_without_a_cut_say_so(kind: str) -> None:
    assert strip_metadata(save(picture(), kind), kind.lower()) is None


def test_an_animated_webp_needs_a_new_encoding() -> None:
    assert strip_metadata(save(picture(), "WEBP", save_all=True, append_images=[picture(1)]), "webp") is None


@pytest.mark.parametrize("name", [*JPEGS, *OTHERS])
def test_every_truncation_is_refused_or_keeps_the_pixels(name: str) -> None:
    image_format, data = ("jpeg", JPEGS[name]()) if name in JPEGS else (OTHERS[name][0], OTHERS[name][1]())
    for end in {*range(0, len(data), max(1, len(data) // 60)), len(data) - 1}:
        _check_hostile(data[:end], image_format)


@settings(max_examples=400)
@given(st.data())
def test_damaged_files_keep_their_pixels_or_are_refused(data: st.DataObject) -> None:
    name = data.draw(st.sampled_from([*JPEGS, *OTHERS]))
    image_format, whole = ("jpeg", _made(name)) if name in JPEGS else (OTHERS[name][0], _made(name))
    changed = bytearray(whole)
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, min(len(changed) - 1, 1200)) | st.integers(0, len(changed) - 1))
        kind = data.draw(st.sampled_from(["set", "insert", "cut"]))
        if kind == "set":
            changed[at] = data.draw(st.sampled_from([0, 0xFF, 0xD9, 0xDA, 0xFE]) | st.integers(0, 255))
        elif kind == "insert":
            changed[at:at] = data.draw(st.sampled_from([b"\xff", b"\xff\xfe\x00\x04ab", b"\xff\xd9", b"\0\0"]))
        else:
            del changed[at : at + data.draw(st.integers(1, 40))]
    _check_hostile(bytes(changed), image_format)


@settings(max_examples=200)
@given(st.binary(max_size=300), st.sampled_from(["jpeg", "png", "webp", "gif"]), st.booleans())
def test_any_bytes_are_refused_or_stripped(data: bytes, image_format: str, signed: bool) -> None:
    starts = {"jpeg": b"\xff\xd8\xff", "png": b"\x89PNG\r\n\x1a\n", "webp": b"RIFF\x40\0\0\0WEBP", "gif": b"GIF89a"}
    with contextlib.suppress(ValueError):
        strip_metadata(starts[image_format] * signed + data, image_format)


_CACHE: dict[str, bytes] = {}


def _made(name: str) -> bytes:
    if name not in _CACHE:
        _CACHE[name] = JPEGS[name]() if name in JPEGS else OTHERS[name][1]()
    return _CACHE[name]


def _check_hostile(data: bytes, image_format: str) -> None:
    """What decodes and can be stripped must decode to the same stored pixels afterwards."""
    try:
        stripped = strip_metadata(data, image_format)
        before = read_header(data)
        expected = decode_rgb(data, header=before, max_pixels=1 << 20)
    except ValueError:
        return
    if stripped is not None:
        assert (decode_rgb(stripped, header=before) == expected).all()
