"""Every resize mode, format and orientation, from a list to a dataset that `verify` calls whole."""

import hashlib
import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

from headrace.config import build_config
from headrace.curation.recipe import Recipe
from headrace.curation.stages import annotate as run_annotate
from headrace.curation.stages import build as run_build
from headrace.curation.stages import fetch as run_fetch
from headrace.curation.stages import select as run_select
from headrace.shards.dataset import open_dataset
from headrace.shards.images.decode import decode_rgb
from headrace.shards.verify import verify_dataset

KINDS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "AVIF")
WITH_ORIENTATION = ("JPEG", "PNG", "WEBP", "TIFF")
SIDE = 48


def picture(kind: str, width: int, height: int, orientation: int = 1) -> bytes:
    seed = [KINDS.index(kind), width, height, orientation]
    noise = np.random.default_rng(seed).integers(0, 256, (height // 4, width // 4, 3), np.uint8)
    image = Image.fromarray(noise).resize((width, height))
    exif = Image.Exif()
    exif[0x0112] = orientation
    sink = io.BytesIO()
    image.save(sink, kind, **({"exif": exif} if kind in WITH_ORIENTATION else {}))
    return sink.getvalue()


PICTURES = {
    f"/{kind}-{width}-{height}-{orientation}": picture(kind, width, height, orientation)
    for kind in KINDS
    for width, height in ((96, 64), (64, 96), (SIDE, SIDE), (32, 24))
    for orientation in ((1, 6) if kind in WITH_ORIENTATION else (1,))
}


def make_recipe(server: Any, folder: Path, **fetch: Any) -> Recipe:
    server.answers.update(
        {path: b"HTTP/1.0 200 OK\r\nContent-Length: %d\r\n\r\n" % len(body) + body for path, body in PICTURES.items()}
    )
    (folder / "list.txt").write_text("".join(f"{server.url(path)}\n" for path in PICTURES))
    settings = {
        "job": str(folder / "job"),
        "unsafe_images": "off",
        "input": {"urls": [str(folder / "list.txt")], "caption_column": None},
        "fetch": {"allow_private": [server.pair], "image_size": SIDE, "samples_per_shard": 20, **fetch},
        "annotate": {"faces": None, "caption": None},
        "select": [],
        "build": {"blur_faces": False},
        "placement": {"samples_per_shard": 20},
        "engine": {"executor": "inline"},
    }
    return build_config(Recipe, settings)


def raw_rows(recipe: Recipe) -> list[dict[str, Any]]:
    return [
        row for path in sorted(Path(recipe.job, "raw").glob("*.parquet")) for row in pq.read_table(path).to_pylist()
    ]


def index_rows(recipe: Recipe) -> list[dict[str, Any]]:
    dataset = open_dataset(f"{recipe.job}/dataset")
    return [row for number in range(len(dataset.shards)) for row in dataset.index(number).to_pylist()]


@pytest.mark.parametrize(
    ("mode", "only_if_bigger"),
    [
        ("keep_ratio", True),
        ("border", False),
        *(
            pytest.param(mode, only_if_bigger, marks=pytest.mark.full)
            for mode in ("none", "keep_ratio", "keep_ratio_largest", "center_crop", "border")
            for only_if_bigger in (True, False)
            if (mode, only_if_bigger) not in (("keep_ratio", True), ("border", False))
        ),
    ],
)
def test_what_is_stored_in_another_size_is_built_whole(server, tmp_path: Path, mode: str, only_if_bigger: bool) -> None:
    recipe = make_recipe(server, tmp_path, resize=mode, resize_only_if_bigger=only_if_bigger)
    assert run_fetch(recipe).fetched == len(PICTURES)
    run_annotate(recipe)
    run_select(recipe)
    summary = run_build(recipe)
    assert (summary.num_samples, summary.num_failed) == (len(PICTURES), 0)
    assert list(verify_dataset(f"{recipe.job}/dataset", decode=True)) == []
    fetched = {hashlib.sha256(body).hexdigest() for body in PICTURES.values()}
    found = index_rows(recipe)
    assert {row["sha256"] for row in found} == fetched
    if mode != "none":
        assert max(min(row["width"], row["height"]) for row in found) <= 64
    if mode in ("center_crop", "border") and not only_if_bigger:
        assert {(row["width"], row["height"]) for row in found} == {(SIDE, SIDE)}


def test_what_was_fetched_and_what_is_stored_are_two_facts(server, tmp_path: Path) -> None:
    recipe = make_recipe(server, tmp_path, resize="keep_ratio")
    run_fetch(recipe)
    changed = 0
    for row in raw_rows(recipe):
        name = row["url"].rpartition("/")[2]
        body = PICTURES[f"/{name}"]
        assert row["sha256"] == hashlib.sha256(body).hexdigest()
        same = (row["width"], row["height"]) == (row["original_width"], row["original_height"])
        assert (row["stored_sha256"] is None) == same
        changed += not same
    assert 0 < changed < len(PICTURES)


def test_a_job_without_stored_sums_is_built_too(server, tmp_path: Path) -> None:
    """As an older headrace fetched it: one column less, no sums in the commit records."""
    recipe = make_recipe(server, tmp_path, resize="border")
    run_fetch(recipe)
    as_older_jobs(Path(recipe.job, "raw"))
    run_annotate(recipe)
    run_select(recipe)
    assert run_build(recipe).num_samples == len(PICTURES)


def as_older_jobs(raw: Path) -> None:
    for path in raw.glob("*.parquet"):
        pq.write_table(pq.read_table(path).drop_columns(["stored_sha256"]), path)
        record = raw / "commits" / f"{path.stem}.json"
        told = json.loads(record.read_text())
        del told["schema"], told["table"]
        record.write_text(json.dumps(told))


def test_a_resized_sample_shows_the_picture(server, tmp_path: Path) -> None:
    recipe = make_recipe(server, tmp_path, resize="center_crop")
    run_fetch(recipe)
    run_annotate(recipe)
    run_select(recipe)
    run_build(recipe)
    by_name = {row["url"].rpartition("/")[2]: row for row in index_rows(recipe)}
    for orientation in (1, 6):
        row = by_name[f"PNG-96-64-{orientation}"]
        shard = row["key"][:5]
        with Path(recipe.job, "dataset", "shards", f"{shard}.tar").open("rb") as tar:
            tar.seek(row["offset"])
            pixels = decode_rgb(tar.read(row["size"])).astype(int)
        whole = decode_rgb(PICTURES[f"/PNG-96-64-{orientation}"]).astype(int)
        height, width = whole.shape[:2]
        side = min(height, width)
        top, left = (height - side) // 2, (width - side) // 2
        square = Image.fromarray(whole[top : top + side, left : left + side].astype(np.uint8)).resize((SIDE, SIDE))
        assert abs(np.asarray(square).astype(int) - pixels).mean() < 12
