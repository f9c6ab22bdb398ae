"""Captions against a list of words and phrases: whole words, any case.

score = 1 - 0.5 ** (number of different entries found): 0, 0.5, 0.75, ... It is a list, not a model: it knows no
context, no spelling tricks, and no language that writes without spaces.
"""

import re
import unicodedata
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, ClassVar

import pyarrow as pa

from headrace import files
from headrace.curation.annotate.annotator import AnnotationBatch, Annotator, Columns

DEFAULT_LEXICON = Path(__file__).with_name("unsafe_words.txt")
MAX_LEXICON_BYTES = 16 * 1024 * 1024

_WORD = re.compile(r"[^\W_]+")

Phrase = tuple[str, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class UnsafeTextConfig:
    """A lexicon."""

    lexicon: str = ""
    """File (any fsspec URL, UTF-8) of one word or phrase a line, `#` for comments; empty: a short English list."""


class UnsafeText(Annotator):
    """Caption against a lexicon.

    Null where there is no caption.
    """

    name: ClassVar[str] = "unsafe_text"
    version: ClassVar[int] = 1
    config_type: ClassVar[type[Any]] = UnsafeTextConfig
    of_caption: ClassVar[frozenset[str]] = frozenset(("unsafe_text_score", "unsafe_text_words"))
    needs_pixels: ClassVar[bool] = False
    columns: ClassVar[pa.Schema] = pa.schema(
        [("unsafe_text_score", pa.float32()), ("unsafe_text_words", pa.list_(pa.string()))]
    )

    config: UnsafeTextConfig

    def files(self) -> dict[str, str]:
        return {"lexicon": self.config.lexicon or str(DEFAULT_LEXICON)}

    def annotate(self, batch: AnnotationBatch) -> Columns:
        lexicon = load_lexicon(self.files()["lexicon"])
        found = [None if text is None else find_phrases(text, lexicon) for text in batch.captions]
        return {
            "unsafe_text_score": [None if words is None else 1 - 0.5 ** len(words) for words in found],
            "unsafe_text_words": found,
        }


@cache
def load_lexicon(url: str) -> frozenset[Phrase]:
    """Return the phrases of a lexicon file. Raises ValueError if it cannot be read or holds none."""
    try:
        if files.size_of(url) > MAX_LEXICON_BYTES:
            raise ValueError(f"lexicon {url} is over {MAX_LEXICON_BYTES} bytes")
        lines = files.read_bytes(url).decode("utf-8-sig").splitlines()
    except UnicodeDecodeError as error:
        raise ValueError(f"lexicon {url} is not UTF-8 text (byte {error.start})") from error
    except OSError as error:
        raise ValueError(
            f"lexicon {url} cannot be read ({type(error).__name__}); check annotate.unsafe_text"
        ) from error
    phrases = frozenset(split_words(line) for line in lines if not line.lstrip().startswith("#")) - {()}
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
