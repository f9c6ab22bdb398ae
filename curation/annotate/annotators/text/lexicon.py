"""Lexicon files: an entry a line, and finding entries in what `spelling` reads.

A line is a word or a phrase; `#` begins a comment. `~` before it: it counts only in a disguised spelling, because
spelled plainly it is most often harmless (a nude lipstick). Of every entry the last word is also found inflected as
English does; other forms are listed. A phrase is found run together too (#nakedwoman).
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cache

from headrace import files
from headrace.curation.annotate.annotators.text.spelling import Reading, folded, readings

MAX_LEXICON_BYTES = 16 * 1024 * 1024
MAX_WORDS = 32
"""Of an entry: each word that follows is looked for by a call of its own."""
MIN_RUN_TOGETHER = 8
"""Letters of a phrase that is found run together: shorter ones are parts of other words."""

_IRREGULAR = {"woman": "women", "women": "woman", "man": "men", "men": "man"}


@dataclass(frozen=True, slots=True)
class Form:
    """One way to write an entry."""

    words: tuple[str, ...]
    entry: str
    disguised_only: bool


@dataclass(frozen=True, slots=True)
class Lexicon:
    """Every form of every entry, by its first word; words with a masked letter are looked up by length."""

    by_first: dict[str, list[Form]] = field(default_factory=dict)
    single_by_length: dict[int, list[Form]] = field(default_factory=dict)

    @classmethod
    def of(cls, lines: Iterable[str]) -> "Lexicon":
        """Make a lexicon of the lines of files."""
        forms = dict.fromkeys(form for line in lines for form in _forms(line))
        made = cls()
        for form in forms:
            made.by_first.setdefault(form.words[0], []).append(form)
            if len(form.words) == 1:
                made.single_by_length.setdefault(len(form.words[0]), []).append(form)
        return made

    def find(self, text: str) -> list[str]:
        """Return the different entries that occur in a text, sorted."""
        places = readings(text)
        found = set()
        for start, starting in enumerate(places):
            for reading in starting:
                for form in self._forms_of(reading):
                    disguised = _rest_matches(form.words[1:], places, start + reading.span)
                    if disguised is not None and (disguised or reading.disguised or not form.disguised_only):
                        found.add(form.entry)
        return sorted(found)

    def _forms_of(self, reading: Reading) -> Sequence[Form]:
        if "*" in reading.word:
            same = self.single_by_length.get(len(reading.word), [])
            return [form for form in same if _fits_mask(form.words[0], reading.word)]
        return self.by_first.get(reading.word, ())


def _fits_mask(word: str, mask: str) -> bool:
    """True where the mask shows both ends and hides letters between: `p*rn`, not `***`."""
    return (
        mask[0] != "*" != mask[-1]
        and mask.count("*") * 2 <= len(mask)
        and all(shown in ("*", letter) for letter, shown in zip(word, mask, strict=True))
    )


def _rest_matches(words: tuple[str, ...], places: list[list[Reading]], place: int) -> bool | None:
    """Return whether a reading in disguise was needed for the words that follow; None if they do not follow."""
    if not words:
        return False
    for reading in places[place] if place < len(places) else ():
        if reading.word == words[0]:
            rest = _rest_matches(words[1:], places, place + reading.span)
            if rest is not None:
                return reading.disguised or rest
    return None


def _forms(line: str) -> Iterator[Form]:
    text = line.strip()
    if text.startswith("#"):
        return
    disguised_only = text.startswith("~")
    entry = " ".join(folded(text.removeprefix("~")).split())
    words = tuple(reading[0].word for reading in readings(entry))
    if not words:
        return
    for last in _inflected(words[-1]):
        form = (*words[:-1], last)
        yield Form(form, " ".join(words), disguised_only)
        joined = "".join(form)
        if len(form) > 1 and len(joined) >= MIN_RUN_TOGETHER:
            yield Form((joined,), " ".join(words), disguised_only)


def _inflected(word: str) -> list[str]:
    """Return a word, its plural and its forms as a verb, as English makes them; other scripts have none of these."""
    if not word.isascii() or not word.isalpha() or len(word) < 3:
        return [word]
    forms = [word, _IRREGULAR.get(word, "")]
    if word.endswith("y") and word[-2] not in "aeiou":
        forms.append(word[:-1] + "ies")
    else:
        forms.append(word + ("es" if word.endswith(("s", "x", "z", "ch", "sh")) else "s"))
    stem = word.removesuffix("e")
    forms += [stem + "ing", stem + "ed"]
    return list(dict.fromkeys(form for form in forms if form))


@cache
def load_lexicon(urls: tuple[str, ...]) -> Lexicon:
    """Read lexicon files. Raises ValueError if one cannot be read or holds no entry."""
    return Lexicon.of(line for url in urls for line in read_lines(url))


@cache
def read_lines(url: str) -> tuple[str, ...]:
    """Return the lines of a lexicon file. Raises ValueError if it cannot be read, holds no entry, or one too long."""
    try:
        if files.size_of(url) > MAX_LEXICON_BYTES:
            raise ValueError(f"lexicon {url} is over {MAX_LEXICON_BYTES} bytes")
        lines = tuple(files.read_bytes(url).decode("utf-8-sig").splitlines())
    except UnicodeDecodeError as error:
        raise ValueError(f"lexicon {url} is not UTF-8 text (byte {error.start})") from error
    except OSError as error:
        raise ValueError(
            f"lexicon {url} cannot be read ({type(error).__name__}); check annotate.unsafe_text"
        ) from error
    forms = [(number, form) for number, line in enumerate(lines, 1) for form in _forms(line)]
    for number, form in forms:
        if len(form.words) > MAX_WORDS:
            raise ValueError(f"lexicon {url}, line {number}: {len(form.words)} words; an entry has at most {MAX_WORDS}")
    if not forms:
        raise ValueError(f"lexicon {url} holds no word; write one word or phrase a line")
    return lines
