"""What is made of an image on its way into a raw shard: limits, sums, boxes, formats, Exif, where it lies."""

import hashlib
import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from headrace.config import build_config
from headrace.curation.blur import blur_boxes
from headrace.curation.fetch.boxes import parse_boxes, turned
from headrace.curation.fetch.config import FetchConfig, InputConfig
from headrace.curation.fetch.encode import encode
from headrace.curation.fetch.errors import FetchError
from headrace.curation.fetch.exif import exif_json
from headrace.curation.fetch.resize import change_image
from headrace.curation.job import Job
from headrace.curation.needs import check_names
from headrace.curation.raw import write as writing
from headrace.curation.raw.read import raw_shards, read_raw
from headrace.curation.recipe import Recipe
from headrace.curation.stages import fetch as run_fetch
from headrace.shards.images.decode import apply_orientation, decode_rgb
from headrace.shards.images.header import read_header


def picture(width: int, height: int, kind: str = "JPEG", **options: Any) -> bytes:
    pixels = np.random.default_rng(width).integers(0, 256, (height // 8, width // 8, 3), np.uint8)
    stream = io.BytesIO()
    Image.fromarray(pixels.repeat(8, 0).repeat(8, 1)).save(stream, kind, **options)
    return stream.getvalue()


@pytest.mark.parametrize(
    ("settings", "error_class"),
    [
        ({"min_image_size": 48}, None),
        ({"min_image_size": 49}, "image-too-small"),
        ({"max_image_area": 96 * 48}, None),
        ({"max_image_area": 96 * 48 - 1}, "image-too-large"),
        ({"max_aspect_ratio": 2.0}, None),
        ({"max_aspect_ratio": 1.99}, "image-too-long"),
        ({"formats": ("jpeg", "png")}, None),
        ({"formats": ("png",)}, "image-format"),
    ],
)
def test_a_limit_is_a_class_of_its_own(server, web, settings: dict[str, Any], error_class: str | None) -> None:
    server.answers["/a.jpg"] = web.reply(picture(96, 48))
    outcome = web.fetch(server.url("/a.jpg"), web.config_for(server, **settings))
    assert outcome.error_class == error_class


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"formats": ["jpg"]}, "unknown jpg; known: jpeg"),
        ({"max_aspect_ratio": 0.5}, "at least 1"),
        ({"hashes": ["md5", "md5"]}, "twice"),
        ({"max_image_area": 0}, "at least 1 pixel"),
    ],
)
def test_a_limit_that_nothing_can_meet_is_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build_config(FetchConfig, settings)


def write_parquet(path: Path, rows: list[dict[str, Any]]) -> Path:
    pq.write_table(pa.Table.from_pylist(rows), path)
    return path


def rows_of(job: Path) -> list[dict[str, Any]]:
    found = [row for shard in raw_shards(Job(str(job))) for row in read_raw(Job(str(job)), shard).to_pylist()]
    return sorted(found, key=lambda row: (row["input_row"], row["status"] != "success"))


def test_sums_of_the_list_are_compared_also_by_a_retry(server, web, tmp_path: Path) -> None:
    data = [picture(64 + 8 * number, 48) for number in range(5)]
    sums = {"md5": hashlib.md5, "sha512": hashlib.sha512, "sha256": hashlib.sha256}
    rows = []
    for number, body in enumerate(data):
        server.answers[f"/{number}.jpg"] = web.reply(body)
        told = {f"the_{name}": function(body).hexdigest().upper() for name, function in sums.items()}
        rows.append({"url": server.url(f"/{number}.jpg"), "caption": "a", **told})
    for number, name in enumerate(sums):
        rows[number][f"the_{name}"] = "0" * 32
    server.answers["/4.jpg"] = web.reply(status="503 Busy")
    config = web.config_for(server, hashes=("md5", "sha512"))
    columns = {f"{name}_column": f"the_{name}" for name in sums}
    recipe = web.recipe_for(tmp_path / "job", write_parquet(tmp_path / "l.parquet", rows), config, **columns)
    run_fetch(recipe)
    found = rows_of(tmp_path / "job")
    classes = [row["error_class"] for row in found]
    assert classes == ["md5-mismatch", "sha512-mismatch", "sha256-mismatch", None, "http-5xx"]
    assert found[3]["md5"] == hashlib.md5(data[3]).hexdigest()
    assert found[3]["sha512"] == hashlib.sha512(data[3]).hexdigest()
    assert found[4]["expected_md5"] == hashlib.md5(data[4]).hexdigest().upper()
    server.answers["/4.jpg"] = web.reply(data[0])  # it answers now, with another image
    assert run_fetch(recipe, retry_failed=True).retried == 0
    server.answers["/4.jpg"] = web.reply(data[4])
    assert run_fetch(recipe, retry_failed=True).retried == 1
    recipe.fetch = web.config_for(server)
    with pytest.raises(ValueError, match=r"fetch\.exif, hashes or output_format"):
        run_fetch(recipe)


def test_a_retry_of_a_job_whose_tables_lack_the_sums_compares_them_too(server, web, tmp_path: Path) -> None:
    for number in range(2):
        server.answers[f"/{number}.jpg"] = web.reply(status="503 Busy")
    rows = [{"url": server.url(f"/{number}.jpg"), "caption": "a", "sum": "0" * 64, "page": 1} for number in range(2)]
    listed = write_parquet(tmp_path / "l.parquet", rows)
    config = web.config_for(server, samples_per_shard=1)  # the second shard is of today, with another order of columns
    recipe = web.recipe_for(tmp_path / "job", listed, config, sha256_column="sum", columns=("page",))
    run_fetch(recipe)
    table_url, commit = tmp_path / "job/raw/00000.parquet", tmp_path / "job/raw/commits/00000.json"
    pq.write_table(pq.read_table(table_url).drop(["expected_sha256"]), table_url)
    commit.write_text(json.dumps({"count": 1, "successes": 0, "status_dict": {"http-5xx": 1}}))
    for number in range(2):
        server.answers[f"/{number}.jpg"] = web.reply(picture(64, 48))
    assert run_fetch(recipe, retry_failed=True).retried == 0


FACE = [0.25, 0.25, 0.5, 0.75]


@pytest.mark.parametrize("suffix", ["parquet", "jsonl", "csv"])
def test_boxes_of_the_list_are_blurred_and_unreadable_ones_are_no_image(
    server, web, tmp_path: Path, suffix: str
) -> None:
    body = picture(96, 64, quality=95)
    server.answers["/a.jpg"] = web.reply(body)
    boxes: list[Any] = [[FACE], [], None] if suffix == "parquet" else [[FACE], [], None, [[0, 0, 1]], "what"]
    path = tmp_path / f"l.{suffix}"
    rows = [{"url": server.url("/a.jpg"), "caption": str(row), "faces": item} for row, item in enumerate(boxes)]
    if suffix == "parquet":
        write_parquet(path, rows)
    elif suffix == "jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    else:
        quoted = [json.dumps(row["faces"]).replace('"', '""') for row in rows]
        lines = [f'{row["url"]},{row["caption"]},"{cell}"\n' for row, cell in zip(rows, quoted, strict=True)]
        path.write_text("url,caption,faces\n" + "".join(lines))
    config = web.config_for(server, encode_format="png")
    run_fetch(web.recipe_for(tmp_path / "job", path, config, bbox_column="faces"))
    found = rows_of(tmp_path / "job")
    assert [row["error_class"] for row in found] == [None, None, None, "bad-boxes", "bad-boxes"][: len(boxes)]
    assert [row["format"] for row in found][:3] == ["png", "jpeg", "jpeg"]
    expected, _ = encode(blur_boxes(decode_rgb(body), [FACE]), "png", 95)
    assert found[0]["stored_sha256"] == hashlib.sha256(expected).hexdigest()
    assert found[0]["sha256"] == found[1]["sha256"] == hashlib.sha256(body).hexdigest()


@pytest.mark.parametrize("orientation", range(1, 9))
def test_boxes_turn_with_the_image(orientation: int) -> None:
    stored = np.zeros((40, 80, 3), np.uint8)
    stored[10:20, 8:40] = 255
    upright = apply_orientation(stored, orientation)
    (box,) = turned([(8 / 80, 10 / 40, 40 / 80, 20 / 40)], orientation)
    height, width = upright.shape[:2]
    left, top, right, bottom = (round(value) for value in np.array(box) * (width, height, width, height))
    assert upright[top:bottom, left:right].min() == 255
    assert upright.sum() == 255 * 3 * 10 * 32 == upright[top:bottom, left:right].sum()
    exif = Image.Exif()
    exif[0x0112] = orientation
    stream = io.BytesIO()
    Image.fromarray(stored).save(stream, "PNG", exif=exif.tobytes())
    data = stream.getvalue()
    config = FetchConfig(boxes="crop", encode_format="png")
    cut, header = change_image(data, read_header(data), config, [(8 / 80, 10 / 40, 40 / 80, 20 / 40)])
    assert decode_rgb(cut).min() == 255
    assert sorted((header.width, header.height)) == [10, 32]


def test_boxes_are_blurred_after_resizing_and_before_cutting() -> None:
    data = picture(128, 64, "PNG")
    config = FetchConfig(resize="center_crop", image_size=32, encode_format="png")
    plain = decode_rgb(change_image(data, read_header(data), config)[0])
    blurred = decode_rgb(change_image(data, read_header(data), config, [(0.4, 0.2, 0.6, 0.8)])[0])
    assert plain.shape == blurred.shape == (32, 32, 3)
    assert (plain != blurred).any()
    with pytest.raises(FetchError, match="hold nothing"):
        change_image(data, read_header(data), FetchConfig(boxes="crop"), [(1.2, 0.1, 1.4, 0.2)])


@given(text=st.one_of(st.text(max_size=30), st.recursive(st.floats() | st.integers() | st.none(), st.lists).map(str)))
def test_boxes_are_read_or_refused(text: str) -> None:
    try:
        found = parse_boxes(text)
    except FetchError:
        return
    assert all(x0 <= x1 and y0 <= y1 for x0, y0, x1, y1 in found)


@pytest.mark.parametrize("image_format", ["jpeg", "png", "webp", "avif"])
def test_an_image_that_is_encoded_again_has_the_format_asked_for(image_format: str) -> None:
    data = picture(128, 64)
    sizes = []
    for quality in (30, 95):
        config = FetchConfig(resize="keep_ratio", image_size=32, encode_format=image_format, encode_quality=quality)
        stored, header = change_image(data, read_header(data), config)
        assert change_image(data, read_header(data), config)[0] == stored
        assert read_header(stored) == header
        assert (header.format, header.width, header.height) == (image_format, 64, 32)
        assert np.abs(decode_rgb(stored).astype(int).mean() - decode_rgb(data).astype(int).mean()) < 4
        sizes.append(len(stored))
    assert sizes[0] < sizes[1] or image_format == "png"


def test_exif_is_json_or_null_whatever_stands_there() -> None:
    exif = Image.Exif()
    exif[0x010E], exif[0x0112] = "a\0 picture \ud83d".encode("utf-8", "replace").decode(), 6
    exif.get_ifd(0x8825)[1] = "N"
    data = picture(64, 48, exif=exif.tobytes())
    told = json.loads(exif_json(data, "jpeg") or "")
    assert told["Orientation"] == 6
    assert "GPSLatitudeRef" in told
    assert exif_json(picture(64, 48), "jpeg") is None
    at = data.index(b"Exif\0\0")
    for cut in range(0, 60, 3):
        damaged = data[: at + 6 + cut] + b"\xff" * 8 + data[at + 14 + cut :]
        found = exif_json(damaged, "jpeg")
        assert found is None or json.loads(found)


@pytest.mark.parametrize("output_format", ["files", "parquet"])
def test_images_lie_where_the_recipe_says(server, web, tmp_path: Path, output_format: str, monkeypatch) -> None:
    monkeypatch.setattr(writing, "GROUP_BYTES", 1)  # an image a row group
    for number in range(5):
        server.answers[f"/{number}.jpg"] = web.reply(web.jpeg(number))
    rows = [{"url": server.url(f"/{number}.jpg"), "caption": f"c {number}"} for number in range(6)]
    config = web.config_for(server, samples_per_shard=4, output_format=output_format, exif=True)
    urls = write_parquet(tmp_path / "l.parquet", rows)
    recipe = web.recipe_for(tmp_path / "job", urls, config)
    stale = [tmp_path / "job/raw" / name for name in ("00000/never.jpg", "images/.00000.parquet.x.tmp")]  # of a kill
    for path in stale:
        path.parent.mkdir(parents=True)
        path.write_bytes(b"stale")
    assert run_fetch(recipe).fetched == 5
    told = {row["key"]: row for row in rows_of(tmp_path / "job") if row["status"] == "success"}
    raw = tmp_path / "job/raw"
    if output_format == "files":
        found = {path.stem: path.read_bytes() for path in raw.glob("0000?/*.jpg")}
        assert all((raw / key[:5] / f"{key}.txt").read_text() == row["caption"] for key, row in told.items())
    else:
        tables = [pq.read_table(path) for path in sorted(raw.glob("images/*.parquet"))]
        found = {row["key"]: row["image"] for row in pa.concat_tables(tables).to_pylist()}
        assert sum(pq.ParquetFile(path).num_row_groups for path in raw.glob("images/*.parquet")) == 5
        assert not stale[1].exists()
    assert {key: hashlib.sha256(data).hexdigest() for key, data in found.items()} == {
        key: row["sha256"] for key, row in told.items()
    }
    assert not list(raw.glob("*.tar"))
    with pytest.raises(ValueError, match=r"lie in no tars \(fetch.output_format\)"):
        run_fetch(web.recipe_for(tmp_path / "next", urls, config, reuse=(str(tmp_path / "job"),)))
    whole = Recipe(job=str(tmp_path / "job"), unsafe_images="off", input=InputConfig(urls=(str(urls),)), fetch=config)
    check_names(whole, ["fetch"])
    with pytest.raises(ValueError, match="annotate and build read tars"):
        check_names(whole, ["fetch", "annotate", "select", "build"])
