"""img2dataset's resize modes; what need not change keeps its bytes."""

import hashlib
import io

import pytest
from PIL import Image

from headrace.curation.fetch.config import FetchConfig
from headrace.curation.fetch.errors import FetchError
from headrace.curation.fetch.resize import resize_image
from headrace.shards.images.decode import decode_rgb
from headrace.shards.images.header import read_header


def picture(width: int, height: int, kind: str = "JPEG", orientation: int = 1) -> bytes:
    """Left half red, right half blue."""
    image = Image.new("RGB", (width, height), (220, 20, 20))
    image.paste((20, 20, 220), (width // 2, 0, width, height))
    exif = Image.Exif()
    exif[0x0112] = orientation
    stream = io.BytesIO()
    image.save(stream, kind, **({"exif": exif} if kind == "JPEG" else {}))
    return stream.getvalue()


def resized(data: bytes, mode: str, **settings: object) -> tuple[bytes, tuple[int, int]]:
    config = FetchConfig(resize=mode, **{"image_size": 32, **settings})
    body, header = resize_image(data, read_header(data), config)
    found = read_header(body)
    assert (found.width, found.height, found.format) == (header.width, header.height, header.format)
    return body, (found.width, found.height)


@pytest.mark.parametrize(
    ("mode", "size"),
    [("keep_ratio", (64, 32)), ("keep_ratio_largest", (32, 16)), ("center_crop", (32, 32)), ("border", (32, 32))],
)
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
def test_each_mode_gives_its_size(mode: str, size: tuple[int, int], kind: str) -> None:
    body, found = resized(picture(128, 64, kind), mode)
    assert found == size
    assert read_header(body).format == "jpeg"
    assert resized(picture(128, 64, kind), mode)[0] == body


def test_a_crop_is_the_middle_and_a_border_is_white() -> None:
    crop = decode_rgb(resized(picture(128, 32), "center_crop", image_size=16)[0])
    assert crop[8, 2, 0] > 150
    assert crop[8, 13, 2] > 150
    border = decode_rgb(resized(picture(128, 32), "border")[0])
    assert border[0].min() > 240
    assert border[16, 4, 0] > 150


@pytest.mark.parametrize(
    ("mode", "size"), [("keep_ratio", (40, 32)), ("keep_ratio_largest", (32, 20)), ("border", (32, 20))]
)
def test_what_need_not_change_keeps_its_bytes(mode: str, size: tuple[int, int]) -> None:
    data = picture(*size)
    assert resized(data, mode)[0] == data


def test_small_images_grow_only_if_asked() -> None:
    data = picture(16, 8)
    assert resized(data, "keep_ratio")[0] == data
    assert resized(data, "keep_ratio", resize_only_if_bigger=False)[1] == (64, 32)


def test_a_turned_image_is_stored_upright() -> None:
    body, size = resized(picture(128, 64, orientation=6), "keep_ratio")
    assert size == (32, 64)
    assert read_header(body).orientation == 1
    assert decode_rgb(body)[4, 16, 0] > 150


def test_a_thin_image_cannot_be_blown_up() -> None:
    with pytest.raises(FetchError) as caught:
        resized(picture(2000, 1), "keep_ratio", resize_only_if_bigger=False)
    assert caught.value.error_class == "resize"


def test_a_damaged_image_is_a_failure_to_resize() -> None:
    data = bytearray(picture(128, 64, "PNG"))
    data[60:90] = bytes(30)
    with pytest.raises(FetchError) as caught:
        resized(bytes(data), "keep_ratio")
    assert caught.value.error_class == "resize"


def test_a_shard_holds_the_resized_image_and_says_what_it_was(server, web) -> None:
    server.answers["/"] = web.reply(picture(128, 64))
    outcome = web.fetch(server.url(), web.config_for(server, resize="keep_ratio_largest", image_size=32))
    assert (outcome.header.width, outcome.header.height) == (32, 16)
    assert (outcome.original.width, outcome.original.height) == (128, 64)
    assert outcome.sha256 == hashlib.sha256(picture(128, 64)).hexdigest()
