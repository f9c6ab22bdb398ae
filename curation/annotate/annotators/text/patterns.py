"""What a caption says about people and machines: addresses, numbers, links, words said again and again.

Only counts leave this file: no address is copied into a table or a log. Patterns find what is written as usual; they
are no proof that nothing personal is there.
"""

import re
from collections import Counter
from dataclasses import dataclass

_EMAIL = re.compile(r"(?<![\w.+-])[\w.+-]{1,64}@(?:[\w-]{1,63}\.){1,8}[^\W\d_]{2,24}\b")
_URL = re.compile(
    r"https?://[^\s<>\"]+|(?<![\w@.])www\.[\w-]+\.[^\s<>\"]+"
    r"|(?<![\w@.-])(?:[\w-]{1,63}\.){1,4}(?:com|org|net|info|biz|io|co\.uk|de|fr|es|it|nl|pl|ru|jp|cn|br)\b(?:/[^\s<>\"]*)?",
    re.IGNORECASE,
)
# With a country code, with an area code in brackets, in the groups of North America, or of two parts from a 0 on.
_PHONE = re.compile(
    r"(?<![\w./#-])(?:"
    r"\+\d{1,3}[ ./-]?(?:\(0\)[ ./-]?)?(?:\(?\d{1,5}\)?[ ./-]?){1,6}\d{2,6}"
    r"|(?:1[ .-])?\(\d{2,5}\)[ ./-]?\d{3,4}[ .-]?\d{3,5}"
    r"|(?:1[ .-])?\d{3}([ .-])\d{3}\1\d{4}"
    r"|0\d{2,4}[ /-]\d{5,8}"
    r")(?![\w-])"
)
MIN_PHONE_DIGITS, MAX_PHONE_DIGITS = 7, 15
"""Source of the upper bound: ITU-T E.164."""

GRAM_WORDS = (2, 3, 4)


@dataclass(frozen=True, slots=True)
class Patterns:
    """How often a caption holds each."""

    emails: int
    phones: int
    urls: int


def count_patterns(text: str) -> Patterns:
    """Return how many e-mail addresses, telephone numbers and links a text holds; an address holds no link."""
    emails = 0
    if "@" in text:
        text, emails = _EMAIL.subn(" ", text)
    urls = 0
    if "." in text:
        text, urls = _URL.subn(" ", text)
    phones = 0
    if sum(char.isdecimal() for char in text) >= MIN_PHONE_DIGITS:
        for match in _PHONE.finditer(text):
            digits = sum(char.isdecimal() for char in match[0])
            phones += MIN_PHONE_DIGITS <= digits <= MAX_PHONE_DIGITS
    return Patterns(emails, phones, urls)


def repetition(text: str) -> float:
    """Return the share of words that lie in the n-gram of 2, 3 or 4 words that says most again; 0 if none comes twice.

    Overlapping ones count once. Source: the idea of MassiveText's top n-gram filter, arXiv:2112.11446, table A1.
    """
    words = text.casefold().split()
    best = 0
    for length in GRAM_WORDS:
        if len(words) < 2 * length:
            break
        grams = list(zip(*(words[start:] for start in range(length)), strict=False))
        gram, times = Counter(grams).most_common(1)[0]
        if times > 1:
            apart = _times_apart(grams, gram, length)
            best = max(best, apart * length if apart > 1 else 0)
    return round(best / len(words), 4) if words else 0.0


def _times_apart(grams: list[tuple[str, ...]], gram: tuple[str, ...], length: int) -> int:
    times = place = 0
    while place < len(grams):
        found = grams[place] == gram
        times += found
        place += length if found else 1
    return times
