"""Rows of an index come back as they were, in any order; no changed byte is ever taken for a row."""

import json
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from headrace.shards import index_rows
from headrace.shards.index_rows import (
    BLOCK_ROWS,
    DamagedRowsError,
    encode_rows,
    rows_in_memory,
    rows_of_file,
)

DIGEST = "ab" * 32


def table_of(num_rows: int, seed: int = 0) -> pa.Table:
    draw = np.random.default_rng(seed)
    return pa.table(
        {
            "key": [f"{number:05d}" for number in range(num_rows)],
            "offset": pa.array(draw.integers(0, 1 << 40, num_rows), pa.int64()),
            "crc32": pa.array([None if number % 5 == 0 else number for number in range(num_rows)], pa.uint32()),
            "caption": pa.array([None if number % 3 else "word " * (number % 7) for number in range(num_rows)]),
            "box": pa.array([[float(number)] * (number % 3) for number in range(num_rows)], pa.list_(pa.float32())),
        }
    )


@given(st.sampled_from([0, 1, BLOCK_ROWS - 1, BLOCK_ROWS, BLOCK_ROWS + 1, 1000]), st.data())
@settings(max_examples=40)
def test_any_rows_come_back_in_any_order(num_rows: int, data: st.DataObject) -> None:
    table = table_of(num_rows)
    rows = rows_in_memory(encode_rows(table, DIGEST, [*table.column_names, "uid"]), DIGEST)
    numbers = data.draw(st.lists(st.integers(0, max(0, num_rows - 1)), max_size=20 if num_rows else 0))
    assert rows.take(np.array(numbers, np.int64)).equals(table.take(pa.array(numbers, pa.int64())))
    assert rows.num_rows == num_rows
    assert rows.index_columns == (*table.column_names, "uid")
    assert rows.lacks(["key", "uid", "nowhere"]) == ["uid"]


def test_a_slice_of_a_larger_table_is_written_alone() -> None:
    part = table_of(900).slice(300, 10)
    rows = rows_in_memory(encode_rows(part, DIGEST, part.column_names), DIGEST)
    assert rows.take(np.arange(10)).to_pylist() == part.to_pylist()
    assert rows.held_bytes < 6000


ENCODED = encode_rows(table_of(600), DIGEST, ["key"])


@pytest.mark.parametrize(
    "change",
    [
        {"num_rows": 10},
        {"num_rows": "600"},
        {"blocks": [[1 << 70, 0]] * 3},
        {"blocks": [[8, 1 << 40]] * 3},
        {"blocks": "abc"},
        {"schema": 7},
        {"index_columns": 7},
    ],
)
def test_a_header_that_fits_its_checksum_and_cannot_be_is_damage(change: dict[str, Any]) -> None:
    start = index_rows._HEAD.size
    _, size, _ = index_rows._HEAD.unpack_from(ENCODED)
    header = json.dumps({**json.loads(ENCODED[start : start + size]), **change}).encode()
    head = index_rows._HEAD.pack(index_rows.MAGIC, len(header), zlib.crc32(header))
    with pytest.raises(DamagedRowsError, match="its header is not understood"):
        rows_in_memory(head + header + ENCODED[start + size :], DIGEST)


@given(st.integers(0, len(ENCODED) - 1), st.integers(1, 255))
@settings(max_examples=200)
def test_no_changed_byte_is_taken_for_a_row(place: int, change: int) -> None:
    changed = bytearray(ENCODED)
    changed[place] ^= change
    with pytest.raises(DamagedRowsError):
        rows_in_memory(bytes(changed), DIGEST).take(np.arange(600))


@given(st.integers(0, len(ENCODED) - 1))
@settings(max_examples=100)
def test_a_cut_file_is_damaged(size: int) -> None:
    with pytest.raises(DamagedRowsError):
        rows_in_memory(ENCODED[:size], DIGEST).take(np.arange(600))


def test_rows_of_another_index_are_refused() -> None:
    with pytest.raises(DamagedRowsError, match=f"it is of the index {DIGEST}"):
        rows_in_memory(ENCODED, "cd" * 32)


def test_a_few_rows_cost_a_few_kilobytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "one"
    path.write_bytes(encode_rows(table_of(10_000), DIGEST, ["key"]))
    read: list[int] = []
    true_pread = __import__("os").pread
    monkeypatch.setattr("os.pread", lambda *a: read.append(a[1]) or true_pread(*a))
    rows_of_file(path, DIGEST).take(np.arange(512, 576))
    assert sum(read) < 40_000 < path.stat().st_size / 10


def test_categoricals_and_views_come_back_as_their_values() -> None:
    words = pa.array(["cat", None, "dog", "cat"]).dictionary_encode()
    table = pa.table(
        {
            "key": ["a", "b", "c", "d"],
            "kind": words,
            "kinds": pa.ListArray.from_arrays([0, 1, 2, 4, 4], words),
            "record": pa.StructArray.from_arrays([words], ["kind"]),
            "view": pa.array(["a", None, "c", "d"], pa.string_view()),
        }
    )
    back = rows_in_memory(encode_rows(table, DIGEST, table.column_names), DIGEST).take(np.array([3, 0]))
    assert back.to_pylist() == [table.to_pylist()[3], table.to_pylist()[0]]
    assert back.schema.field("kind").type == pa.string()
