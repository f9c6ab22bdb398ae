"""Heads read alone: lines to status, fields and the end of the body."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from headrace.curation.fetch.errors import FetchError
from headrace.curation.fetch.net.head import Framing, framing, parse_head, parse_status


def head_of(*lines: str, status: str = "HTTP/1.1 200 OK"):
    return parse_head([line.encode("latin-1") + b"\r" for line in (status, *lines, "")])


def test_fields_keep_their_order_and_lose_their_case() -> None:
    head = head_of("B: 1", "a:2 ", "b:  3, 4,,")
    assert head.fields == (("b", "1"), ("a", "2"), ("b", "3, 4,,"))
    assert head.values("b") == ["1", "3, 4,,"]
    assert head.words("b") == ["1", "3", "4"]
    assert (head.status, head.odd) == (200, False)


@pytest.mark.parametrize(
    ("line", "status"),
    [(b"HTTP/1.1 200 OK\r", 200), (b"http/1.0  404", 404), (b"HTTP/2 301\r", 301), (b"HTTP/1.1\t999 x y", 999)],
)
def test_a_status_line_is_read(line: bytes, status: int) -> None:
    assert parse_status(line)[1] == status


@pytest.mark.parametrize(
    "line",
    [
        b"",
        b"HTTP/1.1",
        b"HTTP/1.1 20",
        b"HTTP/1.1 2000",
        b"HTTP/1.1 200OK",
        b"HTTP/1.1200",
        b" HTTP/1.1 200",
        b"OK 200",
    ],
)
def test_what_is_no_status_line_is_refused(line: bytes) -> None:
    with pytest.raises(FetchError, match="not HTTP"):
        parse_status(line)


@pytest.mark.parametrize(
    ("lines", "expected"),
    [
        ((), Framing()),
        (("Content-Length: 5",), Framing(length=5)),
        (("Content-Length: 5", "Content-Length: 05"), Framing(length=5, odd=True)),
        (("Transfer-Encoding: identity", "Content-Length: 5"), Framing(length=5, odd=True)),
        (("Transfer-Encoding: chunked",), Framing(chunked=True)),
        (("Transfer-Encoding: chunked", "Content-Length: 5"), Framing(chunked=True, odd=True)),
        (("Transfer-Encoding: gzip", "Transfer-Encoding: chunked"), Framing(chunked=True, codings=("gzip",), odd=True)),
    ],
)
def test_the_end_of_a_body_is_where_the_standard_says(lines: tuple[str, ...], expected: Framing) -> None:
    assert framing(head_of(*lines)) == expected


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        (("Content-Length: 5", "Content-Length: 6"), "conflicting Content-Lengths: 5, 6"),
        (("Content-Length: 5 6",), "not a number"),
        (("Content-Length: \u00b2",), "not a number"),
        (("Content-Length: " + "9" * 5000,), "5000 digits"),
        (("Transfer-Encoding: chunked, identity, chunked",), "no one end"),
    ],
)
def test_an_end_that_could_be_two_places_is_refused(lines: tuple[str, ...], message: str) -> None:
    with pytest.raises(FetchError, match=message):
        framing(head_of(*lines))


@pytest.mark.parametrize("line", ["X : 1", ": 1", "X", " folded", "X: \x00", "X: a\rb"])
def test_an_odd_line_is_marked_and_costs_no_other(line: str) -> None:
    head = head_of("Content-Length: 5", line, "Etag: 1")
    assert head.odd
    assert head.values("etag") == ["1"]


@pytest.mark.parametrize(
    ("status", "connection", "keeps_open"),
    [
        ("HTTP/1.1 200", "keep-alive", True),
        ("HTTP/1.1 200", "x, Close", False),
        ("HTTP/1.0 200", "keep-alive", False),
        ("HTTP/2 200", "", False),
    ],
)
def test_only_http_1_1_without_close_keeps_a_connection(status: str, connection: str, keeps_open: bool) -> None:
    assert head_of(f"Connection: {connection}", status=status).keeps_open is keeps_open


@given(st.lists(st.binary(max_size=40).filter(lambda line: b"\n" not in line), max_size=8))
def test_any_lines_at_all_are_a_head_or_a_failure(lines: list[bytes]) -> None:
    message = ""
    try:
        framing(parse_head([b"HTTP/1.1 200 OK\r", *lines, b"\r"]))
    except FetchError as error:
        message = error.message
    assert message.isprintable()
