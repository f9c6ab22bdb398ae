"""Csv and tsv: a stray quote costs at most its own row, every line is accounted for, and valid csv reads as written."""

import csv
import gzip
import io
import re
import tempfile
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from list_reading import counts, pairs, read_and_count, read_text

from headrace.curation.fetch.lists import delimited
from headrace.curation.fetch.lists.delimited import EMPTY_FILE
from headrace.curation.fetch.lists.lines import TOO_LONG


def url(number: int) -> str:
    return f"http://a.example/{number}.jpg"


STRAY = [
    "a red chair",
    '"sunset over the bay by an amateur painter',
    "a dog on a lawn",
    'the film "harbour" poster',
    'walking stick 36" long',
    '"winter" postcard',
    'ends in a quote"',
    '"',
    '""" odd',
    "last row",
]


@pytest.mark.parametrize("ends", ["\n", "\r\n", "\r"])
def test_in_a_tsv_a_quote_is_a_letter(tmp_path: Path, ends: str) -> None:
    lines = ["url\tcaption", *(f"{url(number)}\t{caption}" for number, caption in enumerate(STRAY))]
    rows, tally = read_text(tmp_path, "l.tsv", ends.join(lines))
    assert pairs(rows) == [(url(number), caption) for number, caption in enumerate(STRAY)]
    assert counts(tally) == {}


@pytest.mark.parametrize("ends", ["\n", "\r\n", "\r"])
@pytest.mark.parametrize("header", ["url,caption", "caption,url", "url,caption,score", "score,caption,url"])
def test_in_a_csv_a_stray_quote_merges_and_cuts_nothing(tmp_path: Path, header: str, ends: str) -> None:
    cells = [{"url": url(number), "caption": caption, "score": "0.5"} for number, caption in enumerate(STRAY)]
    lines = [header, *(",".join(row[name] for name in header.split(",")) for row in cells)]
    rows, tally = read_text(tmp_path, "l.csv", ends.join(lines))
    assert pairs(rows) == [(url(number), caption) for number, caption in enumerate(STRAY)]
    assert counts(tally) == {delimited.LETTER_QUOTE: 4}
    assert tally.repaired[delimited.LETTER_QUOTE].first == "l.csv line 3"


@pytest.mark.parametrize("name", ["many.csv", "many.tsv"])
@pytest.mark.parametrize("quote_at", [(10,), (10, 11), (10, 500, 19_999)])
def test_one_stray_quote_among_twenty_thousand_rows_loses_none(
    tmp_path: Path, name: str, quote_at: tuple[int, ...]
) -> None:
    captions = [f"{chr(34) if number in quote_at else ''}thing number {number}" for number in range(20_000)]
    separator = "," if name.endswith("csv") else "\t"
    lines = [f"url{separator}caption", *(f"{url(n)}{separator}{caption}" for n, caption in enumerate(captions))]
    rows, _ = read_text(tmp_path, name, "\n".join(lines))
    assert pairs(rows) == [(url(number), caption) for number, caption in enumerate(captions)]


def test_two_stray_quotes_that_would_pair_over_rows_pair_nothing(tmp_path: Path) -> None:
    text = f'url,caption\n{url(0)},"open\n{url(1)},between\n{url(2)},close"\n{url(3)},"a, b"\n'
    rows, tally = read_text(tmp_path, "l.csv", text)
    assert pairs(rows) == [(url(0), '"open'), (url(1), "between"), (url(2), 'close"'), (url(3), "a, b")]
    assert counts(tally) == {delimited.LETTER_QUOTE: 1}


@pytest.mark.parametrize("ends", ["\n", "\r\n"])
@pytest.mark.parametrize("header", ["url,caption", "caption,url", "caption,url,score", "score,url,caption"])
@pytest.mark.parametrize(
    "caption",
    [
        "two\nlines",
        "three\r\nlines, with a comma\r\nand an end",
        "\n",
        'a "quoted" line\n""\nand http://b.example/, a link',
        "blank\n\n\nlines",
        "\n".join(f"line {number}" for number in range(200)),
        "a lone\rreturn",
    ],
)
def test_a_quoted_caption_may_run_over_line_ends(tmp_path: Path, header: str, ends: str, caption: str) -> None:
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator=ends)
    names = header.split(",")
    writer.writerow(names)
    for number in range(3):
        row = {"url": url(number), "caption": caption if number == 1 else "plain", "score": "1"}
        writer.writerow([row[name] for name in names])
    rows, tally = read_text(tmp_path, "l.csv", stream.getvalue())
    assert pairs(rows) == [(url(0), "plain"), (url(1), caption), (url(2), "plain")]
    assert counts(tally) == {}
    lines = len(caption.replace("\r\n", "\n").replace("\r", "" if "lone" in caption else "\n").split("\n"))
    assert [row["input_row"] for row in rows] == [0, 1, 1 + lines]  # the line is input_row + 2


@pytest.mark.parametrize(
    ("line", "caption", "reason"),
    [
        ('{},"say \\"hi\\", now",1', 'say "hi", now', delimited.BACKSLASH),
        ('{},"ends with \\"",1', 'ends with "', delimited.BACKSLASH),
        ('{}, "a, b", 1', "a, b", delimited.SPACES),
        ('"{}","he said "hi" to me","1"', 'he said "hi" to me', delimited.INNER_QUOTE),
        ('{},"he said "hi, there" to me",1', 'he said "hi, there" to me', delimited.INNER_QUOTE),
        ('{},"winter" and "summer",1', '"winter" and "summer"', delimited.LETTER_QUOTE),
        ("{},few", "few", delimited.FEWER_CELLS),
        ("{},empty,1,,", "empty", delimited.EMPTY_CELLS),
    ],
)
def test_the_ways_of_other_writers_are_read_and_counted(tmp_path: Path, line: str, caption: str, reason: str) -> None:
    text = f"url,caption,score\n{url(0)},before,1\n{line.format(url(1))}\n{url(2)},after,1\n"
    rows, tally = read_text(tmp_path, "l.csv", text)
    assert pairs(rows) == [(url(0), "before"), (url(1), caption), (url(2), "after")]
    assert counts(tally) == {reason: 1}
    assert tally.repaired[reason].first == "l.csv line 3"


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        (f"{url(1)},walking stick, 36 inches long", delimited.MORE_CELLS),
        (f'{url(1)},"open, and, more', delimited.OPEN_QUOTE),
        ("url,caption", delimited.HEADER_AGAIN),
        (f"{url(1)},{'a' * (delimited.MAX_CELL_CHARS + 1)}", delimited.LONG_CELL),
        (f'{url(1)},"{"a, " * delimited.MAX_CELL_CHARS}"', delimited.LONG_CELL),
        (f"{url(1)},{'a' * (3 << 20)}", TOO_LONG),
        (",no link", "the row has no URL"),
        (" ", "the row has no URL"),
    ],
)
def test_a_line_that_cannot_be_taken_is_a_row_with_its_number_and_the_reason(
    tmp_path: Path, line: str, reason: str
) -> None:
    rows, tally = read_text(tmp_path, "l.csv", f"url,caption\n{url(0)},before\n\n{line}\n{url(2)},after")
    assert pairs(rows) == [(url(0), "before"), (url(2), "after")]
    assert rows[1]["problem"] == f"line 4: {reason}"
    assert rows[1]["input_row"] == 2
    assert tally.rejected[reason].rows == 1
    assert tally.repaired[delimited.BLANK].rows == 1
    if line.startswith("http") and reason != TOO_LONG:
        assert rows[1]["url"] == url(1)  # so that a person knows it


def test_lone_returns_end_lines_only_between_whole_rows(tmp_path: Path) -> None:
    text = f"url,caption\r\n{url(0)},a\r{url(1)},b\n{url(2)},a return\rin a caption\r\n"
    rows, _ = read_text(tmp_path, "l.csv", text)
    assert pairs(rows) == [(url(0), "a"), (url(1), "b"), (url(2), "a return\rin a caption")]
    assert len({row["input_row"] for row in rows}) == 3


def test_lone_returns_end_lines_whatever_quotes_are_left_open_in_them(tmp_path: Path) -> None:
    rows = "\r".join(f'{url(number)},"open {number}' for number in range(1000))
    found, tally = read_text(tmp_path, "l.csv", f"url,caption\n{rows}\n")
    assert pairs(found) == [(url(number), f'"open {number}') for number in range(1000)]
    assert tally.rejected == {}
    odd = f'{url(0)},a\r{url(1)},"b, "c" d\r{url(2)},e\n'
    assert [row["url"] for row in read_text(tmp_path, "m.csv", f"url,caption\n{odd}")[0]] == [url(0), url(1), url(2)]


def test_a_quoted_cell_with_lone_returns_and_a_url_is_one_row(tmp_path: Path) -> None:
    caption = f"seen at\r{url(7)}, twice\rby night"
    rows, _ = read_text(tmp_path, "l.csv", f'url,caption\n{url(0)},"{caption}"\n{url(1)},b\n')
    assert pairs(rows) == [(url(0), caption), (url(1), "b")]


@pytest.mark.parametrize("name", ["l.csv", "l.tsv"])
def test_letters_that_only_other_readers_take_for_line_ends_stay(tmp_path: Path, name: str) -> None:
    caption = "a\u2028b\u2029c\x85d\x0be\x0cf\x1cg\x00h"
    separator = "," if name == "l.csv" else "\t"
    rows, _ = read_text(tmp_path, name, f"url{separator}caption\n{url(0)}{separator}{caption}\n")
    assert pairs(rows) == [(url(0), caption)]


@pytest.mark.parametrize("delimiter", [";", "\t", "|"])
def test_the_header_tells_the_delimiter_of_a_csv(tmp_path: Path, delimiter: str) -> None:
    lines = [["url", "caption"], [url(0), '"a; b\t| ""c"""'], [url(1), "x, y"]]
    rows, tally = read_text(tmp_path, "l.csv", "\n".join(delimiter.join(cells) for cells in lines))
    assert pairs(rows) == [(url(0), 'a; b\t| "c"'), (url(1), "x, y")]
    assert counts(tally) == {}
    rows, _ = read_text(tmp_path, "e.csv", "sep=;\nurl;caption\n" + f"{url(0)};a\n")
    assert pairs(rows) == [(url(0), "a")]
    assert rows[0]["input_row"] == 0


def test_a_tsv_that_a_csv_writer_made_is_read_as_csv_if_told_so(tmp_path: Path) -> None:
    stream = io.StringIO()
    csv.writer(stream, delimiter="\t").writerows([["url", "caption"], [url(0), 'a "quoted"\tone']])
    rows, _ = read_text(tmp_path, "l.tsv", stream.getvalue(), format="csv")
    assert pairs(rows) == [(url(0), 'a "quoted"\tone')]
    _, tally = read_text(tmp_path, "m.tsv", f'url\tcaption\n{url(0)}\t"a ""quoted"" one"\n')
    assert counts(tally) == {delimited.MAYBE_QUOTED: 1}
    with pytest.raises(ValueError, match=r"the header is quoted.*set input\.format to csv"):
        read_text(tmp_path, "q.tsv", f'"url"\t"caption"\n"{url(0)}"\t"a"\n')
    with pytest.raises(ValueError, match=r"the header has no tab.*set input\.format to csv"):
        read_text(tmp_path, "c.tsv", f"url,caption\n{url(0)},a\n")


def test_spaces_and_marks_around_the_names_of_columns_do_not_count(tmp_path: Path) -> None:
    text = f"\ufeff url ,\u00a0caption\u200b, score \n{url(0)},a,1\n"
    rows, _ = read_text(tmp_path, "l.csv", text, columns=("score",))
    assert (rows[0]["url"], rows[0]["caption"], rows[0]["score"]) == (url(0), "a", "1")
    rows, _ = read_text(tmp_path, "l.csv", text, columns=(" score ",), url_column=" url ", caption_column=None)
    assert (rows[0]["url"], rows[0][" score "]) == (url(0), "1")
    with pytest.raises(ValueError, match=r"no column 'link'; its columns: url, caption, score"):
        read_text(tmp_path, "l.csv", text, url_column="link")


def test_an_empty_cell_is_null_and_words_for_nothing_are_text(tmp_path: Path) -> None:
    words = ["", '""', "null", "NA", "None", "nan", "\\N", " "]
    lines = [f"{url(number)},{word},{word}" for number, word in enumerate(words)]
    rows, _ = read_text(tmp_path, "l.csv", "\n".join(["url,caption,score", *lines]), columns=("score",))
    expected = [None, None, "null", "NA", "None", "nan", "\\N", " "]
    assert [row["caption"] for row in rows] == [row["score"] for row in rows] == expected


LETTERS = st.text(alphabet="ab ,;\"\t\n\r\\'\u00e9\u2028\u0000", max_size=12)


@settings(max_examples=150, deadline=None)
@given(
    captions=st.lists(LETTERS, min_size=1, max_size=8),
    quoting=st.sampled_from([csv.QUOTE_MINIMAL, csv.QUOTE_ALL]),
    ends=st.sampled_from(["\n", "\r\n"]),
    url_first=st.booleans(),
)
def test_what_a_csv_writer_wrote_is_what_is_read(captions: list[str], quoting: Any, ends: str, url_first: bool) -> None:
    stream = io.StringIO()
    writer = csv.writer(stream, quoting=quoting, lineterminator=ends)
    order = slice(None) if url_first else slice(None, None, -1)
    if ends == "\n":  # Python's writer would leave a CR unquoted
        captions = [caption.replace("\r", "") for caption in captions]
    writer.writerow(["url", "caption"][order])
    writer.writerows([[url(number), caption][order] for number, caption in enumerate(captions)])
    with tempfile.TemporaryDirectory() as folder:
        rows, tally = read_text(Path(folder), "l.csv", stream.getvalue())
    assert pairs(rows) == [(url(number), caption or None) for number, caption in enumerate(captions)]
    assert counts(tally) == {}


@settings(max_examples=150, deadline=None)
@given(captions=st.lists(st.text(alphabet="ab \"',;\u00e9", max_size=10), min_size=1, max_size=8))
def test_a_writer_without_any_quoting_is_read_line_by_line(captions: list[str]) -> None:
    """The slow oracle: a cell is unquoted only if it is quoted as a whole, by the rules."""

    def oracle(cell: str) -> str | None:
        whole = re.fullmatch(r'"((?:[^"]|"")*)" *', cell)
        return (whole[1].replace('""', '"') if whole else cell) or None

    captions = [caption.replace(",", ";") for caption in captions]
    lines = ["url,caption", *(f"{url(number)},{caption}" for number, caption in enumerate(captions))]
    with tempfile.TemporaryDirectory() as folder:
        rows, _ = read_text(Path(folder), "l.csv", "\n".join(lines))
    assert pairs(rows) == [(url(number), oracle(caption)) for number, caption in enumerate(captions)]


@settings(max_examples=300, deadline=None)
@given(st.text(alphabet='a,"\n\\ :/\u00e9', max_size=80))
def test_every_line_of_any_csv_is_in_one_row_or_counted(text: str) -> None:
    text = "url,caption\n" + text.replace("a:", url(0))
    with tempfile.TemporaryDirectory() as folder:
        rows, tally = read_text(Path(folder), "l.csv", text)
    lines = text.split("\n")[1:]
    if lines[-1] == "":
        lines.pop()
    inside = sum(((row["url"] or "") + (row["caption"] or "")).count("\n") for row in rows)
    blank = tally.repaired[delimited.BLANK].rows if delimited.BLANK in tally.repaired else 0
    numbers = [row["input_row"] for row in rows]
    assert len(rows) + inside + blank == len(lines)
    assert numbers == sorted(set(numbers))
    for row in rows:
        if row["url"]:
            line = lines[row["input_row"]]
            assert any(row["url"].split("\n")[0].strip('"') in text for text in (line, line.replace('""', '"')))


@settings(max_examples=150, deadline=None)
@given(st.lists(st.lists(st.text(alphabet='ab "\\,\u00e9\u2028', max_size=6), min_size=1, max_size=4), max_size=8))
def test_a_tsv_is_split_at_tabs_and_nothing_else(table: list[list[str]]) -> None:
    lines = ["\t".join([url(number), *cells]) for number, cells in enumerate(table)]
    with tempfile.TemporaryDirectory() as folder:
        rows, _ = read_text(Path(folder), "l.tsv", "\n".join(["url\tcaption\tnote", *lines]), columns=("note",))
    assert [row["url"] for row in rows] == [url(number) for number in range(len(table))]
    for row, cells in zip(rows, table, strict=True):
        if any(cells[2:]):
            assert row["problem"].endswith(delimited.MORE_CELLS)
        else:
            assert (row["caption"], row["note"]) == tuple(cell or None for cell in [*cells, "", ""][:2])


def test_a_header_that_is_one_cell_is_shown_as_the_columns_it_seems_to_hold(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"its columns: id, Image URL, Alt \(if ';' separates them\); set input.url"):
        read_text(tmp_path, "l.csv", f"id;Image URL;Alt\n1;{url(0)};a\n", url_column="link")


@pytest.mark.parametrize("name", ["b.csv", "b.tsv", "b.csv.gz"])
@pytest.mark.parametrize("text", ["", "\ufeff", "\r\n\n"])
def test_an_empty_part_among_lists_has_no_rows_and_is_counted(tmp_path: Path, name: str, text: str) -> None:
    first, part = tmp_path / "a.csv", tmp_path / name
    first.write_text("url,caption\nhttp://a/,x\n")
    part.write_bytes(gzip.compress(text.encode()) if name.endswith(".gz") else text.encode())
    rows, tally = read_and_count((str(first), str(part)))
    assert pairs(rows) == [("http://a/", "x")]
    assert counts(tally) == {EMPTY_FILE: 1}
