"""Hits of a blocklist in fetch: not requested, not stored, not named."""

import csv
import hashlib
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from headrace.curation.blocklist import BlocklistConfig
from headrace.curation.fetch.stage import run_fetch
from headrace.curation.job import Job


def write(path: Path, *values: str) -> str:
    path.write_text("".join(hashlib.sha256(value.encode()).hexdigest() + "\n" for value in values))
    return str(path)


def test_a_hit_is_neither_requested_nor_stored_nor_named(server, web, tmp_path: Path) -> None:
    for number in range(5):
        server.answers[f"/{number}.jpg"] = web.reply(web.jpeg(number))
    server.answers["/moved"] = web.redirect("/3.jpg")
    paths = ["/0.jpg", "/1.jpg", "/2.jpg", "/moved", "/4.jpg"]
    with (tmp_path / "list.csv").open("w") as file:
        rows = csv.writer(file)
        rows.writerow(["url", "caption", "note"])
        rows.writerows([server.url(path), f"words of {path}", f"note of {path}"] for path in paths)
    image = tmp_path / "images"
    image.write_text(hashlib.sha256(web.jpeg(2)).hexdigest())
    urls = write(tmp_path / "urls", server.url("/1.jpg"), server.url("/3.jpg"))
    config = web.config_for(server, blocklist=BlocklistConfig(sha256=(str(image),), urls=(urls,)))
    recipe = web.recipe_for(tmp_path / "job", tmp_path / "list.csv", config, columns=("note",))
    summary = run_fetch(Job(recipe.job), recipe.input, config, seed=0, engine=recipe.engine)
    assert summary.failed == {"blocklisted": 3}

    asked = [path for path, _ in server.requests]
    assert sorted(asked) == ["/0.jpg", "/2.jpg", "/4.jpg", "/moved"]
    table = pq.read_table(tmp_path / "job/raw/00000.parquet").to_pylist()
    hits = [row for row in table if row["error_class"] == "blocklisted"]
    assert sorted(row["input_row"] for row in hits) == [1, 2, 3]
    for row in hits:
        assert [row[name] for name in ("url", "caption", "sha256", "note")] == [None] * 4
        assert row["uid"] == hashlib.md5(row["key"].encode()).hexdigest()
    stored = b"".join(path.read_bytes() for path in (tmp_path / "job/raw").rglob("*") if path.is_file())
    for path in ("/1.jpg", "/2.jpg", "/moved", "/3.jpg"):
        assert path.encode() not in stored
    assert web.jpeg(2) not in stored


def test_a_host_is_blocked_by_its_name_and_a_damaged_list_stops_the_run_first(server, web, tmp_path: Path) -> None:
    server.answers["/a"] = web.reply(web.jpeg())
    urls = write(tmp_path / "urls", "127.0.0.1")
    config = web.config_for(server, blocklist=BlocklistConfig(urls=(urls,)))
    assert web.fetch(server.url("/a"), config).error_class == "blocklisted"
    (tmp_path / "list.txt").write_text(server.url("/a") + "\n")
    (tmp_path / "urls").write_text("abc\n")
    damaged = web.config_for(server, blocklist=BlocklistConfig(urls=(urls,)))
    recipe = web.recipe_for(tmp_path / "job", tmp_path / "list.txt", damaged)
    with pytest.raises(ValueError, match="line 1: expected 64 hexadecimal digits"):
        run_fetch(Job(recipe.job), recipe.input, damaged, seed=0, engine=recipe.engine)
    assert server.requests == []
