"""Rows of a text list, some thousand at a time, and the count of what was odd in them.

A row is taken as it stands, or repaired and counted, or it has a `problem` and becomes a row of class `bad-url`; none
is left out. `Tally` holds the counts by reason, with the place of the first.
"""

import math
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from headrace.config import canonical_json
from headrace.curation.fetch.config import InputConfig
from headrace.curation.fetch.lists.lines import valid_text

BLOCK_ROWS = 8192
BOXES = "boxes"
"""Of the listed columns the one whose values are JSON, not text."""

LIST_PROBLEM = re.compile(r"(?:line|record|row) [0-9]+: ")
"""How a problem begins, and so the error message of its row."""

NO_URL = "the row has no URL"
URL_NO_STRING = "the URL is not a string"
URL_NO_TEXT = "the URL holds what is no text (bytes that are not UTF-8, or half a surrogate pair)"
NO_TEXT = "bytes that are not UTF-8, or half a surrogate pair: read as U+FFFD"
NOT_A_STRING = "a caption that is not a string: taken as the text of its JSON"


@dataclass(slots=True)
class Odd:
    """Rows that share a reason."""

    rows: int = 0
    first: str = ""
    """File and number of the line or record of the first one."""


@dataclass(slots=True)
class Tally:
    """What was odd in the lists, by reason."""

    rejected: dict[str, Odd] = field(default_factory=dict)
    """Rows that cannot be fetched: their class is `bad-url`."""
    repaired: dict[str, Odd] = field(default_factory=dict)
    """Rows, or lines between them, that were not taken as they stand."""

    def reject(self, reason: str, where: str, rows: int = 1) -> None:
        """Count rows that cannot be read."""
        _count(self.rejected, reason, where, rows)

    def repair(self, reason: str, where: str, rows: int = 1) -> None:
        """Count rows that were taken otherwise than they stand."""
        _count(self.repaired, reason, where, rows)

    def all(self) -> dict[str, Odd]:
        """Return both counts, rejected rows first."""
        return self.rejected | self.repaired

    def add(self, other: "Tally") -> None:
        """Add the counts of lists that come later."""
        for mine, its in ((self.rejected, other.rejected), (self.repaired, other.repaired)):
            for reason, odd in its.items():
                _count(mine, reason, odd.first, odd.rows)

    def clear(self) -> None:
        """Forget all counts."""
        self.rejected.clear()
        self.repaired.clear()


def _count(counts: dict[str, Odd], reason: str, where: str, rows: int) -> None:
    odd = counts.setdefault(reason, Odd(first=where))
    odd.rows += rows


@dataclass(slots=True)
class Block:
    """Some rows of a text list as columns of Python values; `numbers` become `input_row`."""

    place: str
    """What a number counts, for messages: `line` or `record`."""
    first: int
    """Number of the line or record whose `input_row` is 0."""
    numbers: list[int] = field(default_factory=list)
    urls: list[Any] = field(default_factory=list)
    captions: list[Any] = field(default_factory=list)
    listed: dict[str, list[Any]] = field(default_factory=dict)
    """Values of the columns of `InputConfig.listed_columns`, by our name."""
    carried: list[list[Any]] = field(default_factory=list)
    """Values of each of the configured columns."""
    problems: dict[int, str] = field(default_factory=dict)
    """Place in the block -> why that row cannot be fetched."""
    known: Iterable[str] = ()
    """Names of columns or keys that the list has."""

    def after(self, rows: int) -> "Block":
        """Return the block without its first rows."""
        if not rows:
            return self
        return replace(
            self,
            numbers=self.numbers[rows:],
            urls=self.urls[rows:],
            captions=self.captions[rows:],
            listed={name: values[rows:] for name, values in self.listed.items()},
            carried=[values[rows:] for values in self.carried],
            problems={row - rows: problem for row, problem in self.problems.items() if row >= rows},
        )

    def where(self, row: int) -> str:
        """Return the place in the file of one row of the block, for a person."""
        return f"{self.place} {self.numbers[row] + self.first}"


def settle(block: Block, config: InputConfig, file_name: str, tally: Tally) -> dict[str, Any]:
    """Return the block's own columns as arrow arrays, every value text or null, and count what was odd."""
    urls, odd_urls = to_text(block.urls)
    captions, odd_captions = to_text(block.captions) if config.caption_column else (None, {})
    listed = {name: to_text(block.listed.get(name, [None] * len(block.urls))) for name in config.listed_columns}
    problems = block.problems
    for row, value in odd_urls.items():
        problems.setdefault(row, URL_NO_TEXT if isinstance(value, str) else URL_NO_STRING)
    if any(reason == URL_NO_STRING for reason in problems.values()):
        urls = pc.if_else(pa.array([problems.get(row) != URL_NO_STRING for row in range(len(urls))]), urls, None)
    odd = [odd_captions, *(found for name, (_, found) in listed.items() if name != BOXES)]
    for row, value in (item for found in odd for item in found.items()):
        tally.repair(NO_TEXT if isinstance(value, str) else NOT_A_STRING, f"{file_name} {block.where(row)}")
    return {
        "url": urls,
        "caption": captions,
        **{name: texts for name, (texts, _) in listed.items()},
        "problem": problem_column(urls, problems, block.where, file_name, tally),
        "input_row": pa.array(block.numbers, pa.int64()),
    }


def problem_column(
    urls: pa.Array, problems: dict[int, str], where: Callable[[int], str], file_name: str, tally: Tally
) -> pa.Array:
    """Return what is wrong with each row, with its place, or null; a row without a URL is added to `problems`."""
    empty = pc.fill_null(pc.equal(pc.utf8_trim_whitespace(urls), ""), True)
    problems = dict.fromkeys(pc.indices_nonzero(empty).to_pylist(), NO_URL) | problems
    texts: list[str | None] = [None] * len(urls)
    for row in sorted(problems):
        texts[row] = f"{where(row)}: {problems[row]}"
        tally.reject(problems[row], f"{file_name} {where(row)}")
    return pa.array(texts, pa.string())


def to_text(values: list[Any]) -> tuple[pa.Array, dict[int, Any]]:
    """Return values as text, and by its place each that was not valid text by itself. Missing ones are null."""
    try:
        return pa.array(values, pa.string()), {}
    except (pa.ArrowException, UnicodeEncodeError, TypeError):
        texts = [as_text(value) for value in values]
        odd = {
            row: value
            for row, (value, text) in enumerate(zip(values, texts, strict=True))
            if text is not None and text != value
        }
        return pa.array(texts, pa.string()), odd


def as_text(value: Any) -> str | None:
    """Return a value as text that parquet can hold: other than text as its JSON, null for what means none."""
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return None
    return valid_text(value if isinstance(value, str) else canonical_json(value))
