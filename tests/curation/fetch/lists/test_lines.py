"""Text lists in any encoding and with any line ends give the same lines; what is no text is refused with the reason."""

import codecs
import gzip
import io
from pathlib import Path

import pytest
from list_reading import counts, pairs, read_text

from headrace.curation.fetch.lists.lines import INNER_MARK, MAX_LINE_CHARS, NotTextError, read_lines, valid_text
from headrace.curation.fetch.lists.rows import NO_TEXT, URL_NO_TEXT

TEXT = "url,caption\r\nhttp://a.example/0.jpg,caf\u00e9 \U0001f600\r\nhttp://a.example/\u00e9.jpg,\u4e2d\u6587\r\n"
EXPECTED = [("http://a.example/0.jpg", "caf\u00e9 \U0001f600"), ("http://a.example/\u00e9.jpg", "\u4e2d\u6587")]

ENCODED = {
    "utf-8": TEXT.encode(),
    "utf-8 with mark": codecs.BOM_UTF8 + TEXT.encode(),
    **{
        f"{name}{told}": mark + TEXT.encode(name)
        for name, marks in {
            "utf-16-le": codecs.BOM_UTF16_LE,
            "utf-16-be": codecs.BOM_UTF16_BE,
            "utf-32-le": codecs.BOM_UTF32_LE,
            "utf-32-be": codecs.BOM_UTF32_BE,
        }.items()
        for told, mark in {"": b"", " with mark": marks}.items()
    },
}


class Dribble(io.RawIOBase):
    """A stream that gives a few bytes at a time, as a network does."""

    def __init__(self, data: bytes, size: int) -> None:
        self._data, self._size = io.BytesIO(data), size

    def readable(self) -> bool:
        return True

    def read(self, size: int = -1) -> bytes:
        return self._data.read(min(size, self._size) if size >= 0 else self._size)


@pytest.mark.parametrize("name", list(ENCODED))
def test_every_encoding_gives_the_same_rows(tmp_path: Path, name: str) -> None:
    rows, tally = read_text(tmp_path, "l.csv", ENCODED[name])
    assert pairs(rows) == EXPECTED
    assert counts(tally) == {}


@pytest.mark.parametrize("name", list(ENCODED))
@pytest.mark.parametrize("size", [1, 3, 7])
def test_lines_do_not_depend_on_how_bytes_arrive(name: str, size: int) -> None:
    lines = list(read_lines(Dribble(ENCODED[name], size), print))  # type: ignore[arg-type]
    assert lines == TEXT.splitlines(keepends=True)


def test_bytes_that_are_no_utf8_cost_a_letter_of_a_caption_and_a_row_of_the_url(tmp_path: Path) -> None:
    text = b"url,caption\nhttp://a.example/0.jpg,caf\xe9\nhttp://a.example/\xe9.jpg,x\nhttp://a.example/2.jpg,fine\n"
    rows, tally = read_text(tmp_path, "l.csv", text)
    assert pairs(rows) == [("http://a.example/0.jpg", "caf\ufffd"), ("http://a.example/2.jpg", "fine")]
    assert rows[1]["problem"] == f"line 3: {URL_NO_TEXT}"
    assert counts(tally) == {URL_NO_TEXT: 1, NO_TEXT: 1}


@pytest.mark.parametrize("wide", ["utf-16-le", "utf-32-le"])
def test_a_cut_wide_letter_at_the_end_is_seen(tmp_path: Path, wide: str) -> None:
    rows, tally = read_text(tmp_path, "l.csv", "\ufeffurl,caption\nhttp://a.example/0.jpg,ab".encode(wide)[:-1])
    assert pairs(rows) == [("http://a.example/0.jpg", "a\ufffd")]
    assert counts(tally) == {NO_TEXT: 1}


def test_each_of_several_lists_may_begin_with_a_mark_and_so_may_joined_ones(tmp_path: Path) -> None:
    for name in ("a.txt", "b.txt"):
        (tmp_path / name).write_bytes(codecs.BOM_UTF8 + f"http://{name}/\n".encode())
    both = (tmp_path / "a.txt").read_bytes() + (tmp_path / "b.txt").read_bytes()
    rows, tally = read_text(tmp_path, "joined.txt", both)
    assert [row["url"] for row in rows] == ["http://a.txt/", "http://b.txt/"]
    assert counts(tally) == {INNER_MARK: 1}


@pytest.mark.parametrize("ends", ["\n", "\r\n", "\r"])
def test_a_last_line_needs_no_end_and_an_overlong_one_is_one_row(tmp_path: Path, ends: str) -> None:
    lines = ["http://a.example/", "b" * (3 * MAX_LINE_CHARS), "", "http://c.example/"]
    rows, _ = read_text(tmp_path, "l.txt", ends.join(lines))
    assert [row["url"] for row in rows] == ["http://a.example/", None, "", "http://c.example/"]
    assert [row["problem"] is None for row in rows] == [True, False, False, True]


def test_a_lone_return_ends_a_line_of_urls(tmp_path: Path) -> None:
    rows, _ = read_text(tmp_path, "l.txt", "http://a/\rhttp://b/\nhttp://c/\r\n")
    assert [row["url"] for row in rows] == ["http://a/", "http://b/", "http://c/"]
    assert [row["input_row"] for row in rows] == [0, 1, 2]


@pytest.mark.parametrize(
    ("data", "kind"),
    [
        (gzip.compress(b"url\n", mtime=0), "gzip"),
        (b"PAR1....", "parquet"),
        (b"PK\x03\x04....", "zip"),
        (b"BZh9....", "bzip2"),
    ],
)
def test_a_list_under_a_wrong_name_is_told_so(tmp_path: Path, data: bytes, kind: str) -> None:
    with pytest.raises(ValueError, match=rf"l\.csv: cannot be read as csv: it begins as a {kind} file does"):
        read_text(tmp_path, "l.csv", data)
    with pytest.raises(NotTextError):
        list(read_lines(io.BytesIO(data), print))


def test_valid_text_is_what_utf8_can_hold() -> None:
    assert valid_text("caf\u00e9") == "caf\u00e9"
    assert valid_text(b"a\xe9\xffb".decode("utf-8", "surrogateescape")) == "a\ufffd\ufffdb"
    assert valid_text("a\ud800b\udfffc") == "a\ufffdb\ufffdc"
