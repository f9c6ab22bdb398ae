"""Decoding one image: upright, on white, whole or refused."""

import io
import struct
import subprocess
import sys
import tracemalloc
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image, ImageOps

from headrace.shards.images.decode import apply_orientation, decode_rgb, decode_stored
from headrace.shards.images.header import check_complete, read_header
from headrace.shards.images.jpeg import BombError
from headrace.shards.images.pillow import without_metadata

FORMATS = ("jpeg", "png", "webp", "gif", "bmp", "tiff", "avif")

Encode = Callable[..., bytes]


def _save(image: Image.Image, image_format: str, **options: object) -> bytes:
    sink = io.BytesIO()
    image.save(sink, image_format, **options)
    return sink.getvalue()


@pytest.mark.parametrize("image_format", ["jpeg", "png", "webp", "tiff"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_orientation_is_applied_as_pillow_does(encode_image: Encode, image_format: str, orientation: int) -> None:
    data = encode_image(image_format, (29, 13), orientation=orientation)
    with Image.open(io.BytesIO(data)) as image:
        expected = np.asarray(ImageOps.exif_transpose(image).convert("RGB"))
    pixels = decode_rgb(data)
    assert pixels.dtype == np.uint8
    assert pixels.flags.c_contiguous
    assert pixels.shape == expected.shape
    # Two builds of libjpeg-turbo may differ by rounding.
    np.testing.assert_allclose(pixels.astype(int), expected.astype(int), atol=0 if image_format != "jpeg" else 3)


def test_apply_orientation_is_its_own_inverse_where_it_must_be() -> None:
    pixels = np.arange(2 * 3 * 3, dtype=np.uint8).reshape(2, 3, 3)
    inverse = {1: 1, 2: 2, 3: 3, 4: 4, 5: 5, 6: 8, 7: 7, 8: 6}
    for orientation, back in inverse.items():
        turned = apply_orientation(pixels, orientation)
        assert turned.shape == ((3, 2, 3) if orientation >= 5 else (2, 3, 3))
        np.testing.assert_array_equal(apply_orientation(turned, back), pixels)


def test_alpha_is_laid_on_white() -> None:
    image = Image.new("RGBA", (4, 3), (0, 0, 0, 0))
    image.putpixel((1, 1), (10, 20, 30, 255))
    pixels = decode_rgb(_save(image, "PNG"))
    assert pixels[1, 1].tolist() == [10, 20, 30]
    assert pixels[0, 0].tolist() == [255, 255, 255]


def test_transparent_palette_is_laid_on_white() -> None:
    image = Image.new("P", (4, 3), 1)
    image.putpalette([0, 0, 0, 200, 100, 50])
    image.putpixel((0, 0), 0)
    pixels = decode_rgb(_save(image, "PNG", transparency=0))
    assert pixels[0, 0].tolist() == [255, 255, 255]
    assert pixels[2, 2].tolist() == [200, 100, 50]


def test_sixteen_bit_gray_keeps_its_high_byte() -> None:
    values = np.array([[0, 255, 256, 0x8000, 0xFFFF]], np.uint16)
    pixels = decode_rgb(_save(Image.fromarray(values), "PNG"))
    assert pixels[0, :, 0].tolist() == [0, 0, 1, 128, 255]


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P"])
def test_modes_become_rgb(mode: str) -> None:
    image = Image.new("RGB", (5, 4), (255, 255, 255)).convert(mode)
    assert decode_rgb(_save(image, "PNG")).min() == 255


def test_gray_jpeg() -> None:
    pixels = decode_rgb(_save(Image.new("L", (16, 16), 77), "JPEG"))
    assert pixels.shape == (16, 16, 3)
    assert abs(int(pixels.mean()) - 77) <= 1


def test_cmyk_jpeg_is_what_pillow_says() -> None:
    data = _save(Image.new("RGB", (16, 8), (200, 60, 20)).convert("CMYK"), "JPEG", quality=95)
    with Image.open(io.BytesIO(data)) as image:
        assert image.mode == "CMYK"
        expected = np.asarray(image.convert("RGB"))
    np.testing.assert_array_equal(decode_rgb(data), expected)
    assert abs(int(decode_rgb(data)[0, 0, 0]) - 200) < 8


@pytest.mark.parametrize("image_format", ["GIF", "WEBP", "PNG"])
def test_of_an_animation_the_first_frame(image_format: str) -> None:
    frames = [Image.new("RGB", (8, 6), color) for color in ((250, 0, 0), (0, 250, 0), (0, 0, 250))]
    options = {"lossless": True} if image_format == "WEBP" else {}
    data = _save(frames[0], image_format, save_all=True, append_images=frames[1:], **options)
    assert decode_rgb(data)[0, 0].tolist() == [250, 0, 0]


@pytest.mark.parametrize("image_format", ["jpeg", "png", "webp", "gif", "bmp", "avif", "tiff"])
def test_a_truncated_image_is_refused(encode_image: Encode, image_format: str) -> None:
    data = encode_image(image_format, (64, 48), seed=5)
    for share in (0.4, 0.6, 0.8, 0.95):
        with pytest.raises(ValueError, match=image_format):
            decode_rgb(data[: int(len(data) * share)])


def _faulty_jpegs(data: bytes) -> dict[str, bytes]:
    """Faults that libjpeg warns of, with the whole picture still there."""
    return {
        "bytes before the end": data[:-2] + b"abc" + data[-2:],
        "unknown JFIF revision": data[:11] + b"\7" + data[12:],
        "bytes after the end": data + b"<html>",
    }


@pytest.mark.parametrize(
    ("mode", "fault"),
    [
        ("RGB", "bytes before the end"),
        ("RGB", "unknown JFIF revision"),
        ("RGB", "bytes after the end"),
        ("L", "bytes before the end"),
        ("L", "unknown JFIF revision"),
        ("CMYK", "bytes before the end"),  # Pillow writes no JFIF there
    ],
)
def test_a_jpeg_fault_that_pillow_tolerates_loses_no_picture(mode: str, fault: str) -> None:
    data = _save(Image.effect_noise((40, 24), 60).convert(mode), "JPEG", quality=90)
    faulty = _faulty_jpegs(data)[fault]
    np.testing.assert_array_equal(decode_rgb(faulty), decode_rgb(data))


@pytest.mark.parametrize("mode", ["RGB", "CMYK"])
def test_a_cut_jpeg_is_refused_even_if_someone_closed_it(mode: str) -> None:
    data = _save(Image.effect_noise((40, 24), 60).convert(mode), "JPEG", quality=90)
    closed = data[: len(data) * 3 // 4] + b"\xff\xd9"
    with Image.open(io.BytesIO(closed)) as image:
        image.load()  # Pillow fills the rest with gray and says nothing
    with pytest.raises(ValueError, match="truncated"):
        decode_rgb(closed)


def test_a_jpeg_of_too_many_scans_is_refused_before_decoding() -> None:
    """Each scan of 16 bytes costs a pass over all pixels: 20 MB of them would take days."""
    data = _save(Image.new("L", (64, 64), 99), "JPEG", progressive=True)
    last = data[data.rindex(b"\xff\xda") : -2]
    assert decode_rgb(data[:-2] + b"\xff\xd9").shape == (64, 64, 3)
    for decode in (lambda data: decode_rgb(data), lambda data: check_complete(data, read_header(data))):
        with pytest.raises(BombError, match="over 100 scans"):
            decode(data[:-2] + 100 * last + b"\xff\xd9")


def test_a_gif_is_whole_with_its_first_frame() -> None:
    frames = [Image.effect_noise((24, 16), 80).convert("P") for _ in range(3)]
    data = _save(frames[0], "GIF", save_all=True, append_images=frames[1:])
    expected = decode_rgb(data)
    for cut in (data[:-1], data[:-1] + b"junk", data[:-100]):
        np.testing.assert_array_equal(decode_rgb(cut), expected)
    with pytest.raises(ValueError, match="truncated"):
        decode_rgb(data[: len(data) // 4])


def test_the_pixel_cap_is_checked_before_decoding(encode_image: Encode) -> None:
    data = encode_image("png", (40, 30))
    assert decode_rgb(data, max_pixels=1200).shape == (30, 40, 3)
    with pytest.raises(ValueError, match="40 x 30 pixels are over the cap of 1199"):
        decode_rgb(data, max_pixels=1199)
    bomb = data[:16] + (50_000).to_bytes(4, "big") * 2 + data[24:]
    with pytest.raises(ValueError, match="over the cap"):
        decode_rgb(bomb)


def test_a_gif_frame_larger_than_its_screen_is_capped() -> None:
    data = bytearray(_save(Image.new("RGB", (300, 200), (1, 2, 3)), "GIF"))
    data[6:10] = b"\1\0\1\0"
    with pytest.raises(ValueError, match="over the cap"):
        decode_rgb(bytes(data), max_pixels=1000)


def _directory(order: str, entries: list[tuple[int, int, int, int]]) -> bytes:
    head = (b"II*\0" if order == "<" else b"MM\0*") + struct.pack(f"{order}IH", 8, len(entries))
    return head + b"".join(struct.pack(f"{order}HHII", *entry) for entry in entries) + bytes(4)


@pytest.mark.parametrize("order", ["<", ">"])
def test_a_directory_whose_tags_claim_the_same_bytes_is_refused_before_pillow_copies_them(order: str) -> None:
    """Each claim is small enough; 4000 of them would be 4 GB."""
    data = _directory(order, [(40000 + n, 7, 1 << 20, 0) for n in range(4000)]) + bytes(1 << 20)
    tracemalloc.start()
    try:
        with pytest.raises(ValueError, match="over the cap"):
            read_header(data)
        assert tracemalloc.get_traced_memory()[1] < 1 << 20
    finally:
        tracemalloc.stop()
    with pytest.raises(ValueError, match="directory of 60000 tags"):
        read_header(_directory(order, [])[:8] + struct.pack(f"{order}H", 60000))


def test_exif_in_an_avif_is_counted_too(encode_image: Encode) -> None:
    bomb = _directory("<", [(40000 + n, 7, 1 << 20, 0) for n in range(4000)]) + bytes(1 << 20)
    data = encode_image("avif", (8, 8)) + struct.pack(">I", len(bomb) + 8) + b"free" + bomb
    with pytest.raises(ValueError, match="over the cap"):
        read_header(data)
    with pytest.raises(ValueError, match="TIFF headers inside"):
        read_header(encode_image("avif", (8, 8)) + b"II*\0" * 100)


def test_exif_in_a_cmyk_jpeg_never_reaches_pillow() -> None:
    data = _save(Image.new("CMYK", (16, 8), (10, 200, 90, 30)), "JPEG", quality=95)
    expected = decode_rgb(data)
    bomb = b"Exif\0\0" + _directory("<", [(40000 + n, 7, 50_000, 0) for n in range(3000)])
    segment = b"\xff\xe1" + struct.pack(">H", len(bomb) + 2) + bomb + b"\xff\xfe\0\4hi\xff"
    assert b"Exif" not in without_metadata(data[:2] + segment + data[2:])
    np.testing.assert_array_equal(decode_rgb(data[:2] + segment + data[2:]), expected)


def test_wide_integer_pixels_are_refused() -> None:
    data = _save(Image.new("F", (4, 4), 0.5), "TIFF")
    with pytest.raises(ValueError, match="mode F"):
        decode_rgb(data)


@pytest.mark.filterwarnings("ignore::UserWarning:PIL")
@settings(max_examples=250, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_mutated_images_decode_or_raise_value_error(encode_image: Encode, data: st.DataObject) -> None:
    mutated = bytearray(encode_image(data.draw(st.sampled_from(FORMATS)), (19, 17), seed=1))
    for _ in range(data.draw(st.integers(1, 10))):
        mutated[data.draw(st.integers(0, len(mutated) - 1))] = data.draw(st.integers(0, 255))
    try:
        pixels = decode_rgb(bytes(mutated), max_pixels=1 << 20)
    except ValueError:
        return
    assert pixels.ndim == 3
    assert pixels.shape[2] == 3


def test_a_damaged_tiff_writes_nothing_on_the_terminal() -> None:
    program = """
import io
from PIL import Image
from headrace.shards.images.decode import decode_rgb
for compression in ("tiff_lzw", "tiff_adobe_deflate"):
    sink = io.BytesIO()
    Image.effect_noise((64, 64), 90).convert("RGB").save(sink, "TIFF", compression=compression)
    data = bytearray(sink.getvalue())
    for place in range(200, len(data) - 400, 37):
        data[place] ^= 0x55
    try:
        decode_rgb(bytes(data))
    except ValueError as error:
        print(error)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=200, check=True)
    assert done.stdout.count("tiff: ") == 2
    assert done.stderr == ""


@pytest.mark.parametrize("image_format", ["jpeg", "png", "gif"])
@given(at=st.floats(0, 1), value=st.binary(min_size=1, max_size=3), kept=st.floats(0.5, 1))
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_the_stored_pixels_are_those_of_the_upright_image_however_it_is_damaged(
    encode_image: Encode, image_format: str, at: float, value: bytes, kept: float
) -> None:
    data = bytearray(encode_image(image_format, (64, 40), **({"orientation": 6} if image_format == "jpeg" else {})))
    place = int(at * len(data))
    data[place : place + len(value)] = value
    damaged = bytes(data[: int(kept * len(data))] if kept < 0.8 else data)
    try:
        header = read_header(damaged)
    except ValueError:
        return
    found = []
    for decode in (
        lambda: apply_orientation(*decode_stored(damaged, max_pixels=1 << 16, header=header, scratch=_scratch)),
        lambda: decode_rgb(damaged, max_pixels=1 << 16, header=header),
    ):
        try:
            found.append(decode()[..., :3])
        except ValueError:
            found.append(None)
    stored, upright = found
    assert (stored is None) == (upright is None)
    assert stored is None or np.array_equal(stored, upright)


def _scratch(num_bytes: int) -> np.ndarray:
    return np.empty(num_bytes + 7, np.uint8)
