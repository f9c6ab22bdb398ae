"""Every type of parquet is carried with its values, or refused before anything is fetched."""

import math
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from list_reading import counts, pairs, read, read_and_count
from parquet_types import CARRIED, REFUSED, REFUSED_VALUES

from headrace.curation.fetch.config import InputConfig
from headrace.curation.fetch.lists.inputs import list_files
from headrace.curation.fetch.lists.rows import NO_TEXT, NO_URL, URL_NO_TEXT
from headrace.curation.fetch.lists.table import check_list, scan, tables

URLS = pa.array([f"http://a.example/{row}.jpg" for row in range(3)])


def write(path: Path, **columns: Any) -> Path:
    pq.write_table(pa.table({"url": URLS, "caption": ["a", "b", "c"], **columns}), path)
    return path


@pytest.mark.parametrize("name", list(CARRIED))
def test_a_column_of_every_type_keeps_its_values(tmp_path: Path, name: str) -> None:
    path = write(tmp_path / "l.parquet", extra=CARRIED[name])
    expected = pq.read_table(path)["extra"].to_pylist()
    assert [row["extra"] for row in read(path, columns=("extra",))] == expected


@pytest.mark.parametrize("name", [*REFUSED, *REFUSED_VALUES])
def test_what_cannot_be_carried_is_refused_with_column_type_and_advice(tmp_path: Path, name: str) -> None:
    column, advice = REFUSED[name] if name in REFUSED else (REFUSED_VALUES[name], "cast the column to text")
    path = write(tmp_path / "l.parquet", extra=column)
    with pytest.raises(ValueError, match=r"l\.parquet: .*column 'extra'") as caught:
        read(path, columns=("extra",))
    assert str(pq.read_schema(path).field("extra").type) in str(caught.value)
    assert advice in str(caught.value)
    assert "\n" not in str(caught.value)
    config = InputConfig(urls=(str(path),), columns=("extra",))
    if name in REFUSED:  # a dry run tells too
        with pytest.raises(ValueError, match=advice):
            check_list(list_files(config)[0], config)


def test_lists_of_different_spellings_of_one_type_go_together(tmp_path: Path) -> None:
    for number, column in enumerate((pa.nulls(3), CARRIED["string_view"], CARRIED["dictionary"], pa.nulls(3))):
        write(tmp_path / f"{number}.parquet", extra=column)
    config = InputConfig(urls=(str(tmp_path),), columns=("extra",))
    files = list_files(config)
    found = scan(files, config)
    assert found.schema.field("extra").type == pa.string()
    rows = [row["extra"] for table in tables(files, config, found.schema) for row in table.to_pylist()]
    assert rows == [None] * 3 + 2 * ["a", None, "\u00e9"] + [None] * 3


@pytest.mark.parametrize(
    ("column", "expected"),
    [
        (pa.array([math.nan, None, math.nan]), [None, None, None]),
        (pa.array([math.nan, None, math.nan], pa.float32()).dictionary_encode(), [None, None, None]),
        (pa.nulls(3), [None, None, None]),
        (pa.array([1987.0, None, 1.5]), ["1987", None, "1.5"]),
        (pa.array([1, None, 2]), ["1", None, "2"]),
        (pa.array(["nan", None, ""]), ["nan", None, ""]),
        (pa.array(["a", None, "b"]).dictionary_encode(), ["a", None, "b"]),
        (pa.array(["a", None, "b"], pa.string_view()), ["a", None, "b"]),
        (pa.array(["a", None, "b"], pa.large_string()), ["a", None, "b"]),
        (pa.array([b"a", None, b"b"], pa.binary_view()), ["a", None, "b"]),
        (pa.array(['"a"', None, "1"], pa.json_()), ['"a"', None, "1"]),
    ],
)
def test_a_caption_of_any_type_is_text_or_null(tmp_path: Path, column: pa.Array, expected: list[Any]) -> None:
    pq.write_table(pa.table({"url": URLS, "caption": column}), tmp_path / "l.parquet")
    assert [row["caption"] for row in read(tmp_path / "l.parquet")] == expected


def test_pandas_frames_with_gaps_have_nulls(tmp_path: Path) -> None:
    pandas = pytest.importorskip("pandas")
    frame = pandas.DataFrame(
        {
            "url": [*URLS.to_pylist(), math.nan],
            "caption": ["a", math.nan, None, "nan"],
            "kind": pandas.Categorical(["x", None, "y", "x"]),
            "empty": [math.nan] * 4,
            "score": pandas.array([1, None, 3, 4], dtype="Int64"),
        }
    )
    frame.to_parquet(tmp_path / "l.parquet")
    rows, tally = read_and_count(tmp_path / "l.parquet", columns=("kind", "score"))
    assert [row["caption"] for row in rows] == ["a", None, None, "nan"]
    assert [row["kind"] for row in rows] == ["x", None, "y", "x"]
    assert [row["score"] for row in rows] == [1, None, 3, 4]
    assert counts(tally) == {NO_URL: 1}
    assert [row["caption"] for row in read(tmp_path / "l.parquet", caption_column="empty")] == [None] * 4


def test_rows_of_a_parquet_that_cannot_be_fetched_say_so(tmp_path: Path) -> None:
    raw = pa.array([b"http://a/", b"http://caf\xe9/", b" "])
    urls = pa.Array.from_buffers(pa.string(), 3, raw.buffers())
    captions = pa.Array.from_buffers(pa.string(), 3, pa.array([b"caf\xe9", b"b", b"c"]).buffers())
    pq.write_table(pa.table({"url": urls, "caption": captions}), tmp_path / "l.parquet")
    rows, tally = read_and_count(tmp_path / "l.parquet")
    assert pairs(rows) == [("http://a/", "caf\ufffd")]
    assert [row["problem"] for row in rows] == [None, f"row 1: {URL_NO_TEXT}", f"row 2: {NO_URL}"]
    assert counts(tally) == {URL_NO_TEXT: 1, NO_URL: 1, NO_TEXT: 1}
