"""The files that the small web serves are what they claim to be."""

import io

import numpy as np
import pytest
from PIL import ExifTags, Image, ImageOps

from headrace.demo.encode import encode, jpeg_bomb, padded, png_bomb, with_metadata, with_profile
from headrace.demo.scenes import Pixels, draw, draw_attributes, generator
from headrace.shards.images.header import read_header


@pytest.fixture
def picture() -> Pixels:
    rng = generator(5)
    return draw(draw_attributes(rng), rng, width=140, height=100)


@pytest.mark.parametrize("image_format", ["jpeg", "png", "webp"])
@pytest.mark.parametrize("orientation", [1, 3, 6, 8])
def test_metadata_is_there_for_any_reader(picture: Pixels, image_format: str, orientation: int) -> None:
    data = with_metadata(picture, image_format, orientation=orientation, secret="at home")
    header = read_header(data)
    assert header.format == image_format
    assert header.orientation == orientation
    with Image.open(io.BytesIO(data)) as image:
        exif = image.getexif()
        assert exif.get_ifd(ExifTags.IFD.GPSInfo)[2] == (48.0, 51.0, 29.66)
        assert exif[ExifTags.Base.Artist] == "at home"
        assert exif.get_ifd(ExifTags.IFD.IFD1)
        upright = np.asarray(ImageOps.exif_transpose(image).convert("RGB"), np.float32)
    assert upright.shape == picture.shape
    assert np.abs(upright - picture).mean() < 10
    assert b"at home" in data


def test_bombs_are_small_files_with_large_headers(picture: Pixels) -> None:
    for data, size in (
        (png_bomb(60_000, 50_000), (60_000, 50_000)),
        (jpeg_bomb(picture, 65_000, 64_000), (65_000, 64_000)),
    ):
        assert len(data) < 20_000
        header = read_header(data)
        assert (header.width, header.height) == size


def test_padding_adds_a_uniform_border_around_the_same_pixels(picture: Pixels) -> None:
    framed = padded(picture, 255)
    side = framed.shape[0]
    assert framed.shape == (side, side, 3)
    top, left = (side - 100) // 2, (side - 140) // 2
    assert np.array_equal(framed[top : top + 100, left : left + 140], picture)
    assert (framed[: top - 1] == 255).all()


def test_the_profile_is_in_the_file(picture: Pixels) -> None:
    with Image.open(io.BytesIO(with_profile(picture))) as image:
        assert image.info["icc_profile"]
    assert encode(picture) == encode(picture)
