"""Json and jsonl: every record is a row, NaN is null, an array is read piece by piece."""

import json
import math
import tempfile
import tracemalloc
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from list_reading import counts, pairs, read_text

from headrace.curation.fetch.lists import records as reading
from headrace.curation.fetch.lists.rows import NO_TEXT, NO_URL, NOT_A_STRING, URL_NO_STRING, URL_NO_TEXT


def url(number: int) -> str:
    return f"http://a.example/{number}.jpg"


def write(kind: str, texts: list[str]) -> str:
    return "[" + ",\n ".join(texts) + "]\n" if kind == "json" else "\n".join(texts) + "\n"


@pytest.mark.parametrize("kind", ["json", "jsonl"])
def test_what_means_none_is_null(tmp_path: Path, kind: str) -> None:
    records: list[dict[str, Any]] = [
        {"url": url(0), "caption": math.nan, "score": math.nan, "tag": math.nan},
        {"url": url(1), "caption": None, "score": None},
        {"url": url(2), "score": math.inf, "tag": "NaN"},
        {"url": url(3), "caption": "nan", "score": 2},
        {"url": url(4), "caption": "", "tag": ""},
        {"url": math.nan, "caption": "no link"},
        {"url": None, "caption": "no link"},
        {"url": " ", "caption": "no link"},
    ]
    rows, tally = read_text(
        tmp_path, f"l.{kind}", write(kind, [json.dumps(record) for record in records]), columns=("score", "tag")
    )
    assert pairs(rows) == [(url(0), None), (url(1), None), (url(2), None), (url(3), "nan"), (url(4), "")]
    assert [row["score"] for row in rows][:4] == [None, None, math.inf, 2.0]
    assert [row["tag"] for row in rows][:5] == [None, None, "NaN", None, ""]
    assert counts(tally) == {NO_URL: 3}


@pytest.mark.parametrize("kind", ["json", "jsonl"])
def test_what_is_no_text_is_a_row_with_a_problem_or_a_counted_repair(tmp_path: Path, kind: str) -> None:
    texts = [
        f'{{"url": "{url(0)}", "caption": 1987}}',
        f'{{"url": "{url(1)}", "caption": {{"a": [1, NaN, "x"]}}}}',
        f'{{"url": "{url(2)}", "caption": "half \\ud800 pair"}}',
        '{"url": "http://a/\\udc80", "caption": "x"}',
        '{"url": 5, "caption": "x"}',
        '{"url": ["http://a/"], "caption": "x"}',
        f'{{"url": "{url(6)}", "url": "{url(7)}", "caption": "x"}}',
        f'{{"url": "{url(7)}", "url": "{url(7)}", "caption": "same twice", "other": 1, "other": 2}}',
        "[1]",
        "5",
    ]
    rows, tally = read_text(tmp_path, f"l.{kind}", write(kind, texts))
    assert len(rows) == len(texts)
    expected = [(url(0), "1987"), (url(1), '{"a":[1,null,"x"]}'), (url(2), "half \ufffd pair"), (url(7), "same twice")]
    assert pairs(rows) == expected
    first = 1 if kind == "jsonl" else 0
    place = "line" if kind == "jsonl" else "record"
    assert [row["problem"] for row in rows if row["problem"]] == [
        f"{place} {number + first}: {reason}"
        for number, reason in (
            (3, URL_NO_TEXT),
            (4, URL_NO_STRING),
            (5, URL_NO_STRING),
            (6, reading.TWO_VALUES),
            (8, reading.NO_OBJECT),
            (9, reading.NO_OBJECT),
        )
    ]
    assert tally.repaired[NOT_A_STRING].rows == 2
    assert tally.repaired[NO_TEXT].rows == 1


def test_a_broken_line_costs_that_line(tmp_path: Path) -> None:
    whole = f'{{"url": "{url(0)}", "caption": "a"}}'
    lines = [whole, "", "{broken", "[" * 5000, f"{whole},", '{"url": ' + "1" * 5000 + "}", whole]
    rows, tally = read_text(tmp_path, "l.jsonl", "\n".join(lines))
    assert [row["input_row"] for row in rows] == list(range(7))
    assert [row["problem"] is None for row in rows] == [True, False, False, False, False, False, True]
    assert tally.rejected[reading.EMPTY_LINE].first == "l.jsonl line 2"
    rows, _ = read_text(tmp_path, "r.jsonl", f"{whole}\r{whole}\n{{\r{whole[1:]}\n")
    assert pairs(rows) == 3 * [(url(0), "a")]


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("{", "line 1: one object, expected an array"),
        ('{"url": "x"}\n{"url": "y"}', "one record a line is format jsonl"),
        ('[{"url": "x", "caption": "y"}\n{"url": "y"}]', "line 2: expected , or ]"),
        ('[{"url": "x", "caption": "y"},\n\n{"url": ]', "line 3: Expecting value"),
        ('[{"url": "x", "caption": "y"}', "expected , or ]"),
        ("[] []", "more text after the array"),
        ('[{"url": "x"},]', "Expecting value"),
        ("", "no array"),
        ("[" * 100_000, "line 1: nested too deep"),
    ],
)
def test_a_damaged_array_is_refused_with_the_line(tmp_path: Path, text: str, reason: str) -> None:
    with pytest.raises(ValueError, match=r"l\.json: not a JSON array of records: ") as caught:
        read_text(tmp_path, "l.json", text)
    assert reason in str(caught.value)


@pytest.mark.full
def test_the_memory_to_read_an_array_does_not_grow_with_it(tmp_path: Path) -> None:
    def peak_bytes(num_rows: int) -> int:
        text = json.dumps([{"url": url(row), "caption": "b" * 100} for row in range(num_rows)])
        (tmp_path / "l.json").write_text(text)
        tracemalloc.start()
        assert len(list(_urls(tmp_path / "l.json"))) == num_rows
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return peak

    def _urls(path: Path) -> Any:
        from headrace.curation.fetch.config import InputConfig

        with path.open("rb") as stream:
            for block in reading.read_json_array(stream, str(path), InputConfig(urls=("x",))):
                yield from (None for _ in block.urls)

    assert peak_bytes(60_000) < 1.3 * peak_bytes(25_000)


VALUES = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(),
    st.text(alphabet=st.characters(codec="utf-16", max_codepoint=0x2FFFF), max_size=8),
    st.lists(st.integers(), max_size=2),
)
RECORDS = st.dictionaries(st.sampled_from(["url", "caption", "score", "other"]), VALUES, max_size=4)


@settings(max_examples=200, deadline=None)
@given(records=st.lists(RECORDS, min_size=1, max_size=12), kind=st.sampled_from(["json", "jsonl"]))
def test_any_records_are_rows_as_the_slow_oracle_says(records: list[dict[str, Any]], kind: str) -> None:
    records = [{"url": url(0), "caption": "a", "score": 1, "other": 2}, *records]

    def text_of(value: Any) -> str | None:
        if value is None or value != value:
            return None
        return value if isinstance(value, str) else json.dumps(value, separators=(",", ":"), ensure_ascii=False)

    with tempfile.TemporaryDirectory() as folder:
        texts = [json.dumps(record) for record in records]
        rows, _ = read_text(Path(folder), f"l.{kind}", write(kind, texts), columns=("score",))
    assert len(rows) == len(records)
    for row, record in zip(rows, records, strict=True):
        link = record.get("url")
        fetched = isinstance(link, str) and link.strip() != ""
        assert (row["problem"] is None) == fetched
        if fetched:
            assert row["url"] == link
        assert row["caption"] == text_of(record.get("caption"))
        score = record.get("score")
        if score is None or score != score:
            assert row["score"] is None
        elif isinstance(row["score"], str):
            assert row["score"] == text_of(score)
        else:
            assert row["score"] == score


def test_a_list_without_a_record_says_so_and_a_double_key_hides_no_column(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"l\.jsonl: no row of it is a JSON object with keys; is it jsonl"):
        read_text(tmp_path, "l.jsonl", '{\n"url":\n"http://a.example/1.jpg"\n}\n')
    twice = '{"url": "http://a.example/1.jpg", "caption": "a", "caption": "b"}\n'
    _, tally = read_text(tmp_path, "twice.jsonl", twice)
    assert counts(tally) == {reading.TWO_VALUES: 1}
