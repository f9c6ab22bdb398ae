"""Parquet: equal tables give equal bytes; damage is named; no thread of Arrow's ever holds a Python object."""

import io
import math
import re
import sys
import threading
import zipfile
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from headrace import atomic
from headrace.shards.parquet import (
    BUFFER_BYTES,
    ParquetReader,
    open_parquet,
    parquet_bytes,
    read_equal,
    read_table,
    write_groups,
    write_parquet,
)

TABLE = pa.table(
    {"number": list(range(100)), "name": [f"{n % 7}" for n in range(100)], "pair": [[n, n] for n in range(100)]}
)


def parquet(table: pa.Table = TABLE, row_group_size: int = 30) -> bytes:
    """Return a table as the bytes of a file."""
    sink = io.BytesIO()
    pq.write_table(table, sink, row_group_size=row_group_size)
    return sink.getvalue()


class Watched(io.BytesIO):
    """A file that notes which threads read it."""

    def __init__(self, data: bytes) -> None:
        super().__init__(data)
        self.threads: set[int] = set()

    def read(self, size: int | None = -1, /) -> bytes:
        self.threads.add(threading.get_ident())
        return super().read(size)


def test_a_python_file_is_read_by_the_calling_thread_alone() -> None:
    file = Watched(parquet())
    reader = ParquetReader(file, "watched")
    assert reader.read().equals(TABLE)
    assert pa.Table.from_batches(reader.batches(7)).equals(TABLE)
    assert reader.read(["number"], groups=[3]).num_rows == 10
    assert file.threads == {threading.get_ident()}


def test_bytes_are_not_held() -> None:
    data = parquet()
    before = sys.getrefcount(data)
    reader = ParquetReader(data, "bytes")
    assert reader.read().equals(TABLE)
    assert sys.getrefcount(data) == before


@pytest.mark.parametrize("whole_bytes", [0, 1 << 20])
@pytest.mark.parametrize("scheme", ["", "file://", "memory://"])
def test_any_place_is_read_alike(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, scheme: str, whole_bytes: int
) -> None:
    monkeypatch.setattr("headrace.shards.parquet.WHOLE_BYTES", whole_bytes)
    url = f"{scheme}{tmp_path}/table.parquet"
    atomic.write_atomic(url, parquet())
    assert read_table(url).equals(TABLE)
    assert read_table(url, ["name"]).column_names == ["name"]
    with open_parquet(url) as file:
        assert (file.num_rows, file.group_rows, file.schema) == (100, [30, 30, 30, 10], TABLE.schema)
        assert (file.bounds(1, "number"), file.bounds(3, "name")) == ((30, 59), ("0", "6"))
        assert file.bounds(0, "pair") is None
        assert next(file.batches(8, ["number"], groups=[2]))["number"].to_pylist() == list(range(60, 68))


def test_a_remote_file_is_read_once_though_its_columns_take_turns(tmp_path: Path, folder_server: Any) -> None:
    column = pa.array([bytes([n % 251]) * 400 for n in range(30_000)])
    options = {"compression": "none", "use_dictionary": False}
    pq.write_table(pa.table({"a": column, "unread": column, "b": column}), tmp_path / "t.parquet", **options)
    with open_parquet(f"{folder_server.url}/t.parquet", buffer_bytes=BUFFER_BYTES) as file:
        assert sum(batch.num_rows for batch in file.batches(100, ["a", "b"])) == 30_000
    spans = [re.search(r"bytes=(\d+)-(\d+)", request) for request in folder_server.requests if "GET" in request]
    read = sum(int(span[2]) - int(span[1]) + 1 for span in spans if span)
    assert 24_000_000 < read < 36_000_000


def test_a_file_inside_another_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("headrace.shards.parquet.WHOLE_BYTES", 0)
    with zipfile.ZipFile(tmp_path / "t.zip", "w") as archive:
        archive.writestr("t.parquet", parquet())
    assert read_table(f"zip://t.parquet::{tmp_path}/t.zip").equals(TABLE)


def test_a_file_whose_server_ignores_ranges_is_read_all_the_same(
    tmp_path: Path, folder_server: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("headrace.shards.parquet.WHOLE_BYTES", 0)
    table = pa.table({"a": [bytes(100_000)] * 60})
    pq.write_table(table, tmp_path / "t.parquet", compression="none", use_dictionary=False)
    folder_server.ignore_ranges = True
    assert read_table(f"{folder_server.url}/t.parquet") == table


@given(
    rows=st.lists(st.tuples(st.sampled_from("abc"), st.one_of(st.none(), st.integers(0, 3))), max_size=40),
    group=st.integers(1, 9),
    name=st.sampled_from("abcd"),
    number=st.integers(0, 4),
)
def test_read_equal_is_a_filter(
    tmp_path_factory: pytest.TempPathFactory, rows: list[tuple[str, int | None]], group: int, name: str, number: int
) -> None:
    table = pa.table(
        {"a": pa.array([r[0] for r in rows], pa.string()), "b": pa.array([r[1] for r in rows], pa.int64())}
    )
    table = table.append_column("row", pa.array(range(len(rows)), pa.int64()))
    url = str(tmp_path_factory.mktemp("equal") / "t.parquet")
    Path(url).write_bytes(parquet(table, group))
    wanted = table.filter(pc.and_(pc.equal(table["a"], name), pc.equal(table["b"], number)))
    assert read_equal(url, {"a": name, "b": number}, ["row"])["row"].to_pylist() == wanted["row"].to_pylist()
    assert read_equal(url, {"a": name, "b": number}).column_names == ["a", "b", "row"]


def test_what_is_damaged_is_named(tmp_path: Path) -> None:
    whole = parquet()
    broken = bytearray(whole)
    broken[4:2000] = bytes(1996)  # the pages, not the footer
    for data in (b"", b"PAR1", whole[:-20], b"<html></html>", bytes(broken)):
        (tmp_path / "bad.parquet").write_bytes(data)
        for url in (str(tmp_path / "bad.parquet"), "memory://bad.parquet"):
            atomic.write_atomic(url, data)
            with pytest.raises(ValueError, match=r"bad\.parquet: (not a parquet file|damaged parquet): "):
                read_table(url)


def test_what_is_missing_is_a_missing_file(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        read_table(str(tmp_path / "none.parquet"))
    with pytest.raises(FileNotFoundError):
        read_table("memory://none.parquet")


@given(
    st.lists(st.tuples(st.text(max_size=5), st.one_of(st.none(), st.integers(-(2**63), 2**63 - 1))), max_size=40),
    st.integers(1, 40),
)
def test_equal_tables_are_equal_bytes_however_they_are_cut_into_chunks(
    rows: list[tuple[str, int | None]], cut: int
) -> None:
    schema = pa.schema([("a", pa.string()), ("b", pa.int64())])
    whole = pa.Table.from_pylist([{"a": a, "b": b} for a, b in rows], schema=schema)
    pieces = pa.concat_tables([whole.slice(0, cut), whole.slice(cut)])
    assert parquet_bytes(pieces) == parquet_bytes(whole)
    assert ParquetReader(parquet_bytes(whole), "t").read() == whole


def test_all_ways_of_writing_have_one_compression_and_format_version(tmp_path: Path) -> None:
    table = pa.table({"a": ["x"] * 1000})
    write_parquet(str(tmp_path / "table"), table)
    write_groups(tmp_path / "groups", table.schema, [table])
    (tmp_path / "bytes").write_bytes(parquet_bytes(table))
    assert len({path.read_bytes() for path in tmp_path.iterdir()}) == 1
    metadata = pq.read_metadata(tmp_path / "bytes")
    assert metadata.row_group(0).column(0).compression == "ZSTD"
    assert metadata.format_version == "2.6"


def test_tables_that_come_one_by_one_are_a_row_group_each(tmp_path: Path) -> None:
    schema = pa.schema([("a", pa.int64())])
    tables = (pa.table({"a": pa.array(range(count), pa.int32())}) for count in (3, 100_000, 1))
    write_groups(tmp_path / "t", schema, tables)
    with open_parquet(str(tmp_path / "t")) as file:
        assert file.group_rows == [3, 100_000, 1]
        assert file.schema == schema
    write_groups(tmp_path / "none", schema, [])
    assert read_table(str(tmp_path / "none")).num_rows == 0


def test_row_groups_are_as_long_as_asked(tmp_path: Path) -> None:
    table = pa.table({"a": range(1000)})
    write_parquet(str(tmp_path / "t"), table, group_rows=300)
    with open_parquet(str(tmp_path / "t")) as file:
        assert file.group_rows == [300, 300, 300, 100]


def test_duckdb_finds_every_nan_in_what_is_written(tmp_path: Path) -> None:
    path = tmp_path / "scores.parquet"
    scores = pa.table(
        {"row": [0, 1, 2], "single": pa.array([0.5, math.nan, 0.0], pa.float32()), "double": [0.5, math.nan, 0.0]}
    )
    write_parquet(str(path), scores)
    for name in ("single", "double"):
        # NaN is the greatest number there.
        for fact in (f"isnan({name})", f"{name} >= 0.75", f"NOT {name} < 0.75"):
            assert duckdb.sql(f"SELECT row FROM '{path}' WHERE {fact}").fetchall() == [(1,)], fact
    with open_parquet(str(path)) as file:
        assert (file.bounds(0, "row"), file.bounds(0, "single")) == ((0, 2), None)
