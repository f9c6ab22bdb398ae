"""img2dataset's resize modes; what need not change keeps its bytes."""

import hashlib
import io
import json
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import simplejpeg
from PIL import Image

from headrace.curation.fetch.config import FetchConfig
from headrace.curation.fetch.errors import FetchError
from headrace.curation.fetch.resize import change_image
from headrace.curation.stages import fetch as run_fetch
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
    body, header = change_image(data, read_header(data), config)
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


def noise(width: int, height: int, orientation: int = 1, **options: object) -> bytes:
    pixels = np.random.default_rng(width).integers(0, 256, (height // 4, width // 4, 3), np.uint8)
    exif = Image.Exif()
    exif[0x0112] = orientation
    stream = io.BytesIO()
    Image.fromarray(pixels).resize((width, height)).save(stream, "JPEG", exif=exif, **options)
    return stream.getvalue()


@pytest.mark.parametrize(
    ("stored", "orientation", "written"),
    [("4:4:4", 1, "444"), ("4:2:0", 1, "420"), ("4:2:2", 3, "422"), ("4:2:2", 6, "440"), ("4:2:0", 8, "420")],
)
def test_a_jpeg_keeps_its_chroma_sampling(stored: str, orientation: int, written: str) -> None:
    body, _ = resized(noise(128, 80, orientation, subsampling=stored), "keep_ratio")
    assert simplejpeg.decode_jpeg_header(body)[3] == written
    assert simplejpeg.decode_jpeg_header(resized(picture(128, 64, "PNG"), "keep_ratio")[0])[3] == "444"


def test_a_grey_jpeg_becomes_a_small_one_of_three_colours() -> None:
    stream = io.BytesIO()
    Image.linear_gradient("L").save(stream, "JPEG")
    body, _ = resized(stream.getvalue(), "keep_ratio")
    assert simplejpeg.decode_jpeg_header(body)[2:] == ("YCbCr", "420")
    pixels = decode_rgb(body).astype(int)
    assert np.ptp(pixels, axis=2).max() == 0


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("options", [{}, {"progressive": True}, {"restart_marker_rows": 1}], ids=str)
def test_the_pixels_are_those_of_the_first_way_but_for_one_level(orientation: int, options: dict[str, object]) -> None:
    data = noise(203, 122, orientation, **options)
    header = read_header(data)
    for mode in ("keep_ratio", "center_crop", "border"):
        config = FetchConfig(resize=mode, image_size=48, encode_format="png")
        first, second = (decode_rgb(change_image(data, header, config, resizing=way)[0]) for way in (1, 2))
        assert first.shape == second.shape
        assert np.abs(first.astype(int) - second).max() <= 1
        assert (first != second).mean() < 1e-3


def test_a_cut_jpeg_is_no_image_however_its_end_looks() -> None:
    for options in ({}, {"progressive": True}, {"restart_marker_rows": 1}):
        data = noise(256, 256, **options)
        with pytest.raises(FetchError) as caught:
            resized(data[: len(data) // 2] + b"\xff\xd9", "keep_ratio")
        assert caught.value.error_class == "resize"


def test_a_job_goes_on_with_the_way_of_resizing_that_it_began_with(server, web, tmp_path: Path) -> None:
    data = noise(128, 80)
    server.answers["/a.jpg"] = server.answers["/b.jpg"] = web.reply(data)
    lines = [server.url(path) + "\n" for path in ("/a.jpg", "/b.jpg")]
    config = web.config_for(server, samples_per_shard=1, resize="keep_ratio", image_size=32)
    sums = [
        hashlib.sha256(change_image(data, read_header(data), config, resizing=way)[0]).hexdigest() for way in (1, 2)
    ]
    assert sums[0] != sums[1]
    for way in (1, 2):
        (tmp_path / "list.txt").write_text(lines[0])
        recipe = web.recipe_for(tmp_path / f"job{way}", tmp_path / "list.txt", config, caption_column=None)
        run_fetch(recipe)
        plan = tmp_path / f"job{way}/input/plan.json"
        record = json.loads(plan.read_text())
        assert record["output"]["resizing"] == 2
        if way == 1:  # as a headrace wrote it that knew one way
            del record["output"]["resizing"]
            plan.write_text(json.dumps(record))
        (tmp_path / "list.txt").write_text("".join(lines))
        run_fetch(recipe)
        assert pq.read_table(tmp_path / f"job{way}/raw/00001.parquet")["stored_sha256"].to_pylist() == [sums[way - 1]]
        assert json.loads(plan.read_text())["output"].get("resizing", 1) == way
    record["output"]["resizing"] = 3
    plan.write_text(json.dumps(record))
    with pytest.raises(ValueError, match="resizes images in way 3, this headrace knows the ways 1 to 2"):
        run_fetch(recipe)
