"""Earlier jobs and img2dataset's output as a cache by URL: no request for what is there, and nothing damaged taken."""

import hashlib
import io
import json
import shutil
import tarfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from headrace.curation.job import Job
from headrace.curation.raw.read import raw_shards, read_raw
from headrace.curation.stages import fetch as run_fetch
from headrace.curation.stages import plan_fetch
from headrace.shards.tar import ShardWriter


def write_list(path: Path, server: Any, numbers: Any, **columns: Any) -> Path:
    rows = [{"url": server.url(f"/{number}.jpg"), "caption": f"image {number}", **columns} for number in numbers]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def rows_of(job: Path) -> dict[str, dict[str, Any]]:
    found = [row for shard in raw_shards(Job(str(job))) for row in read_raw(Job(str(job)), shard).to_pylist()]
    return {row["url"].rpartition("/")[2]: row for row in found}


def images_of(raw: Path) -> dict[str, bytes]:
    found = {}
    for path in sorted(raw.glob("*.tar")):
        with tarfile.open(path) as tar:
            found |= {member.name: tar.extractfile(member).read() for member in tar}
    return found


@pytest.fixture
def earlier(server: Any, web: Any, tmp_path: Path) -> Any:
    """An earlier job of images 0 to 9, of which 3 failed; the server serves twelve."""
    for number in range(12):
        server.answers[f"/{number}.jpg"] = web.reply(web.jpeg(number))
    server.answers["/3.jpg"] = web.reply(status="404 Not Found")
    config = web.config_for(server, samples_per_shard=4)
    run_fetch(web.recipe_for(tmp_path / "earlier", write_list(tmp_path / "a.jsonl", server, range(10)), config))
    server.requests.clear()
    return tmp_path / "earlier"


def later(web: Any, server: Any, tmp_path: Path, job: str = "later", **settings: Any) -> Any:
    urls = settings.pop("urls", None) or write_list(tmp_path / "b.jsonl", server, range(2, 12))
    config = web.config_for(server, samples_per_shard=3, **settings.pop("fetch", {}))
    settings.setdefault("reuse", (str(tmp_path / "earlier"),))
    return web.recipe_for(tmp_path / job, urls, config, **settings)


def test_what_an_earlier_job_has_is_not_asked_for_again(server, web, tmp_path: Path, earlier: Path) -> None:
    asked = later(web, server, tmp_path)
    assert any(f"reuse what 3 raw shards of {earlier} have" in line for line in plan_fetch(asked))
    summary = run_fetch(asked)
    assert sorted(path for path, _ in server.requests) == ["/10.jpg", "/11.jpg", "/3.jpg"]
    assert (summary.rows, summary.fetched, summary.reused) == (10, 9, 7)
    assert "7 of the images reused" in str(summary)
    rows = rows_of(tmp_path / "later")
    images = images_of(tmp_path / "later/raw")
    keys = {name: row["key"] for name, row in rows_of(earlier).items()}
    for number in (2, 4, 5, 6, 7, 8, 9, 10, 11):
        row, data = rows[f"{number}.jpg"], web.jpeg(number)
        assert images[f"{row['key']}.jpg"] == data
        assert row["sha256"] == hashlib.sha256(data).hexdigest()
        expected = f"{earlier}#{keys[f'{number}.jpg']}" if number < 10 else None
        assert row["reused_from"] == expected
        assert json.loads(images[f"{row['key']}.json"]).get("reused_from") == expected
    assert rows["3.jpg"]["error_class"] == "http-4xx"


def test_the_same_bytes_for_any_workers_and_after_a_kill(server, web, tmp_path: Path, earlier: Path) -> None:
    def files_of(job: str) -> dict[str, bytes]:
        root = tmp_path / job
        return {str(path.relative_to(root)): path.read_bytes() for path in root.rglob("*") if path.is_file()}

    run_fetch(later(web, server, tmp_path))
    whole = files_of("later")
    run_fetch(later(web, server, tmp_path, "other", executor="local"))
    assert files_of("other") == whole
    asked = later(web, server, tmp_path, "other")
    # Killed while rows were looked up, and with one shard left to do.
    (tmp_path / "other/input/runs-reuse/reuse.json").unlink()
    (tmp_path / "other/input/runs-reuse.tmp/index").mkdir(parents=True)
    (tmp_path / "other/raw/commits/00001.json").unlink()
    run_fetch(asked)
    assert files_of("other") == whole
    shutil.rmtree(earlier)  # what is finished needs no source
    assert run_fetch(asked).reused == 7


def test_failures_are_taken_over_only_if_asked(server, web, tmp_path: Path, earlier: Path) -> None:
    run_fetch(later(web, server, tmp_path, reuse_failures=("http-4xx",)))
    assert "/3.jpg" not in {path for path, _ in server.requests}
    row = rows_of(tmp_path / "later")["3.jpg"]
    assert (row["error_class"], row["error_message"]) == (
        "http-4xx",
        f"as in {earlier}#{rows_of(earlier)['3.jpg']['key']}",
    )


def test_a_retry_takes_what_another_job_has(server, web, tmp_path: Path, earlier: Path) -> None:
    for number in range(12):
        server.answers[f"/{number}.jpg"] = web.reply(status="503 Busy")
    asked = later(web, server, tmp_path, reuse=())
    assert run_fetch(asked).fetched == 0
    asked.input = replace(asked.input, reuse=(str(earlier),))
    summary = run_fetch(asked, retry_failed=True)
    assert (summary.retried, summary.reused) == (7, 7)


@pytest.mark.usefixtures("earlier")
def test_a_row_with_an_expected_sum_takes_no_other_image(server, web, tmp_path: Path) -> None:
    server.answers["/2.jpg"] = web.reply(web.jpeg(77))
    urls = tmp_path / "sums.jsonl"
    write_list(urls, server, [2], sum=hashlib.sha256(web.jpeg(77)).hexdigest())
    assert run_fetch(later(web, server, tmp_path, urls=urls, sha256_column="sum")).fetched == 1
    assert [path for path, _ in server.requests] == ["/2.jpg"]


@pytest.mark.parametrize("damage", ["image", "tar-cut", "tar-gone", "table"])
def test_a_damaged_source_is_named_and_refused(server, web, tmp_path: Path, earlier: Path, damage: str) -> None:
    tar = earlier / "raw/00001.tar"
    if damage == "image":
        data = bytearray(tar.read_bytes())
        with tarfile.open(tar) as members:
            for member in members:
                if member.name.endswith(".jpg"):
                    data[member.offset_data + 200] ^= 255
        tar.write_bytes(data)
        named = r"raw/00001\.tar: .*#00001000. at byte .*sha256 is .* its table says"
    elif damage == "tar-cut":
        tar.write_bytes(tar.read_bytes()[:3000])
        named = r"raw/00001\.tar: 3000 bytes, .*commits/00001\.json says"
    elif damage == "tar-gone":
        tar.unlink()
        named = r"raw/00001\.tar is missing"
    else:
        path = earlier / "raw/00001.parquet"
        path.write_bytes(path.read_bytes()[:-1] + b"?")
        named = r"raw/00001\.parquet: not the table that was finished"
    with pytest.raises((ValueError, OSError), match=named):
        run_fetch(later(web, server, tmp_path))
    assert server.requests == [] or damage == "image"


@pytest.mark.usefixtures("earlier")
def test_what_is_no_source_is_refused_by_the_dry_run(server, web, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    for entry, message in (
        (tmp_path / "empty", "no job .no job.json there., and no img2dataset output"),
        (tmp_path / "later", "is this job itself"),
    ):
        for call in (plan_fetch, run_fetch):
            with pytest.raises(ValueError, match=message):
                call(later(web, server, tmp_path, reuse=(str(entry),)))
    with pytest.raises(ValueError, match="reuse_failures: unknown nothing"):
        later(web, server, tmp_path, reuse_failures=("nothing",))


def encoded_again(data: bytes) -> bytes:
    stream = io.BytesIO()
    Image.open(io.BytesIO(data)).resize((20, 16)).save(stream, "JPEG", quality=95)
    return stream.getvalue()


def foreign(folder: Path, server: Any, web: Any, numbers: list[int], *, sums: bool = True) -> Path:
    """An output of img2dataset, whose images are encoded again; its sums are of the bytes as fetched."""
    folder.mkdir()
    rows = []
    with ShardWriter(folder / "00000.tar") as writer:
        for place, number in enumerate(numbers):
            key = f"{place:09d}"
            writer.write(key, {"jpg": encoded_again(web.jpeg(number)), "json": b"{}"})
            row = {"key": key, "url": server.url(f"/{number}.jpg"), "status": "success", "error_message": None}
            sizes = {"width": 20, "height": 16, "original_width": 32, "original_height": 32}
            sum_of = {"sha256": hashlib.sha256(web.jpeg(number)).hexdigest()} if sums else {}
            rows.append({**row, **sizes, **sum_of})
    pq.write_table(pa.Table.from_pylist(rows), folder / "00000.parquet")
    (folder / "00000_stats.json").write_text(json.dumps({"count": len(rows), "successes": len(rows)}))
    return folder


@pytest.mark.parametrize("sums", [True, False])
def test_the_output_of_img2dataset_is_a_source(server, web, tmp_path: Path, earlier: Path, sums: bool) -> None:
    source = foreign(tmp_path / "foreign", server, web, [2, 3, 10], sums=sums)
    asked = later(web, server, tmp_path, reuse=(str(earlier), str(source)))
    assert run_fetch(asked).reused == 9
    assert [path for path, _ in server.requests] == ["/11.jpg"]
    rows, images = rows_of(tmp_path / "later"), images_of(tmp_path / "later/raw")
    assert rows["2.jpg"]["reused_from"].startswith(str(earlier))  # the first source counts
    row, data = rows["10.jpg"], encoded_again(web.jpeg(10))
    assert images[f"{row['key']}.jpg"] == data
    assert row["stored_sha256"] == hashlib.sha256(data).hexdigest()
    assert row["sha256"] == (hashlib.sha256(web.jpeg(10)).hexdigest() if sums else None)
    assert (row["width"], row["original_width"], row["reused_from"]) == (20, 32, f"{source}#000000002")
    # A job that reuses that job knows the sum of what it stores.
    assert run_fetch(later(web, server, tmp_path, "third", reuse=(str(tmp_path / "later"),))).reused == 10
    assert rows_of(tmp_path / "third")["10.jpg"]["stored_sha256"] == row["stored_sha256"]


def test_the_cap_on_bytes_holds_for_what_is_there_already(server, web, tmp_path: Path, earlier: Path) -> None:
    asked = later(web, server, tmp_path, fetch={"max_bytes": 100})
    assert run_fetch(asked).fetched == 0
    row = rows_of(tmp_path / "later")["2.jpg"]
    assert row["error_class"] == "too-large"
    assert f"bytes in {earlier}#" in row["error_message"]


@pytest.mark.parametrize(
    ("column", "value", "message"), [("key", None, "a key that is null"), ("sha256", "\u20ac" * 64, "")]
)
def test_a_source_of_strange_values_is_named_or_taken_for_unknown(
    server, web, tmp_path: Path, column: str, value: str | None, message: str
) -> None:
    server.answers["/2.jpg"] = web.reply(web.jpeg(2))
    path = foreign(tmp_path / "foreign", server, web, [2]) / "00000.parquet"
    rows = [{**row, column: value} for row in pq.read_table(path).to_pylist()]
    pq.write_table(pa.Table.from_pylist(rows, pq.read_schema(path)), path)
    asked = later(web, server, tmp_path, urls=write_list(tmp_path / "c.jsonl", server, [2]), reuse=(str(path.parent),))
    if message:
        with pytest.raises(ValueError, match=rf"foreign: raw shard 00000: {message}"):
            run_fetch(asked)
    else:
        assert run_fetch(asked).reused == 1
        assert rows_of(tmp_path / "later")["2.jpg"]["sha256"] is None
