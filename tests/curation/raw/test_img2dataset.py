"""Raw shards of img2dataset become tables of the contract."""

import hashlib
import json
import os
import subprocess
import sys
import threading
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from headrace import files, urlpath
from headrace.config import build_config
from headrace.curation import stages
from headrace.curation.fetch.config import FetchConfig, InputConfig
from headrace.curation.job import Job
from headrace.curation.raw.img2dataset import adopt_raw, foreign_error_class
from headrace.curation.raw.read import check_raw_tar, raw_shards, raw_tar_url, read_raw
from headrace.curation.raw.schema import RAW_COLUMNS
from headrace.curation.raw.write import Outcome, RawShard, write_raw_shard
from headrace.curation.recipe import Recipe
from headrace.curation.stages import fetch as run_fetch
from headrace.curation.stages import plan_fetch
from headrace.shards.tar import scan_tar
from headrace.shards.units import EngineConfig
from headrace.shards.verify import verify_dataset


def foreign_folder(folder: Path, *, unfinished: bool = True) -> Path:
    folder.mkdir()
    table = pa.table(
        {
            "caption": ["a", None, "c"],
            "url": ["http://a/1", "http://a/2", "http://a/3"],
            "key": ["000000000", "000000001", "000000002"],
            "status": ["success", "failed_to_download", "failed_to_resize"],
            "error_message": [None, "HTTP Error 404: Not Found", "image too small"],
            "width": pa.array([10, None, None], pa.int64()),
            "similarity": [0.1, 0.2, 0.3],
        }
    )
    names = ["00000", "00002", *(["00003"] if unfinished else [])]
    for name in names:
        pq.write_table(table, folder / f"{name}.parquet")
        (folder / f"{name}.tar").write_bytes(bytes(1024))
        if name != "00003":
            (folder / f"{name}_stats.json").write_text("{}")
    return folder


def recipe_of(job: Path, raw: Path) -> Any:
    return SimpleNamespace(
        job=str(job),
        input=InputConfig(raw=str(raw)),
        fetch=FetchConfig(),
        seed=0,
        engine=EngineConfig(executor="inline"),
    )


def test_a_foreign_folder_is_used_where_it_lies(tmp_path: Path) -> None:
    recipe = recipe_of(tmp_path / "job", foreign_folder(tmp_path / "raw"))
    assert plan_fetch(recipe) == [f"use the 2 finished raw shards in {tmp_path / 'raw'}"]
    assert not (tmp_path / "job").exists()
    summary = run_fetch(recipe)
    assert (summary.rows, summary.fetched, summary.failed) == (6, 2, {"http-4xx": 2, "image-too-small": 2})
    job = Job(recipe.job)
    assert raw_shards(job) == ["00000", "00002"]
    assert raw_tar_url(job, "00002") == f"{tmp_path}/raw/00002.tar"
    run_fetch(recipe)


@pytest.mark.parametrize("whose", ["own", "others"])
def test_whose_the_raw_shards_are_is_asked_once_however_many_there_are(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, whose: str
) -> None:
    job, folder = Job(f"memory://{tmp_path}/job"), foreign_folder(tmp_path / "raw", unfinished=False)
    if whose == "others":
        adopt_raw(job, str(folder))
    else:
        rows = pa.table({"url": ["http://a/1"], "caption": ["a"], "input_file": ["list"], "input_row": [0]})
        for number in range(3):
            write_raw_shard(RawShard(job.raw, number, 100), rows, [Outcome("timeout", "slow")], lambda _: b"")
    asked: list[str] = []
    read = files.read_bytes

    def counted(url: str) -> bytes:
        asked.append(urlpath.basename(url))
        return read(url)

    monkeypatch.setattr(files, "read_bytes", counted)
    for shard in raw_shards(job) * 3:
        tar = check_raw_tar(job, shard), raw_tar_url(job, shard), len(read_raw(job, shard))
        assert tar[1].startswith(str(folder) if whose == "others" else job.raw)
    assert asked.count("foreign.json") <= 1


def test_what_a_foreign_table_lacks_is_filled(tmp_path: Path) -> None:
    recipe = recipe_of(tmp_path / "job", foreign_folder(tmp_path / "raw"))
    run_fetch(recipe)
    table = read_raw(Job(recipe.job), "00002")
    assert tuple(table.column_names) == (*RAW_COLUMNS, "similarity")
    assert table.column("input_file").to_pylist() == ["00002.parquet"] * 3
    assert table.column("input_row").to_pylist() == [0, 1, 2]
    assert table.column("error_class").to_pylist() == [None, "http-4xx", "image-too-small"]
    assert table.column("uid").to_pylist()[1] == hashlib.md5(b"http://a/2").hexdigest()
    assert table.column("format").null_count == 3
    assert table.schema.field("width").type == pa.int32()


def test_a_foreign_uid_is_kept(tmp_path: Path) -> None:
    folder = foreign_folder(tmp_path / "raw")
    table = pq.read_table(folder / "00000.parquet").append_column("uid", [["x", "y", "z"]])
    pq.write_table(table, folder / "00000.parquet")
    run_fetch(recipe_of(tmp_path / "job", folder))
    assert read_raw(Job(str(tmp_path / "job")), "00000").column("uid").to_pylist() == ["x", "y", "z"]


def test_another_source_than_the_jobs_is_refused(tmp_path: Path) -> None:
    run_fetch(recipe_of(tmp_path / "job", foreign_folder(tmp_path / "raw")))
    other = foreign_folder(tmp_path / "other")
    with pytest.raises(ValueError, match="began with other raw shards"):
        run_fetch(recipe_of(tmp_path / "job", other))
    with pytest.raises(ValueError, match="retry-failed"):
        run_fetch(recipe_of(tmp_path / "job", tmp_path / "raw"), retry_failed=True)


def test_a_folder_without_finished_shards_is_refused(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    for folder in (tmp_path / "empty", tmp_path / "absent"):
        with pytest.raises(ValueError, match="no finished shard"):
            run_fetch(recipe_of(tmp_path / "job", folder))


def test_a_damaged_table_is_a_clear_error(tmp_path: Path) -> None:
    folder = foreign_folder(tmp_path / "raw")
    run_fetch(recipe_of(tmp_path / "job", folder))
    (folder / "00000.parquet").write_bytes(b"rubbish")
    with pytest.raises(ValueError, match=r"00000\.parquet.*not a parquet"):
        read_raw(Job(str(tmp_path / "job")), "00000")
    pq.write_table(pa.table({"x": [1]}), folder / "00000.parquet")
    with pytest.raises(ValueError, match="no column 'key'"):
        read_raw(Job(str(tmp_path / "job")), "00000")
    twice = pa.table({"key": ["a", "a"], "url": ["x", "y"], "status": ["success", "success"]})
    pq.write_table(twice, folder / "00000.parquet")
    with pytest.raises(ValueError, match="a key comes twice"):
        read_raw(Job(str(tmp_path / "job")), "00000")


@pytest.mark.parametrize(
    ("message", "error_class"),
    [
        ("HTTP Error 403: Forbidden", "http-4xx"),
        ("HTTP Error 502: Bad Gateway", "http-5xx"),
        ("<urlopen error [Errno 111] Connection refused>", "connect"),
        ("<urlopen error [Errno -2] Name or service not known>", "dns"),
        ("<urlopen error [Errno -3] Temporary failure in name resolution>", "dns"),
        ("<urlopen error timed out>", "timeout"),
        ("<urlopen error [SSL: CERTIFICATE_VERIFY_FAILED] certificate verify failed>", "tls"),
        ("Use of image disallowed by X-Robots-Tag directive", "opted-out"),
        ("Image decoding error", "not-image"),
        ("something new", "protocol"),
    ],
)
def test_what_img2dataset_says_gets_a_class(message: str, error_class: str) -> None:
    assert foreign_error_class("failed_to_download", message) == error_class


IMG2DATASET = """
import sys
from img2dataset import download
if __name__ == "__main__":
    download(
        url_list=sys.argv[1], input_format="parquet", url_col="url", caption_col="caption", output_format="webdataset",
        output_folder=sys.argv[2], processes_count=1, thread_count=4, image_size=32, resize_mode="keep_ratio",
        resize_only_if_bigger=True, number_sample_per_shard=8, enable_wandb=False, retries=0, timeout=60,
    )
"""


class Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *_: Any) -> None:
        pass


@pytest.mark.full
def test_the_output_of_the_real_img2dataset_is_read(tmp_path: Path) -> None:
    pytest.importorskip("img2dataset")
    web = tmp_path / "web"
    web.mkdir()
    for number in range(10):
        Image.new("RGB", (64, 40), (number * 20, 100, 50)).save(web / f"{number}.jpg")
    (web / "page.jpg").write_text("<html>not an image</html>")
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(web)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    base = f"http://127.0.0.1:{server.server_address[1]}"
    urls = [f"{base}/{name}" for name in (*(f"{number}.jpg" for number in range(10)), "page.jpg", "absent.jpg")]
    urls.append("http://127.0.0.1:9/refused.jpg")
    pq.write_table(pa.table({"url": urls, "caption": [f"row {row}" for row in range(13)]}), tmp_path / "urls.parquet")
    (tmp_path / "run.py").write_text(IMG2DATASET)
    try:
        subprocess.run(
            [sys.executable, tmp_path / "run.py", tmp_path / "urls.parquet", tmp_path / "out"],
            check=True,
            capture_output=True,
            timeout=280,
            env={**os.environ, "NO_ALBUMENTATIONS_UPDATE": "1", "WANDB_MODE": "disabled"},
            cwd=tmp_path,
        )
    finally:
        server.shutdown()
        server.server_close()
    recipe = recipe_of(tmp_path / "job", tmp_path / "out")
    summary = run_fetch(recipe)
    assert (summary.rows, summary.fetched) == (13, 10)
    assert summary.failed == {"not-image": 1, "http-4xx": 1, "connect": 1}
    job = Job(recipe.job)
    for shard in raw_shards(job):
        table = read_raw(job, shard)
        assert tuple(table.column_names[: len(RAW_COLUMNS)]) == RAW_COLUMNS
        fetched = [row for row in table.to_pylist() if row["status"] == "success"]
        members = {member.name for member in scan_tar(raw_tar_url(job, shard), allow_missing_end=True)}
        for row in fetched:
            assert (row["width"], row["height"], row["original_width"], row["original_height"]) == (51, 32, 64, 40)
            assert row["uid"]
            assert f"{row['key']}.jpg" in members
    assert json.loads((tmp_path / "job/raw/foreign.json").read_text())["shards"] == raw_shards(job)
    # Its sums are of the bytes before it resized them.
    settings = {
        "job": recipe.job,
        "unsafe_images": "off",
        "input": {"raw": str(tmp_path / "out")},
        "annotate": {"faces": None},
        "select": [],
        "build": {"blur_faces": False},
        "engine": {"executor": "inline"},
    }
    whole = build_config(Recipe, settings)
    stages.annotate(whole)
    stages.select(whole)
    assert stages.build(whole).num_samples == 10
    assert list(verify_dataset(f"{recipe.job}/dataset")) == []
