"""Lists in every format give the same rows; what cannot be read is a row too, or a clear error."""

import csv
import dataclasses
import gzip
import json
import tracemalloc
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from list_reading import read

from headrace.config import build_config
from headrace.curation.fetch.config import FetchConfig, InputConfig
from headrace.curation.fetch.lists.inputs import list_files
from headrace.curation.fetch.lists.table import check_list, scan, tables

RECORDS = [
    {"url": "http://a.example/1.jpg", "caption": "one, two", "score": 0.5, "tags": ["x", "y"]},
    {"url": "http://a.example/2.jpg", "caption": 'a "quoted"\tone', "score": 2.0, "tags": None},
    {"url": None, "caption": "no url", "score": None, "tags": []},
    {"url": "http://a.example/\u00e4.jpg", "caption": None, "score": -1.5, "tags": ["\u00e9"]},
]


def write(path: Path, records: list[dict[str, Any]]) -> Path:
    kind = path.name.removesuffix(".gz").rpartition(".")[2]
    if kind == "parquet":
        pq.write_table(pa.Table.from_pylist(records), path)
        return path
    opener = gzip.open if path.name.endswith(".gz") else open
    with opener(path, "wt", encoding="utf-8", newline="") as file:
        if kind == "json":
            json.dump(records, file)
        elif kind in ("jsonl", "ndjson"):
            file.writelines(json.dumps(record) + "\n" for record in records)
        elif kind == "txt":
            file.writelines((record["url"] or "") + "\n" for record in records)
        elif kind == "tsv":
            cells = [list(records[0]), *(["" if value is None else value for value in r.values()] for r in records)]
            file.writelines("\t".join(str(cell).replace("\t", " ") for cell in row) + "\n" for row in cells)
        else:
            writer = csv.DictWriter(file, list(records[0]))
            writer.writeheader()
            writer.writerows(records)
    return path


@pytest.mark.parametrize(
    "name",
    ["l.csv", "l.tsv", "l.json", "l.jsonl", "l.ndjson", "l.parquet", "l.csv.gz", "l.jsonl.gz", "l.json.gz", "l.tsv.gz"],
)
def test_every_format_gives_the_same_rows(tmp_path: Path, name: str) -> None:
    rows = read(write(tmp_path / name, RECORDS), columns=("score",))
    assert [row["url"] or None for row in rows] == [record["url"] for record in RECORDS]
    captions = [record["caption"] for record in RECORDS]
    if "tsv" in name:  # which has no way to hold a tab
        captions = [caption and caption.replace("\t", " ") for caption in captions]
    assert [row["caption"] or None for row in rows] == captions
    assert [(row["input_file"], row["input_row"]) for row in rows] == [(name, number) for number in range(4)]
    if "csv" not in name and "tsv" not in name:
        assert [row["score"] for row in rows] == [record["score"] for record in RECORDS]


@pytest.mark.parametrize("name", ["l.txt", "l.txt.gz"])
def test_a_txt_list_is_one_url_a_line(tmp_path: Path, name: str) -> None:
    rows = read(write(tmp_path / name, RECORDS))
    assert [row["url"] or None for row in rows] == [record["url"] for record in RECORDS]
    assert all(row["caption"] is None for row in rows)


def test_a_txt_list_may_have_marks_and_ends_of_windows(tmp_path: Path) -> None:
    (tmp_path / "l.txt").write_bytes(b"\xef\xbb\xbfhttp://a/\r\n\r\nhttp://b/")
    assert [row["url"] for row in read(tmp_path / "l.txt")] == ["http://a/", "", "http://b/"]


def test_parquet_keeps_the_types_of_carried_columns(tmp_path: Path) -> None:
    rows = read(write(tmp_path / "l.parquet", RECORDS), columns=("tags", "score"))
    assert [row["tags"] for row in rows] == [record["tags"] for record in RECORDS]
    table = pa.table(
        {"url": pa.array(["http://a/"]).dictionary_encode(), "caption": pa.array(["x"], pa.large_string())}
    )
    pq.write_table(table, tmp_path / "d.parquet")
    assert read(tmp_path / "d.parquet")[0]["url"] == "http://a/"


def test_bad_records_are_rows_with_a_problem(tmp_path: Path) -> None:
    lines = ['{"url": "http://a/", "caption": "x"}', "{broken", "[1]", '{"url": 5}', '{"url": "\\ud800"}', "[" * 5000]
    (tmp_path / "l.jsonl").write_text("\n".join([*lines, '"' + "a" * (3 << 20) + '"', '{"url": "http://b/"}']))
    rows = read(tmp_path / "l.jsonl")
    assert len(rows) == 8
    problems = [row["problem"] for row in rows]
    assert problems[0] is None
    assert problems[7] is None
    assert all(problems[number] for number in (1, 2, 3, 5, 6))
    assert rows[7]["url"] == "http://b/"


def test_a_bad_csv_row_costs_that_row(tmp_path: Path) -> None:
    (tmp_path / "l.csv").write_text("url,caption\nhttp://a/,x\n" + "b" * 200_000 + ",y\nhttp://c/\nhttp://d/,w,more\n")
    rows = read(tmp_path / "l.csv")
    assert [row["url"] for row in rows] == ["http://a/", None, "http://c/", "http://d/"]
    assert rows[1]["problem"]


@pytest.mark.parametrize("name", ["l.csv", "l.json", "l.jsonl", "l.parquet"])
def test_a_missing_column_is_an_error_that_names_the_known_ones(tmp_path: Path, name: str) -> None:
    path = write(tmp_path / name, RECORDS)
    for settings, wanted in (
        ({"url_column": "link"}, "input.url_column"),
        ({"caption_column": "alt"}, "null if the list has none"),
        ({"columns": ("absent",)}, "absent"),
        ({"sha256_column": "digest"}, "input.sha256_column"),
    ):
        with pytest.raises(ValueError, match=wanted) as caught:
            read(path, **settings)
        assert "url, caption, score" in str(caught.value)
        config = InputConfig(urls=(str(path),), **settings)
        with pytest.raises(ValueError, match=wanted):
            check_list(list_files(config)[0], config)


def test_a_list_is_checked_without_reading_it_to_its_end(tmp_path: Path) -> None:
    whole = b'{"url": "http://a/"}\nno JSON\n{"caption": "a later one"}\n' + 200_000 * b'{"url": "http://b/"}\n'
    (tmp_path / "l.jsonl.gz").write_bytes(gzip.compress(whole)[:-30])
    (tmp_path / "l.csv").write_bytes(b"url,caption\nhttp://a/,x\n" + b"\n" * 100)
    for name in ("l.jsonl.gz", "l.csv"):
        config = InputConfig(urls=(str(tmp_path / name),))
        check_list(list_files(config)[0], config)


@pytest.mark.parametrize("kind", [pa.string(), pa.large_string(), pa.binary(), pa.large_binary(), "dictionary"])
def test_text_of_a_parquet_list_is_text_whatever_its_type_and_bytes(tmp_path: Path, kind: Any) -> None:
    """Arrow reads bytes that are no UTF-8 as text, and fails where they become Python's."""
    raw = pa.array([b"http://a/", b"caf\xe9", None])
    text = pa.Array.from_buffers(pa.string(), 3, raw.buffers())
    if kind == "dictionary":
        text = pa.array(["http://a/", "caf\ufffd", None]).dictionary_encode()
    column = text if kind == "dictionary" else raw.cast(kind) if "binary" in str(kind) else text.cast(kind)
    pq.write_table(pa.table({"url": column, "caption": column, "page": text}), tmp_path / "l.parquet")
    rows = read(tmp_path / "l.parquet", columns=("page",))
    for name in ("url", "caption", "page"):
        assert [row[name] for row in rows] == ["http://a/", "caf\ufffd", None]


def test_a_parquet_list_whose_columns_cannot_be_text_or_told_apart_is_refused(tmp_path: Path) -> None:
    urls = pa.array(["http://a/"])
    pq.write_table(pa.table({"url": urls, "caption": pa.array([["a", "b"]])}), tmp_path / "list.parquet")
    with pytest.raises(ValueError, match=r"column 'caption' is list<.*>, expected text"):
        read(tmp_path / "list.parquet")
    pq.write_table(pa.table([urls, urls, urls], names=["url", "url", "caption"]), tmp_path / "twice.parquet")
    with pytest.raises(ValueError, match="2 columns are named 'url'"):
        read(tmp_path / "twice.parquet")


@pytest.mark.parametrize(
    ("name", "data"),
    [
        ("l.parquet", b"not parquet"),
        ("l.parquet", b""),
        ("l.json", b"{"),
        ("l.json", b'{"url": "x"}'),
        ("l.csv.gz", b"not gzip"),
        ("l.csv.gz", gzip.compress(b"url,caption\n" + b"http://a/,b\n" * 1000, mtime=0)[:-30]),
    ],
)
def test_an_unreadable_list_is_a_clear_error(tmp_path: Path, name: str, data: bytes) -> None:
    (tmp_path / name).write_bytes(data)
    with pytest.raises(ValueError, match=name):
        read(tmp_path / name)


def test_folders_and_globs_give_their_lists_in_order(tmp_path: Path) -> None:
    (tmp_path / "lists").mkdir()
    for name in ("b.txt", "a.jsonl", "notes.md", ".hidden.txt"):
        write(tmp_path / "lists" / name, RECORDS) if name != "notes.md" else (tmp_path / "lists" / name).write_text("x")
    assert [file.name for file in list_files(InputConfig(urls=(str(tmp_path / "lists"),)))] == ["a.jsonl", "b.txt"]
    assert [file.name for file in list_files(InputConfig(urls=(f"{tmp_path}/*/*.txt",)))] == ["b.txt"]
    write(tmp_path / "b.txt", RECORDS)
    both = (str(tmp_path / "b.txt"), str(tmp_path / "lists" / "b.txt"))
    rows = read(both)
    assert sorted({row["input_file"] for row in rows}) == ["b.txt", "lists/b.txt"]
    for missing in (tmp_path / "absent.txt", tmp_path / "*.csv"):
        with pytest.raises(ValueError, match="no such list"):
            list_files(InputConfig(urls=(str(missing),)))
    with pytest.raises(ValueError, match="twice"):
        list_files(InputConfig(urls=(both[0], f"{tmp_path}/*.txt")))
    with pytest.raises(ValueError, match=r"input\.format"):
        list_files(InputConfig(urls=(str(tmp_path / "lists" / "notes.md"),)))


def test_what_lies_in_a_folder_of_lists_and_is_none_is_named(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    lists = tmp_path / "lists"
    (lists / "lang=en").mkdir(parents=True)
    write(lists / "lang=en" / "part-0.parquet", RECORDS)
    for name in ("b.csv.lz4", "part-00000", "_SUCCESS", ".part-00000.crc"):
        (lists / name).write_text("x")
    config = InputConfig(urls=(str(lists),))
    with pytest.raises(ValueError, match=r"no file of a known format.*'b\.csv\.lz4', 'lang=en/', 'part-00000' in it"):
        list_files(config)
    write(lists / "a.txt", RECORDS)
    assert [file.name for file in list_files(config)] == ["a.txt"]
    (told,) = [record.getMessage() for record in caplog.records]
    assert "not read: 'b.csv.lz4', 'lang=en/', 'part-00000' in it" in told
    assert "SUCCESS" not in told
    assert "crc" not in told
    caplog.clear()
    assert [file.name for file in list_files(InputConfig(urls=(f"{lists}/**/*.parquet",)))] == ["part-0.parquet"]
    assert not caplog.records


def test_types_that_do_not_go_together_are_an_error(tmp_path: Path) -> None:
    write(tmp_path / "a.parquet", [{"url": "http://a/", "caption": "x", "n": 1}])
    write(tmp_path / "b.parquet", [{"url": "http://b/", "caption": "x", "n": ["text"]}])
    with pytest.raises(ValueError, match=r"b\.parquet.*another type"):
        read((str(tmp_path / "a.parquet"), str(tmp_path / "b.parquet")), columns=("n",))


def test_a_list_at_another_file_system_is_read(tmp_path: Path) -> None:
    import fsspec

    with fsspec.open("memory://lists/l.csv", "wb") as file:
        file.write(b"url,caption\nhttp://a/,x\n")
    assert read(("memory://lists/l.csv",))[0]["url"] == "http://a/"
    assert read(("memory://lists/*.csv",))[0]["input_file"] == "l.csv"
    assert read((f"file://{write(tmp_path / 'l.txt', RECORDS)}",))[0]["url"] == RECORDS[0]["url"]


def test_the_real_list_is_read_through_configuration(shared_data: Path) -> None:
    path = shared_data / "url-list-10000.parquet"
    rows = read(path, url_column="URL", caption_column="TEXT", columns=("__index_level_0__",))
    assert len(rows) == 10_000
    assert rows[0]["url"].startswith("http://direct.rhapsody.com/")
    assert rows[0]["caption"].startswith("Classical Masterpieces")


def peak_bytes(path: Path, num_rows: int) -> int:
    line = json.dumps({"url": "http://a.example/" + "a" * 80, "caption": "b" * 100})
    with path.open("w") as file:
        file.writelines(line + "\n" for _ in range(num_rows))
    config = InputConfig(urls=(str(path),))
    files = list_files(config)
    tracemalloc.start()
    found = scan(files, config)
    assert sum(table.num_rows for table in tables(files, config, found.schema)) == num_rows
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return peak


@pytest.mark.full
def test_the_memory_to_read_a_list_does_not_grow_with_it(tmp_path: Path) -> None:
    short, long = peak_bytes(tmp_path / "short.jsonl", 17_000), peak_bytes(tmp_path / "long.jsonl", 40_000)
    assert long < 1.2 * short


def test_configs_say_what_is_wrong() -> None:
    for settings, message in (
        ({}, "either urls"),
        ({"urls": ("a",), "raw": "b"}, "either urls"),
        ({"urls": ("a",), "columns": ("uid",)}, "headrace writes uid itself"),
        ({"urls": ("a",), "columns": ("x", "x")}, "twice"),
    ):
        with pytest.raises(ValueError, match=message):
            InputConfig(**settings)
    for settings, message in (
        ({"concurrency": 0}, "concurrency must be"),
        ({"user_agent": "a\r\nX: b"}, "printable"),
        ({"allow_private": ("localhost:80",)}, "ADDRESS:PORT"),
        ({"retry_classes": ("nope",)}, "known: dns"),
    ):
        with pytest.raises(ValueError, match=message):
            FetchConfig(**settings)
    assert build_config(FetchConfig, {"allow_private": ["127.0.0.1:8000"], "retries": 0}).retries == 0


def test_the_page_names_every_setting_with_its_default() -> None:
    page = (Path(__file__).parents[4] / "docs" / "fetch.md").read_text()
    for config in (InputConfig, FetchConfig):
        for field in dataclasses.fields(config):
            # The first of that name: `urls` comes again in the table of what lies under `blocklist`.
            row = next(line for line in page.splitlines() if line.startswith(f"| `{field.name}` |"))
            if isinstance(field.default, int | float | str) and not isinstance(field.default, bool):
                assert f"`{field.default}`".replace("_", "") in row.replace("_", "")
