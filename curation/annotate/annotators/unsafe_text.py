"""Captions against lists of words and phrases: whole words, any case, inflected, in common disguises.

score = 1 - 0.5 ** (number of different entries found): 0, 0.5, 0.75, ... It is a list, not a model: it knows no
context, no word that is not on it, and no language that writes without spaces. Version 1 knew neither inflections nor
disguises.
"""

import re
import unicodedata
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, ClassVar, Literal

import pyarrow as pa

from headrace.curation.annotate.annotator import AnnotationBatch, Annotator, Columns
from headrace.curation.annotate.annotators.text.lexicon import load_lexicon, read_lines

LEXICON_OF_VERSION_1 = Path(__file__).with_name("unsafe_words.txt")
LEXICONS = Path(__file__).parent / "text" / "lexicons"

Language = Literal["de", "en", "es", "fr", "it", "pt", "ru"]
LANGUAGES: tuple[Language, ...] = ("de", "en", "es", "fr", "it", "pt", "ru")

_WORD = re.compile(r"[^\W_]+")

Phrase = tuple[str, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class UnsafeTextConfig:
    """A lexicon."""

    lexicon: str = ""
    """File (any fsspec URL, UTF-8) of one word or phrase a line, `#` for comments, `~` before what counts only in
    disguise; empty: the short lists that come with headrace."""
    languages: tuple[Language, ...] = LANGUAGES
    """The bundled lists that are used where `lexicon` is empty."""

    def __post_init__(self) -> None:
        if not self.languages or len(set(self.languages)) != len(self.languages):
            raise ValueError(f"languages must name each of {', '.join(LANGUAGES)} at most once, and one at least")


class UnsafeText(Annotator):
    """Caption against a lexicon.

    Null where there is no caption.
    """

    name: ClassVar[str] = "unsafe_text"
    version: ClassVar[int] = 2
    earlier: ClassVar[Mapping[int, tuple[str, ...]]] = {1: ("unsafe_text_score", "unsafe_text_words")}
    config_type: ClassVar[type[Any]] = UnsafeTextConfig
    of_caption: ClassVar[frozenset[str]] = frozenset(("unsafe_text_score", "unsafe_text_words"))
    needs_pixels: ClassVar[bool] = False
    columns: ClassVar[pa.Schema] = pa.schema(
        [("unsafe_text_score", pa.float32()), ("unsafe_text_words", pa.list_(pa.string()))]
    )

    config: UnsafeTextConfig

    @classmethod
    def remark(cls, settings: Mapping[str, Any]) -> str:  # noqa: ARG003 - the same whatever the list
        return (
            "Captions were looked up in a list of words, which is no filter: it knows no context and nothing that is "
            "not on it. See docs/annotate.md for what it was measured to find, and for models."
        )

    def files(self) -> dict[str, str]:
        if self.config.lexicon:
            return {"lexicon": self.config.lexicon}
        if self.made_as == 1:
            return {"lexicon": str(LEXICON_OF_VERSION_1)}
        return {f"lexicon-{language}": str(LEXICONS / f"{language}.txt") for language in self.config.languages}

    def annotate(self, batch: AnnotationBatch) -> Columns:
        if self.made_as == 1:
            phrases = load_phrases(self.files()["lexicon"])
            found = [None if text is None else find_phrases(text, phrases) for text in batch.captions]
        else:
            lexicon = load_lexicon(tuple(self.files().values()))
            found = [None if text is None else lexicon.find(text) for text in batch.captions]
        return {
            "unsafe_text_score": [None if words is None else 1 - 0.5 ** len(words) for words in found],
            "unsafe_text_words": found,
        }


@cache
def load_phrases(url: str) -> frozenset[Phrase]:
    """Return the phrases of a lexicon file as version 1 read them. Raises ValueError if it cannot be read."""
    phrases = frozenset(split_words(line) for line in read_lines(url) if not line.lstrip().startswith("#")) - {()}
    if not phrases:
        raise ValueError(f"lexicon {url} holds no word; write one word or phrase a line")
    return phrases


def split_words(text: str) -> Phrase:
    """Return the words of a text, case-folded, with compatibility forms (full width, ligatures) made plain."""
    return tuple(_WORD.findall(unicodedata.normalize("NFKC", text).casefold()))


def find_phrases(text: str, lexicon: Iterable[Phrase]) -> list[str]:
    """Return the different entries that occur in `text` as whole words, sorted."""
    phrases = lexicon if isinstance(lexicon, frozenset) else frozenset(lexicon)
    words = split_words(text)
    return sorted(
        {
            " ".join(words[start : start + length])
            for length in _lengths(phrases)
            for start in range(len(words) - length + 1)
            if words[start : start + length] in phrases
        }
    )


@cache
def _lengths(phrases: frozenset[Phrase]) -> tuple[int, ...]:
    return tuple(sorted({len(phrase) for phrase in phrases}))
