"""Promises of text that comes from data and is shown to a person."""

from hypothesis import given
from hypothesis import strategies as st

from headrace.text import MAX_SHOWN, one_line, printable, shown


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
