"""What is counted and found in captions."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from headrace.curation.annotate.annotators.caption import CaptionConfig, CaptionFacts
from headrace.curation.annotate.annotators.text.spelling import readings
from headrace.curation.annotate.annotators.unsafe_text import UnsafeText, UnsafeTextConfig, find_phrases, split_words


def unsafe(batch, lexicon=""):
    return UnsafeText(UnsafeTextConfig(lexicon=str(lexicon))).annotate(batch)


def test_words_and_characters_are_counted_and_a_missing_caption_is_null(batch_of):
    captions = ["a red  square", "", None, "caf\u00e9 \U0001f600", "\u4e00\u4e8c"]
    columns = CaptionFacts(CaptionConfig()).annotate(batch_of([None] * 5, captions))
    assert columns["caption_chars"] == [13, 0, None, 6, 2]
    assert columns["caption_words"] == [3, 0, None, 2, 1]


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


# The seven of the measured fault and others like them, none of them a line of a lexicon as it stands.
DISGUISED = {
    "naked women": "naked woman",
    "p0rn": "porn",
    "n u d e": "nude",
    "PORN\u200bO": "porno",
    "s3x tape": "sex tape",
    "\u0440\u043erno": "porno",
    "\u043f\u043e\u0440\u043do": "\u043f\u043e\u0440\u043d\u043e",
    "pooorn": "porn",
    "N.A.K.E.D": "naked",
    "#nakedwoman": "naked woman",
    "p*rn": "porn",
    "ph0t0 of a nud3": "nude",
    "$ex video": "sex video",
    "Mujeres  DESNUDAS": "mujeres desnudas",
    "nackte M\u00e4dchen": "nackte madchen",
    "\u0433\u043e\u043b\u044b\u0435 \u0434\u0435\u0432\u0443\u0448\u043a\u0438": (
        "\u0433\u043e\u043b\u044b\u0435 \u0434\u0435\u0432\u0443\u0448\u043a\u0438"
    ),
}
INNOCENT = [
    *("Essex classic therapist Scunthorpe cocktail Dickens analysis assassin Middlesex", "the pen is red; is it?"),
    *("nude lipstick on naked skin", "naked mole rat", "Moby Dick", "great tits", "unisex sextant", "A55 road", "N95"),
    *("a n a l y s i s", "V I N T A G E", "A B C D E", "U.S.A. vs U.K.", "\u2764\ufe0f nude pumps", "www AAA III"),
    *("Pornic in Brittany, Pornthip from Bangkok", "MP3 1080p 4K H2O", "f*** this *bold*", "1 2 3 4 5", "5 e x 3"),
    *("soft hyphens: Dick\u00adens, class\u00adics", "circumstance document cumin grape", "bass@grass.com c*t"),
]


@pytest.mark.parametrize("caption", DISGUISED)
def test_common_disguises_and_inflections_are_found(caption, batch_of):
    assert DISGUISED[caption] in unsafe(batch_of([None], [caption]))["unsafe_text_words"][0]


@pytest.mark.parametrize("caption", INNOCENT)
def test_innocent_captions_are_not(caption, batch_of):
    assert unsafe(batch_of([None], [caption]))["unsafe_text_words"] == [[]]


@given(st.text(max_size=80))
def test_any_caption_is_read(caption):
    for place in readings(caption):
        assert place[0].span == 1
        assert not place[0].disguised


def test_hostile_captions_cost_no_more_than_their_length(batch_of):
    import time

    started = time.process_time()
    for caption in ("a " * 50_000, "n.u" * 50_000, "1" * 100_000, "a*" * 50_000, "@a" * 50_000, "p\u200b" * 50_000):
        unsafe(batch_of([None], [caption]))
    assert time.process_time() - started < 20  # a second or two; the square of the length would be minutes


def test_languages_are_chosen_and_a_lexicon_of_ones_own_may_count_only_in_disguise(tmp_path, batch_of):
    german = UnsafeText(UnsafeTextConfig(languages=("de",)))
    assert german.annotate(batch_of([None], ["porn titten"]))["unsafe_text_words"] == [["titten"]]
    assert list(german.files()) == ["lexicon-de"]
    (tmp_path / "words.txt").write_text("~blue\n")
    found = unsafe(batch_of([None] * 2, ["blue", "b l u e"]), tmp_path / "words.txt")
    assert found["unsafe_text_words"] == [[], ["blue"]]


def test_a_missing_caption_has_no_text_score(batch_of):
    assert unsafe(batch_of([None], [None])) == {"unsafe_text_score": [None], "unsafe_text_words": [None]}


def test_a_lexicon_of_ones_own_replaces_the_default(tmp_path, batch_of):
    lexicon = tmp_path / "words.txt"
    lexicon.write_text("\ufeff# a comment\nBad Thing\n\nworse\n", encoding="utf-8")
    columns = unsafe(batch_of([None] * 3, ["one BAD  thing", "porn", "worse, a bad thing"]), lexicon)
    assert columns["unsafe_text_words"] == [["bad thing"], [], ["bad thing", "worse"]]
    assert columns["unsafe_text_score"] == [0.5, 0, 0.75]


@pytest.mark.parametrize(
    ("content", "message"),
    [(b"# only\n\n", "no word"), (b"\xff\xfe", "not UTF-8"), (b"fine\n" + b"bad " * 2000, "line 2: 2000 words")],
)
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
