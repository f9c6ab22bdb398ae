"""Lists of JSON: an array of objects, or one object a line.

NaN is not JSON; writers put it where a value is missing, and so it is read as null. An array is read piece by piece, so
memory does not grow with it; it has no lines to go by, so damage in one ends the list.
"""

import json
import re
from collections.abc import Iterator
from itertools import islice
from typing import Any, BinaryIO

from headrace.curation.fetch.config import InputConfig
from headrace.curation.fetch.lists.columns import wanted_columns
from headrace.curation.fetch.lists.lines import MAX_LINE_CHARS, TOO_LONG, read_lines, read_text
from headrace.curation.fetch.lists.rows import BLOCK_ROWS, Block, Tally

NO_JSON = "the line is not JSON"
EMPTY_LINE = "the line is empty"
NO_OBJECT = "the record is not an object"
TWO_VALUES = "a key that the recipe names is there twice, with two values"

MAX_KNOWN_COLUMNS = 1000

_SPACE = re.compile(r"[ \t\n\r]*")


class _Record(dict[str, Any]):
    """An object of which some keys were there twice, with two values."""

    twice: frozenset[str] = frozenset()


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) == len(pairs):
        return found
    record = _Record(found)
    record.twice = frozenset(name for name, value in pairs if found[name] != value)
    return record


def _constant(name: str) -> float | None:
    return None if name == "NaN" else float(name)


_DECODER = json.JSONDecoder(object_pairs_hook=_object, parse_constant=_constant)


def read_json_lines(stream: BinaryIO, config: InputConfig, *, name: str, tally: Tally) -> Iterator[Block]:
    """Yield the rows of a jsonl list."""
    lines = read_lines(stream, lambda reason, number: tally.repair(reason, f"{name} line {number}"))
    yield from _blocks((record for line in lines for record in _line_records(line)), config, place="line", first=1)


def _line_records(line: str | None) -> Iterator[Any]:
    """Yield what a line holds: one record, more where lone CRs end lines, or a text that says what is wrong."""
    if line is None:
        yield _Problem(TOO_LONG)
        return
    found = _line_record(line)
    pieces = re.findall(r"[^\r]*\r\n?|[^\r]+\Z", line) if isinstance(found, _Problem) and "\r" in line.rstrip() else []
    yield from map(_line_record, pieces) if len(pieces) > 1 else (found,)


def _line_record(line: str) -> Any:
    try:
        return _DECODER.decode(line)
    except (ValueError, RecursionError):
        return _Problem(NO_JSON if line.strip() else EMPTY_LINE)


class _Problem(str):
    """Why there is no record."""


def read_json_array(stream: BinaryIO, list_url: str, config: InputConfig) -> Iterator[Block]:
    """Yield the rows of a json list. Raises ValueError where it is no array of JSON."""
    yield from _blocks(_Array(read_text(stream), list_url).records(), config, place="record", first=0)


class _Array:
    """A JSON array that is read piece by piece."""

    def __init__(self, pieces: Iterator[str], list_url: str) -> None:
        self._pieces, self._list_url = pieces, list_url
        self._text, self._at, self._lines = "", 0, 1

    def records(self) -> Iterator[Any]:
        """Yield the elements."""
        if self._letter() != "[":
            kind = "one object" if self._text[self._at : self._at + 1] == "{" else "no array"
            raise self._error(f"{kind}, expected an array of records")
        self._at += 1
        if self._letter() == "]":
            self._at += 1
        else:
            while True:
                self._letter()
                yield self._element()
                letter = self._letter()
                self._at += 1
                if letter == "]":
                    break
                if letter != ",":
                    raise self._error("expected , or ] after a record")
        if self._letter():
            raise self._error("more text after the array")

    def _element(self) -> Any:
        while True:
            try:
                value, end = _DECODER.raw_decode(self._text, self._at)
            except (ValueError, RecursionError) as error:
                if isinstance(error, RecursionError) or not self._more():
                    told = error.msg if isinstance(error, json.JSONDecodeError) else "nested too deep"
                    raise self._error(told, getattr(error, "pos", self._at)) from error
                continue
            if end == len(self._text) and self._more():  # a number may go on
                continue
            self._at = end
            return value

    def _letter(self) -> str:
        """Go to the next letter that is no space and return it; "" at the end."""
        while True:
            found = _SPACE.match(self._text, self._at)
            self._at = found.end() if found else self._at
            if self._at < len(self._text):
                return self._text[self._at]
            if not self._more():
                return ""

    def _more(self) -> bool:
        piece = next(self._pieces, "")
        if not piece or len(self._text) - self._at > MAX_LINE_CHARS * 16:
            return False
        self._lines += self._text.count("\n", 0, self._at)
        self._text, self._at = self._text[self._at :] + piece, 0
        return True

    def _error(self, what: str, at: int | None = None) -> ValueError:
        line = self._lines + self._text.count("\n", 0, self._at if at is None else at)
        return ValueError(
            f"{self._list_url}: not a JSON array of records: line {line}: {what} (one record a line is format jsonl)"
        )


def _blocks(records: Iterator[Any], config: InputConfig, *, place: str, first: int) -> Iterator[Block]:
    """Gather records to blocks; what is no record has a problem."""
    wanted = frozenset(wanted_columns(config).values())
    number, known = 0, dict[str, None]()
    while held := list(islice(records, BLOCK_ROWS)):
        problems: dict[int, str] = {}
        for row, record in enumerate(held):
            if type(record) is not dict and (problem := _problem(record, wanted)):
                problems[row] = problem
                held[row] = {}
                if not isinstance(record, dict):
                    continue
            if len(known) < MAX_KNOWN_COLUMNS and not known.keys() >= record.keys():
                known.update(dict.fromkeys(record))
        yield Block(
            place=place,
            first=first,
            numbers=list(range(number, number + len(held))),
            urls=[record.get(config.url_column) for record in held],
            captions=_column(held, config.caption_column),
            listed={own: _column(held, name) for own, name in config.listed_columns.items()},
            carried=[[record.get(name) for record in held] for name in config.columns],
            problems=problems,
            known=tuple(known),
        )
        number += len(held)


def _column(records: list[dict[str, Any]], name: str | None) -> list[Any]:
    return [None] * len(records) if name is None else [record.get(name) for record in records]


def _problem(record: Any, wanted: frozenset[str]) -> str | None:
    if isinstance(record, _Record):
        return TWO_VALUES if record.twice & wanted else None
    return str(record) if isinstance(record, _Problem) else NO_OBJECT
