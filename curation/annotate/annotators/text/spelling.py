"""A caption as words that may stand at each place, disguised spellings read as what they mean.

A plain reading is a whole word in any case, without accents and compatibility forms. A disguised one was hidden by
digits and signs (`p0rn`, `$ex`), letters of another script that look the same, invisible characters, letters apart
(`n u d e`), a letter masked by `*`, or letters repeated three times and more. Pieces of several letters are never
joined: `pen is` is two words.
"""

import re
import unicodedata
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product

MIN_APART = 3
"""Single letters in a row that may be a word; `a b c` is no more than that."""
MAX_APART = 24
MAX_READINGS = 16
"""Readings of one word: a digit may stand for two letters."""
MIN_LONG_DISGUISE = 5
"""From this length on digits may outnumber letters: `b00b5`; `A55` is a road."""

_WORD = re.compile(r"[^\W_]+")
_SIGNED = re.compile(r"[@$]?[^\W_]+(?:[@$!|+*\u20ac]+[^\W_]+)*\$?")
_SIGNS = {"@": "a", "$": "s", "!": "i", "|": "i", "+": "t", "\u20ac": "e"}
_DIGITS = {"0": "o", "1": "il", "3": "e", "4": "a", "5": "s", "6": "g", "7": "t", "8": "b", "9": "g"}
_APART = re.compile(r"[ ._\-*/|,]{1,3}")
_RUN = re.compile(r"([^\W_])\1{2,}")
# Cyrillic and Greek small letters that look like Latin ones. Source: Unicode Technical Standard 39, confusables.txt.
_LOOKALIKES = str.maketrans(
    "\u0430\u0435\u043e\u0440\u0441\u0443\u0445\u0456\u0458\u0455\u0501\u051b\u0432\u043a\u043c\u043d\u0442"
    "\u03b1\u03bf\u03c1\u03c5\u03bd\u03b9\u03ba\u03c4\u03b5\u0131\u0251",
    "aeopcyxijsdqbkmhtaopuviktei\u0061",
)
_TO_CYRILLIC = str.maketrans("aeopcyxkmhtb", "\u0430\u0435\u043e\u0440\u0441\u0443\u0445\u043a\u043c\u043d\u0442\u0432")
_INVISIBLE = re.compile(r"[\u00ad\u200b-\u200f\u202a-\u202e\u2060-\u2064\ufeff\ufe00-\ufe0f]")
# A soft hyphen is a typesetter's; the others have no business inside a word.
_HIDDEN = re.compile(r"(?<![^\W_])[^\W_]++(?:[\u200b\u200e\u200f\u202a-\u202e\u2060-\u2064\ufeff]+[^\W_]+)+")
_THREE_APART = re.compile(r"\b[^\W_](?:[ ._\-*/|,]{1,3}[^\W_]){2}(?![^\W_])")
_PLAIN = re.compile(r"[a-zA-Z ,.'\"()?:;&\r\n\t-]*")


@dataclass(frozen=True, slots=True)
class Reading:
    """A word that a caption may hold at a place, over so many plain words."""

    word: str
    span: int
    disguised: bool


def readings(text: str) -> list[list[Reading]]:
    """Return for each plain word of a text the readings that begin there, the plain ones first."""
    clean = folded(text)
    found = list(_WORD.finditer(clean))
    places = [[Reading(match[0], 1, disguised=False)] for match in found]
    if _PLAIN.fullmatch(text) and not _RUN.search(clean) and not _THREE_APART.search(clean):
        return places
    hidden = {folded(match[0]) for match in _HIDDEN.finditer(text)} if not text.isascii() else set()
    for place, match in enumerate(found):
        disguises = _disguises(match[0], hidden=match[0] in hidden)
        places[place] += [Reading(word, 1, disguised=True) for word in disguises]
    starts = {match.start(): place for place, match in enumerate(found)}
    for place, span, word in (*_signed(clean, starts), *_letters_apart(clean, found)):
        places[place].append(Reading(word, span, disguised=True))
    return places


def folded(text: str) -> str:
    """Return a text case-folded, without compatibility forms, accents on letters and invisible characters."""
    if text.isascii():
        return text.casefold()
    plain = _INVISIBLE.sub("", unicodedata.normalize("NFKC", text).casefold())
    return unicodedata.normalize("NFC", "".join(_without_accents(unicodedata.normalize("NFD", plain))))


def _without_accents(text: str) -> Iterator[str]:
    # Marks of scripts such as Devanagari are letters of their own; the breve of Cyrillic i is one too.
    base = ""
    for char in text:
        if not unicodedata.combining(char):
            base = char
        elif base.isascii() or "\u0370" <= base <= "\u03ff":
            continue
        yield char


def _disguises(word: str, *, hidden: bool) -> Iterator[str]:
    """Yield what one word may stand for, beside itself."""
    if hidden:
        yield word
    looks = word.translate(_LOOKALIKES)
    if looks != word and looks.isascii():
        yield looks
    elif looks != word and word.translate(_TO_CYRILLIC) != word:
        yield word.translate(_TO_CYRILLIC)  # Latin letters in a Cyrillic word
    for one in _decoded(looks) if looks.isascii() and not looks.isalpha() else (looks,):
        if one != looks:
            yield one
        run = _RUN.search(one)
        if run is not None:
            yield _RUN.sub(r"\1", one)
            yield _RUN.sub(r"\1\1", one)


def _decoded(word: str) -> list[str]:
    """Return the words that letters with digits and signs may stand for; none where digits are most of a short word."""
    letters = sum(char.isalpha() or char == "*" for char in word)
    if letters == 0 or (letters < len(word) - letters and len(word) < MIN_LONG_DISGUISE):
        return []
    choices = [_SIGNS.get(char) or _DIGITS.get(char) or char for char in word]
    number = 1
    for choice in choices:
        number *= len(choice)
    return ["".join(chosen) for chosen in product(*choices)] if number <= MAX_READINGS else []


def _signed(text: str, starts: dict[int, int]) -> Iterator[tuple[int, int, str]]:
    """Yield (place, words, reading) of the words with signs among their letters."""
    for match in _SIGNED.finditer(text):
        if match[0].isalnum():
            continue
        first = _WORD.search(match[0])
        assert first is not None
        place = starts.get(match.start() + first.start())
        if place is None:
            continue
        span = len(_WORD.findall(match[0]))
        for word in _decoded(match[0].translate(_LOOKALIKES)):
            yield place, span, word


def _letters_apart(text: str, words: list[re.Match[str]]) -> Iterator[tuple[int, int, str]]:
    """Yield (place, words, reading) of single letters that stand in a row."""
    place = 0
    while place < len(words):
        end = place
        while end < len(words) and len(words[end][0]) == 1 and _follows(text, words, place, end):
            end += 1
        yield from _joined([match[0] for match in words[place:end]][:MAX_APART], place)
        place = max(end, place + 1)


def _follows(text: str, words: list[re.Match[str]], start: int, place: int) -> bool:
    if place == start:
        return True
    return _APART.fullmatch(text[words[place - 1].end() : words[place].start()]) is not None


def _joined(letters: list[str], place: int) -> Iterator[tuple[int, int, str]]:
    """Yield the whole row, and what is left without an article at either end; `a n a l y s i s` is one word."""
    last = len(letters)
    starts = (0, 1) if letters[:1] in (["a"], ["i"]) else (0,)
    ends = (last, last - 1) if letters[-1:] in (["a"], ["i"]) else (last,)
    for start in starts:
        for end in ends:
            if end - start >= MIN_APART:
                word = "".join(letters[start:end]).translate(_LOOKALIKES)
                mostly_letters = 2 * sum(char.isalpha() for char in word) > len(word) + 1
                for one in [word] if word.isalpha() else _decoded(word) if mostly_letters else ():
                    yield place + start, end - start, one
