"""Promises of text that comes from data and is shown to a person."""

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from headrace.text import MAX_LINE, MAX_SHOWN, cut_line, one_line, printable, shown, without_secrets


@given(st.text())
def test_nothing_that_a_terminal_obeys_gets_through(text: str) -> None:
    for made in (one_line(text), printable(text), shown(text)):
        assert made.isprintable()


def test_escape_codes_and_bidi_marks_become_spaces() -> None:
    assert printable("a\x1b[31mb\u202ec") == "a [31mb c"
    assert one_line("a\tb\nc\r\n") == "a b c"


@given(st.text(min_size=1000))
def test_a_long_value_is_cut_in_the_middle(text: str) -> None:
    assert len(shown(text)) <= MAX_SHOWN


@pytest.mark.parametrize(
    ("text", "shown_as"),
    [
        ("https://me:secret@host/a.tar: 404", "https://me:***@host/a.tar: 404"),
        ("s3://key:hidden@bucket/a b", "s3://key:***@bucket/a b"),
        ("read http://h/a?X-Amz-Signature=ab12&x=1 again", "read http://h/a?X-Amz-Signature=***&x=1 again"),
        ("http://h/a?x=1&sig=ab%2B12&se=2030", "http://h/a?x=1&sig=***&se=2030"),
        ("http://h/a?access_token=t1&page=2", "http://h/a?access_token=***&page=2"),
        ("http://h/a?size=3&tokens=5", "http://h/a?size=3&tokens=5"),
        ("git+ssh://a.b:secret@host: x://c:hidden@d", "git+ssh://a.b:***@host: x://c:***@d"),
        ("mail me@host: ratio 3:4@5", "mail me@host: ratio 3:4@5"),
    ],
)
def test_what_gives_access_in_a_url_is_not_shown(text: str, shown_as: str) -> None:
    assert without_secrets(text) == shown_as


@pytest.mark.parametrize("text", ["https://h/" + "x" * 1_000_000, "https://h/?" + "a" * 1_000_000, "://a:" * 200_000])
def test_a_url_of_a_million_letters_is_looked_through_at_once(text: str) -> None:
    begun = time.process_time()
    without_secrets(text)
    # Quadratic it took 20 minutes; linear it takes some milliseconds.
    assert time.process_time() - begun < 20
    assert len(cut_line(text)) == MAX_LINE
