"""The real img2dataset asks for the URLs: screened before, and all the rest ours."""

import hashlib
from pathlib import Path
from typing import Any

import pytest

from headrace.config import build_config
from headrace.curation.fetch.config import FetchConfig
from headrace.curation.job import Job
from headrace.curation.raw.read import raw_shards, read_raw
from headrace.curation.stages import fetch as run_fetch


def test_it_must_be_accepted_that_redirects_are_not_screened() -> None:
    with pytest.raises(ValueError, match=r"follows redirects by itself.*accept_unscreened: true"):
        build_config(FetchConfig, {"engine": "img2dataset"})


def rows_of(job: Path) -> dict[str, dict[str, Any]]:
    found = [row for shard in raw_shards(Job(str(job))) for row in read_raw(Job(str(job)), shard).to_pylist()]
    return {str(row["url"]).rpartition("/")[2]: row for row in found}


@pytest.mark.full
def test_the_real_one_gets_what_passed_the_screening_and_the_shards_are_ours(
    server: Any, forbidden: Any, web: Any, tmp_path: Path
) -> None:
    pytest.importorskip("img2dataset")
    for number in range(6):
        server.answers[f"/{number}.jpg"] = web.reply(web.jpeg(number, size=64))
    server.answers["/page.jpg"] = web.reply(b"<html>nothing</html>")
    server.answers["/small.jpg"] = web.reply(web.jpeg(9, size=16))
    server.answers["/busy.jpg"] = web.reply(status="503 Busy")
    paths = [*(f"/{number}.jpg" for number in range(6)), "/0.jpg", "/page.jpg", "/small.jpg", "/busy.jpg", "/gone.jpg"]
    urls = [*(server.url(path) for path in paths), "file:///etc/passwd", forbidden.url("/image.jpg")]
    (tmp_path / "list.txt").write_text("".join(url + "\n" for url in urls))
    settings = {"samples_per_shard": 20, "min_image_size": 32, "resize": "keep_ratio", "image_size": 48}
    both = {}
    for engine in ("headrace", "img2dataset"):
        config = web.config_for(server, engine=engine, accept_unscreened=True, concurrency=4, **settings)
        recipe = web.recipe_for(tmp_path / engine, tmp_path / "list.txt", config)
        both[engine] = run_fetch(recipe)
    assert (both["img2dataset"].rows, both["img2dataset"].fetched) == (13, 7)
    assert forbidden.num_connections == 0
    rows, expected = rows_of(tmp_path / "img2dataset"), rows_of(tmp_path / "headrace")
    for name, row in rows.items():
        told = {key: value for key, value in row.items() if key != "error_message"}
        assert told == {key: value for key, value in expected[name].items() if key != "error_message"}
    classes = {name: row["error_class"] for name, row in rows.items() if row["error_class"]}
    assert classes == {
        "page.jpg": "not-image",
        "small.jpg": "image-too-small",
        "busy.jpg": "http-5xx",
        "gone.jpg": "http-4xx",
        "passwd": "refused-scheme",
        "image.jpg": "refused-address",
    }
    assert rows["1.jpg"]["sha256"] == hashlib.sha256(web.jpeg(1, size=64)).hexdigest()
    assert {path.name: path.read_bytes() for path in (tmp_path / "img2dataset/raw").glob("*.tar")} == {
        path.name: path.read_bytes() for path in (tmp_path / "headrace/raw").glob("*.tar")
    }
    server.answers["/busy.jpg"] = web.reply(web.jpeg(7, size=64))
    assert run_fetch(recipe, retry_failed=True).retried == 1
