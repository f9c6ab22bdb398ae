"""What is counted and found in captions."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from headrace.curation.annotate.annotators.caption import CaptionConfig, CaptionFacts
from headrace.curation.annotate.annotators.unsafe_text import UnsafeText, UnsafeTextConfig, find_phrases, split_words


def unsafe(batch, lexicon=""):
    return UnsafeText(UnsafeTextConfig(lexicon=str(lexicon))).annotate(batch)


def test_words_and_characters_are_counted_and_a_missing_caption_is_null(batch_of):
    captions = ["a red  square", "", None, "caf\u00e9 \U0001f600", "\u4e00\u4e8c"]
    columns = CaptionFacts(CaptionConfig()).annotate(batch_of([None] * 5, captions))
    assert columns == {"caption_chars": [13, 0, None, 6, 2], "caption_words": [3, 0, None, 2, 1]}


@pytest.mark.parametrize(
    ("caption", "found"),
    [
        ("a porn film", ["porn"]),
        ("PORN!", ["porn"]),
        ("porn_pics-2", ["porn"]),
        ("\uff30\uff4f\uff52\uff4e", ["porn"]),
        ("popcorn and spornosexual", []),
        ("a sex\ntape, a Sex Tape", ["sex tape"]),
        ("same-sex couple with tape", []),
        ("Essex tapestry", []),
        ("nsfw xxx", ["nsfw", "xxx"]),
        ("", []),
    ],
)
def test_the_bundled_lexicon_finds_whole_words_only(caption, found, batch_of):
    columns = unsafe(batch_of([None], [caption]))
    assert columns["unsafe_text_words"] == [found]
    assert columns["unsafe_text_score"] == [1 - 0.5 ** len(found)]


def test_a_missing_caption_has_no_text_score(batch_of):
    assert unsafe(batch_of([None], [None])) == {"unsafe_text_score": [None], "unsafe_text_words": [None]}


def test_a_lexicon_of_ones_own_replaces_the_default(tmp_path, batch_of):
    lexicon = tmp_path / "words.txt"
    lexicon.write_text("\ufeff# a comment\nBad Thing\n\nworse\n", encoding="utf-8")
    columns = unsafe(batch_of([None] * 3, ["one BAD  thing", "porn", "worse, a bad thing"]), lexicon)
    assert columns["unsafe_text_words"] == [["bad thing"], [], ["bad thing", "worse"]]
    assert columns["unsafe_text_score"] == [0.5, 0, 0.75]


@pytest.mark.parametrize(("content", "message"), [(b"# only\n\n", "no word"), (b"\xff\xfe", "not UTF-8")])
def test_a_useless_lexicon_is_refused_by_name(content, message, tmp_path, batch_of):
    lexicon = tmp_path / "words.txt"
    lexicon.write_bytes(content)
    with pytest.raises(ValueError, match=rf"words\.txt.*{message}"):
        unsafe(batch_of([None], ["x"]), lexicon)
    with pytest.raises(ValueError, match="nowhere"):
        unsafe(batch_of([None], ["x"]), tmp_path / "nowhere.txt")


@given(st.lists(st.sampled_from(["a", "bb", "c-c", "Dd", "ee"]), max_size=12), st.lists(st.text("abcde ", max_size=6)))
def test_phrases_are_found_as_a_plain_search_finds_them(words, entries):
    text = " ".join(words)
    lexicon = frozenset(split_words(entry) for entry in entries) - {()}
    padded = f" {' '.join(split_words(text))} "
    expected = sorted(" ".join(phrase) for phrase in lexicon if f" {' '.join(phrase)} " in padded)
    assert find_phrases(text, lexicon) == expected
