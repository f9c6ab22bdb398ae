"""Promises of what tells a copy from its original: borders, colour, sharpness and compression are seen."""

import io
from typing import Any

import numpy as np
import pytest
from PIL import Image

from headrace.curation.annotate.annotator import AnnotationBatch
from headrace.curation.annotate.annotators.quality import Quality, QualityConfig, as_stored
from headrace.shards.images.decode import decode_rgb
from headrace.shards.images.header import read_header


def _picture(seed: int = 0, side: int = 256) -> Image.Image:
    """A picture with edges, texture and colour."""
    rng = np.random.default_rng(seed)
    coarse = Image.fromarray(rng.integers(0, 256, (9, 9, 3), np.uint8)).resize((side, side), Image.Resampling.BICUBIC)
    texture = rng.normal(0, 12, (side, side, 1))
    return Image.fromarray(np.clip(np.asarray(coarse, np.float32) + texture, 0, 255).astype(np.uint8))


def _encode(image: Image.Image, image_format: str = "PNG", **options: Any) -> bytes:
    sink = io.BytesIO()
    image.save(sink, image_format, **options)
    return sink.getvalue()


def _facts(*files: bytes) -> list[dict[str, Any]]:
    batch = AnnotationBatch(
        keys=[str(number) for number in range(len(files))],
        captions=[None] * len(files),
        sha256=[None] * len(files),
        headers=[read_header(data) for data in files],
        images=[decode_rgb(data) for data in files],
        errors=[None] * len(files),
        data=list(files),
    )
    columns = Quality(QualityConfig()).annotate(batch)
    assert list(columns) == Quality.columns.names
    return [{name: values[row] for name, values in columns.items()} for row in range(len(files))]


def test_a_border_is_no_content() -> None:
    framed = Image.new("RGB", (356, 306), (255, 255, 255))
    framed.paste(_picture(), (50, 25))
    plain, bordered = _facts(_encode(_picture()), _encode(framed))
    assert (plain["content_width"], plain["content_height"], plain["border"]) == (256, 256, 0.0)
    assert abs(bordered["content_width"] - 256) <= 4
    assert abs(bordered["content_height"] - 256) <= 4
    assert bordered["border"] == pytest.approx(1 - 256 * 256 / (356 * 306), abs=0.03)


def test_a_gray_copy_has_no_colour() -> None:
    colour, gray = _facts(_encode(_picture()), _encode(_picture().convert("L")))
    assert colour["colourfulness"] > 10
    assert gray["colourfulness"] == pytest.approx(0, abs=0.5)


def test_an_enlarged_copy_is_less_sharp() -> None:
    small = _picture().resize((128, 128), Image.Resampling.BICUBIC)
    original, enlarged = _facts(_encode(_picture()), _encode(small.resize((256, 256), Image.Resampling.BICUBIC)))
    assert enlarged["sharpness"] < 0.8 * original["sharpness"]


@pytest.mark.parametrize("quality", [40, 60, 75, 90, 95])
def test_the_quality_of_a_jpeg_is_read_from_its_tables(quality: int) -> None:
    (facts,) = _facts(_encode(_picture(), "JPEG", quality=quality))
    assert facts["encoded_quality"] == pytest.approx(quality, abs=2)
    assert facts["picture_quality"] <= facts["encoded_quality"]


def test_a_file_without_loss_made_of_a_poor_jpeg_still_shows_it() -> None:
    poor = Image.open(io.BytesIO(_encode(_picture(), "JPEG", quality=30)))
    original, copy = _facts(_encode(_picture()), _encode(poor))
    assert original["encoded_quality"] == copy["encoded_quality"] == 100
    assert copy["picture_quality"] < 60 < original["picture_quality"]


@pytest.mark.parametrize(
    ("image_format", "options", "expected"),
    [
        ("PNG", {}, 100),
        ("WEBP", {"lossless": True}, 100),
        ("WEBP", {"quality": 95}, 70),
        ("GIF", {}, 40),
    ],
)
def test_other_formats_say_how_their_quality_would_compare(
    image_format: str, options: dict[str, Any], expected: int
) -> None:
    (facts,) = _facts(_encode(_picture(), image_format, **options))
    assert facts["encoded_quality"] == expected


@pytest.mark.parametrize("orientation", range(1, 9))
def test_compression_is_looked_for_on_the_grid_of_the_file(orientation: int) -> None:
    poor = Image.open(io.BytesIO(_encode(_picture(side=252), "JPEG", quality=30)))
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = _encode(poor, "PNG", exif=exif)
    header = read_header(data)
    assert header.orientation == orientation
    assert np.array_equal(as_stored(decode_rgb(data, header=header), orientation), np.asarray(poor))
    assert _facts(data)[0]["picture_quality"] < 60


def test_bytes_are_those_of_the_file() -> None:
    data = _encode(_picture(), "JPEG")
    assert _facts(data)[0]["file_bytes"] == len(data)


def test_what_does_not_decode_has_no_values() -> None:
    batch = AnnotationBatch(
        keys=["a"], captions=[None], sha256=[None], headers=[None], images=[None], errors=["not-image: x"], data=[None]
    )
    assert set(map(tuple, Quality(QualityConfig()).annotate(batch).values())) == {(None,)}
