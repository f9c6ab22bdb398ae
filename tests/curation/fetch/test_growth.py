"""A list that grows: what is new is fetched into shards of its own, what was fetched stays as it is."""

import bz2
import gzip
import hashlib
import json
import lzma
import shutil
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from headrace.curation.fetch.config import FetchConfig, InputConfig
from headrace.curation.fetch.lists import spill as spilling
from headrace.curation.job import Job
from headrace.curation.raw.read import check_list_is_fetched, raw_shards, read_raw
from headrace.curation.stages import fetch as run_fetch
from headrace.curation.stages import plan_fetch


@pytest.fixture
def lists(tmp_path: Path, server: Any, web: Any) -> Any:
    """Return a function that writes rows [start, stop) as a list: `.jsonl`, `.csv`, `.txt` or `.parquet`."""

    def write(name: str, start: int, stop: int, *, append: bool = False) -> Path:
        path = tmp_path / "lists" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        records = []
        for number in range(start, stop):
            server.answers.setdefault(f"/{number}.jpg", web.reply(web.jpeg(number)))
            records.append({"url": server.url(f"/{number}.jpg"), "caption": f"image {number}", "page": number})
        if name.endswith(".parquet"):
            pq.write_table(pa.Table.from_pylist(records), path)
            return path
        lines = {
            ".jsonl": "".join(json.dumps(record) + "\n" for record in records),
            ".csv": ("" if append else "url,caption,page\n")
            + "".join(f'{record["url"]},"{record["caption"]}",{record["page"]}\n' for record in records),
            ".txt": "".join(record["url"] + "\n" for record in records),
        }
        with path.open("a" if append else "w") as file:
            file.write(lines[path.suffix])
        return path

    return write


def files_of(folder: Path) -> dict[str, str]:
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def rows_of(job: Path) -> list[dict[str, Any]]:
    return [row for shard in raw_shards(Job(str(job))) for row in read_raw(Job(str(job)), shard).to_pylist()]


def recipe(tmp_path: Path, server: Any, web: Any, job: str = "job", **settings: Any) -> Any:
    config = web.config_for(server, samples_per_shard=4, **settings.pop("fetch", {}))
    return web.recipe_for(tmp_path / job, settings.pop("urls", tmp_path / "lists"), config, **settings)


@pytest.mark.parametrize("compression", ["gz", "bz2", "xz", "zst"])
def test_a_further_part_of_a_compressed_list_is_new_rows(tmp_path: Path, compression: str) -> None:
    def part(start: int, stop: int) -> bytes:
        text = "".join(f"http://a.example/{number}.jpg\n" for number in range(start, stop)).encode()
        if compression == "zst":
            return bytes(pa.compress(text, "zstd", asbytes=True))
        if compression == "gz":
            return gzip.compress(text, mtime=0)
        return bytes({"bz2": bz2, "xz": lzma}[compression].compress(text))

    path = tmp_path / f"a.txt.{compression}"
    path.write_bytes(part(0, 5))
    config, fetch = InputConfig(urls=(str(path),)), FetchConfig(samples_per_shard=4)
    spilling.spill(config, str(tmp_path / "input"), seed=0, fetch=fetch)
    path.write_bytes(part(0, 5) + part(5, 12))
    first, second = spilling.spill(config, str(tmp_path / "input"), seed=0, fetch=fetch)
    assert (first.first_shard, second.first_shard) == (0, 2)
    rows = spilling.read_places(second.rows, 0, 7)
    assert sorted(rows["input_row"].to_pylist()) == list(range(5, 12))
    path.write_bytes(part(0, 13))  # packed anew
    with pytest.raises(ValueError, match=r"has other content in its first|had .* bytes and has"):
        spilling.spill(config, str(tmp_path / "input"), seed=0, fetch=fetch)


@pytest.mark.parametrize("suffix", [".jsonl", ".csv", ".txt"])
def test_rows_at_the_end_of_a_text_list_are_fetched_and_the_rest_stays(
    tmp_path: Path, server, web, lists, suffix: str
) -> None:
    columns = () if suffix == ".txt" else ("page",)
    lists(f"a{suffix}", 0, 10)
    asked = recipe(tmp_path, server, web, columns=columns)
    assert run_fetch(asked).rows == 10
    before = files_of(tmp_path / "job/raw")
    lists(f"a{suffix}", 10, 16, append=True)
    server.requests.clear()
    assert any("10 rows are planned; 6 rows are new" in line for line in plan_fetch(asked))
    assert any("its end" in line for line in plan_fetch(asked))
    assert server.requests == []
    assert (run_fetch(asked).rows, run_fetch(asked).fetched) == (16, 16)
    assert sorted(path for path, _ in server.requests) == sorted(f"/{number}.jpg" for number in range(10, 16))
    assert before.items() <= files_of(tmp_path / "job/raw").items()
    rows = rows_of(tmp_path / "job")
    assert sorted(row["input_row"] for row in rows) == list(range(16))
    assert all(row["url"].endswith(f"/{row['input_row']}.jpg") for row in rows)
    assert {row["input_file"] for row in rows} == {f"a{suffix}"}
    if columns:
        assert all(int(row["page"]) == row["input_row"] for row in rows)
    server.requests.clear()
    assert run_fetch(asked).rows == 16
    assert server.requests == []


def test_new_files_join_wherever_they_lie_and_names_in_the_tables_stay(tmp_path: Path, server, web, lists) -> None:
    lists("a.parquet", 0, 6)
    run_fetch(recipe(tmp_path, server, web, urls=tmp_path / "lists/a.parquet", columns=("page",)))
    lists("0.parquet", 6, 9)  # sorts before the other
    lists("more/a.jsonl", 9, 13)
    asked = recipe(tmp_path, server, web, columns=("page",))
    asked.input = type(asked.input)(urls=(f"{tmp_path}/lists", f"{tmp_path}/lists/more"), columns=("page",))
    assert run_fetch(asked).fetched == 13
    rows = rows_of(tmp_path / "job")
    assert sorted(row["page"] for row in rows) == list(range(13))
    names = {row["page"]: row["input_file"] for row in rows}
    assert (names[0], names[6], names[9]) == ("a.parquet", "0.parquet", "more/a.jsonl")
    plan = json.loads((tmp_path / "job/input/plan.json").read_text())
    assert [segment["first_shard"] for segment in plan["segments"]] == [0, 2]
    before = files_of(tmp_path / "job")
    assert run_fetch(asked).fetched == 13
    assert files_of(tmp_path / "job") == before


def test_retries_and_segments_take_turns_with_numbers_and_nothing_comes_twice(
    tmp_path: Path, server, web, lists
) -> None:
    lists("a.jsonl", 0, 8)
    for number in (1, 2, 9):
        server.answers[f"/{number}.jpg"] = web.reply(status="503 Busy")
    asked = recipe(tmp_path, server, web)
    run_fetch(asked)
    server.answers["/1.jpg"] = web.reply(web.jpeg(1))
    assert run_fetch(asked, retry_failed=True).retried == 1  # takes shard 2
    lists("b.jsonl", 8, 13)
    summary = run_fetch(asked)
    assert (summary.rows, summary.fetched, summary.retried) == (13, 11, 1)
    assert raw_shards(Job(asked.job)) == ["00000", "00001", "00002", "00003", "00004"]
    for number in (2, 9):
        server.answers[f"/{number}.jpg"] = web.reply(web.jpeg(number))
    server.requests.clear()
    summary = run_fetch(asked, retry_failed=True)
    assert sorted(path for path, _ in server.requests) == ["/2.jpg", "/9.jpg"]
    assert (summary.rows, summary.fetched, summary.retried) == (13, 13, 3)
    assert raw_shards(Job(asked.job))[-1] == "00005"
    fetched = [row["url"] for row in rows_of(tmp_path / "job") if row["status"] == "success"]
    assert len(fetched) == len(set(fetched)) == 13


@pytest.mark.parametrize("gone", ["runs", pytest.param("whole", marks=pytest.mark.full)])
def test_a_kill_while_a_segment_is_planned_ends_in_the_same_bytes(
    tmp_path: Path, server, web, lists, gone: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(spilling, "RUN_ROWS", 4)
    lists("a.jsonl", 0, 5)
    asked = recipe(tmp_path, server, web)
    run_fetch(asked)
    shutil.copytree(tmp_path / "job", tmp_path / "killed")
    lists("a.jsonl", 5, 15, append=True)
    run_fetch(recipe(tmp_path, server, web, executor="local"))
    whole = files_of(tmp_path / "job")
    assert len(list((tmp_path / "job/input/segments/00001/runs").iterdir())) == 3
    # What a kill leaves: the plan and some of the runs; before that, only a temporary file.
    if gone == "runs":
        shutil.copy(tmp_path / "job/input/plan.json", tmp_path / "killed/input/plan.json")
        runs = tmp_path / "killed/input/segments/00001/runs"
        shutil.copytree(tmp_path / "job/input/segments/00001/runs", runs)
        (runs / "00001.parquet").unlink()
        (runs / ".00001.parquet.x.tmp").write_bytes(b"half")
        with pytest.raises(ValueError, match="of the 5 raw shards of the list are not finished"):
            check_list_is_fetched(Job(str(tmp_path / "killed")))
        lists("a.jsonl", 15, 17, append=True)  # it grows on meanwhile: the planned part is what it was
        spilling.spill(asked.input, str(tmp_path / "killed/input"), seed=0, fetch=FetchConfig(samples_per_shard=4))
        for name in ("00000", "00001", "00002"):
            part = f"input/segments/00001/runs/{name}.parquet"
            assert hashlib.sha256((tmp_path / "killed" / part).read_bytes()).hexdigest() == whole[part]
        return
    (tmp_path / "killed/input/.plan.json.x.tmp").write_bytes(b"half")
    run_fetch(recipe(tmp_path, server, web, "killed"))
    assert files_of(tmp_path / "killed") == whole


def test_what_was_taken_may_not_change(tmp_path: Path, server, web, lists) -> None:
    lists("a.jsonl", 0, 5)
    lists("b.parquet", 5, 8)
    path = lists("c.csv", 8, 12)
    asked = recipe(tmp_path, server, web)
    run_fetch(asked)
    before = files_of(tmp_path / "job")
    kept = {path.name: path.read_bytes() for path in (tmp_path / "lists").iterdir()}
    changes = {
        "a.jsonl has other content in its first": (
            "a.jsonl",
            kept["a.jsonl"].replace(b"image 3", b"image 4") + b"{}\n",
        ),
        "a.jsonl had .* bytes and has 5": ("a.jsonl", b"short"),
        "b.parquet had .* a parquet list grows by files": ("b.parquet", kept["b.parquet"] + b"more"),
        "c.csv is gone": ("c.csv", None),
        "rows were added to c.csv, but what follows changes row": ("c.csv", kept["c.csv"][:-1] + b",more\n"),
    }
    for message, (name, data) in changes.items():
        if message.startswith("rows were"):  # the list had no line end, so what follows belongs to its last row
            path.write_bytes(kept["c.csv"][:-1])
            asked = recipe(tmp_path, server, web, "open-end")
            run_fetch(asked)
            before = None
        target = tmp_path / "lists" / name
        if data is None:
            target.unlink()
        else:
            target.write_bytes(data)
        for call in (plan_fetch, run_fetch):
            with pytest.raises(ValueError, match=rf"{message}.*add new rows as files of their own"):
                call(asked)
        assert before is None or files_of(tmp_path / "job") == before
        target.write_bytes(kept[name])
    path.write_bytes(kept["c.csv"])  # the line end alone changes nothing
    assert run_fetch(asked).rows == 12


def test_a_column_of_another_type_is_refused_before_anything_is_planned(tmp_path: Path, server, web, lists) -> None:
    lists("a.jsonl", 0, 5)
    asked = recipe(tmp_path, server, web, columns=("page",))
    run_fetch(asked)
    before = files_of(tmp_path / "job")
    text = lists("b.jsonl", 5, 9).read_text()
    (tmp_path / "lists/b.jsonl").write_text(text.replace('"page": 6', '"page": "six"'))
    for call in (plan_fetch, run_fetch):
        with pytest.raises(ValueError, match=r"b\.jsonl: column 'page' is string, and int64 in the rows that this job"):
            call(asked)
    assert files_of(tmp_path / "job") == before


def test_a_plan_of_before_segments_goes_on_and_grows(tmp_path: Path, server, web, lists) -> None:
    lists("a.jsonl", 0, 6)
    asked = recipe(tmp_path, server, web)
    run_fetch(asked)
    path = tmp_path / "job/input/plan.json"
    plan = json.loads(path.read_text())
    del plan["input"]["format"]  # a setting that the older headrace did not know
    segment = plan["segments"][0]
    old = {
        "files": [{name: file[name] for name in ("name", "bytes", "sha256")} for file in segment["files"]],
        "rows": [file["rows"] for file in segment["files"]],
        "reader": segment["reader"],
        **{name: plan[name] for name in ("input", "samples_per_shard", "seed")},
    }
    path.write_text(json.dumps(old))
    before = files_of(tmp_path / "job")
    server.requests.clear()
    assert run_fetch(asked).rows == 6
    assert files_of(tmp_path / "job") == before
    assert server.requests == []
    lists("b.txt", 6, 9)
    asked.input = type(asked.input)(urls=(str(tmp_path / "lists"),))
    assert run_fetch(asked).fetched == 9
    raw = {name: value for name, value in before.items() if name.startswith("raw/")}
    assert raw.items() <= files_of(tmp_path / "job").items()
