"""A carried `label` is a whole number or null, whatever the list spells it as, or the list is refused."""

import math
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from list_reading import read, read_text

URLS = [f"http://a.example/{row}.jpg" for row in range(3)]


@pytest.mark.parametrize(
    "column",
    [
        pa.array([7, None, 0]),
        pa.array([7, None, 0], pa.uint8()),
        pa.array([7, None, 0], pa.uint64()),
        pa.array([7.0, None, 0.0]),
        pa.array([7.0, math.nan, 0.0], pa.float32()),
        pa.array(["7", None, " 0 "]),
        pa.array(["7", "", "0"]).dictionary_encode(),
        pa.array(["7", None, "0"], pa.string_view()),
        pa.array([7, None, 0]).dictionary_encode(),
    ],
)
def test_numbers_of_every_spelling_become_labels(tmp_path: Path, column: pa.Array) -> None:
    pq.write_table(pa.table({"url": URLS, "caption": URLS, "label": column}), tmp_path / "l.parquet")
    assert [row["label"] for row in read(tmp_path / "l.parquet", columns=("label",))] == [7, None, 0]


def test_digits_of_a_text_list_become_labels(tmp_path: Path) -> None:
    rows, _ = read_text(tmp_path, "l.csv", "url,caption,label\nu,c,7\nu,c,\nu,c,-3\n", columns=("label",))
    assert [row["label"] for row in rows] == [7, None, -3]
    lines = '{"url":"u","caption":"c","label":7}\n{"url":"u","label":NaN}\n{"url":"u","label":"8"}\n{"label":9.0}\n'
    rows, _ = read_text(tmp_path, "l.jsonl", lines, columns=("label",))
    assert [row["label"] for row in rows] == [7, None, 8, 9]


@pytest.mark.parametrize(
    "column",
    [
        pa.array(["cat", "dog", None]),
        pa.array([0.5, 1.0, None]),
        pa.array([math.inf, 1.0, None]),
        pa.array([2**64 - 1, 1, None], pa.uint64()),
        pa.array([[1], [2, 3], None]),
        pa.array([True, False, None]),
        pa.array([b"1", b"2", None]),
    ],
)
def test_other_labels_are_refused_with_the_advice(tmp_path: Path, column: pa.Array) -> None:
    pq.write_table(pa.table({"url": URLS, "caption": URLS, "label": column}), tmp_path / "l.parquet")
    with pytest.raises(ValueError, match=r"l\.parquet: .*'label'.*a whole number: write numbers there, or give"):
        read(tmp_path / "l.parquet", columns=("label",))


@pytest.mark.parametrize("value", ["cat", "1.5", "0x1", "9223372036854775808", "\u0663"])
def test_a_text_list_names_the_line(tmp_path: Path, value: Any) -> None:
    with pytest.raises(ValueError, match=r"l\.csv: line 3: column 'label' holds"):
        read_text(tmp_path, "l.csv", f"url,caption,label\nu,c,1\nu,c,{value}\n", columns=("label",))
