"""Facts of pictures: light and colour, what the file holds, placeholders."""

import hashlib
import io
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image, ImageDraw

from headrace.curation.annotate.annotators.image import KNOWN_PLACEHOLDERS, ImageConfig, ImageFacts
from headrace.shards.images.facts import chroma_sampling, has_alpha, num_frames
from headrace.shards.images.header import read_header


def facts(batch, **config):
    columns = ImageFacts(ImageConfig(**config)).annotate(batch)
    return [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]


def file_of(image, image_format, **options):
    sink = io.BytesIO()
    image.save(sink, image_format, **options)
    return sink.getvalue()


def test_entropy_is_that_of_a_slow_count(batch_of, scene):
    pixels = scene(3)
    (found,) = facts(batch_of([pixels]))
    gray = np.rint(pixels @ np.array([0.299, 0.587, 0.114])).astype(int).ravel()
    shares = np.array([(gray == level).mean() for level in range(256)])
    expected = -sum(share * np.log2(share) for share in shares if share)
    assert found["entropy"] == pytest.approx(expected, abs=0.02)
    assert found["mean_brightness"] == pytest.approx(gray.mean(), abs=0.5)
    assert (found["greyscale"], found["single_colour"]) == (False, False)


@pytest.mark.parametrize("colour", [(0, 0, 0), (255, 255, 255), (200, 30, 90)])
@pytest.mark.parametrize("quality", [None, 60])
def test_one_colour_is_seen_and_a_line_of_text_on_it_has_next_to_no_entropy(colour, quality, batch_of, encode):
    from headrace.shards.images.decode import decode_rgb

    flat = Image.new("RGB", (400, 300), colour)
    written = flat.copy()
    ImageDraw.Draw(written).text((100, 140), "This image is not available", fill=(120, 120, 120))
    images = [np.asarray(flat), np.asarray(written)]
    if quality is not None:
        images = [decode_rgb(encode(pixels, quality=quality)) for pixels in images]
    one, text = facts(batch_of(images))
    assert (one["single_colour"], one["entropy"] < 0.05) == (True, True)
    assert (text["single_colour"], text["entropy"] < 0.5) == (False, True)


def test_gray_is_seen_whatever_the_file_says_and_photographs_hold_much(batch_of, scene):
    gray = scene(5).mean(axis=2, keepdims=True).astype(np.uint8).repeat(3, axis=2)
    (found,) = facts(batch_of([gray]))
    assert found["greyscale"]
    assert found["entropy"] > 4


def moving(count):
    return [Image.new("RGB", (8, 8), (20 * number, 0, 0)) for number in range(count)]


@pytest.mark.parametrize("image_format", ["GIF", "PNG", "WEBP", "TIFF", "AVIF"])
def test_frames_are_counted(image_format):
    first, *others = moving(5)
    data = file_of(first, image_format, save_all=True, append_images=others)
    assert num_frames(data, image_format.lower()) == 5
    assert num_frames(file_of(first, image_format), image_format.lower()) == 1


@pytest.mark.parametrize("image_format", ["PNG", "WEBP", "AVIF", "TIFF", "GIF"])
def test_alpha_is_seen(image_format):
    image = Image.new("RGBA", (16, 16), (10, 200, 30, 0))
    image.paste((200, 10, 30, 255), (4, 4, 12, 12))
    assert has_alpha(file_of(image, image_format), image_format.lower()) is True
    assert has_alpha(file_of(image.convert("RGB"), image_format), image_format.lower()) is False
    assert has_alpha(file_of(image.convert("RGB"), "JPEG"), "jpeg") is False


@pytest.mark.parametrize(("subsampling", "expected"), [(0, "4:4:4"), (1, "4:2:2"), (2, "4:2:0")])
def test_the_chroma_sampling_of_a_jpeg_is_read(subsampling, expected, scene):
    data = file_of(Image.fromarray(scene(1)), "JPEG", subsampling=subsampling, exif=b"Exif\0\0" + b"\xff\xc0" * 9)
    assert chroma_sampling(data) == expected
    assert chroma_sampling(file_of(Image.fromarray(scene(1)).convert("L"), "JPEG")) == "gray"
    for end in range(len(data[:700])):
        chroma_sampling(data[:end])


def test_cut_files_of_any_kind_are_read_without_an_error():
    for image_format in ("GIF", "PNG", "WEBP", "TIFF", "AVIF"):
        first, *others = moving(3)
        data = file_of(first, image_format, save_all=True, append_images=others)
        for end in range(32, len(data), 7):
            num_frames(data[:end], image_format.lower())
            has_alpha(data[:end], image_format.lower())


def test_placeholders_are_known_by_the_bytes_that_were_fetched(tmp_path, batch_of, scene):
    data = b"whatever a server sends"
    sums = [next(iter(KNOWN_PLACEHOLDERS)), hashlib.sha256(data).hexdigest(), "0" * 64]
    batch = replace(batch_of([scene(1)] * 3), sha256=sums)
    assert [row["known_placeholder"] for row in facts(batch)] == ["imgur-removed", None, None]
    (tmp_path / "more.txt").write_text(f"# seen in March\n{sums[1].upper()}  shop logo # of a shop\n\n{sums[2]}\n")
    named = [row["known_placeholder"] for row in facts(batch, placeholders=str(tmp_path / "more.txt"))]
    assert named == ["imgur-removed", "shop logo", "listed"]
    (tmp_path / "bad.txt").write_text("\nabc shop\n")
    with pytest.raises(ValueError, match=r"bad\.txt, line 2: expected 64 hex digits, got 'abc'"):
        facts(batch, placeholders=str(tmp_path / "bad.txt"))


def test_bytes_and_file_are_those_of_the_stored_image(batch_of, scene):
    batch = batch_of([scene(2)])
    data = file_of(Image.fromarray(scene(2)), "JPEG", quality=70)
    (found,) = facts(replace(batch, data=[data], headers=[read_header(data)]))
    assert found["bytes_per_pixel"] == pytest.approx(len(data) / (320 * 240))
    assert (found["chroma_sampling"], found["num_frames"], found["has_alpha"]) == ("4:2:0", 1, False)
