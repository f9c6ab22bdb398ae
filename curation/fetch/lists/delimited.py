"""Lists of cells: tsv, where a quote is a letter, and csv, where it may hold a cell together.

Csv is read as RFC 4180 says, line by line. A line that is no row that way is read in the other ways that writers have,
and the first that gives as many cells as the header has counts as a repair; else the line is a row that cannot be
fetched. A quoted cell may run over line ends, unless two or more of its lines are whole rows by themselves, URL and
all: then a quote was left open, and they are rows.
"""

import logging
import re
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from typing import BinaryIO

from headrace.curation.fetch.config import InputConfig
from headrace.curation.fetch.lists.columns import check_columns, trimmed, wanted_columns
from headrace.curation.fetch.lists.lines import TOO_LONG, read_lines
from headrace.curation.fetch.lists.quotes import LINE_ENDS, MAX_CELL_CHARS, OpenRow, StrictRows, loose_cells
from headrace.curation.fetch.lists.rows import BLOCK_ROWS, Block, Tally

MAX_CELL_LINES = 256
"""A quoted cell that is not closed after so many lines was never meant to be one."""

MORE_CELLS = "more cells than the header has"
LONG_CELL = f"a cell is over {MAX_CELL_CHARS} letters"
OPEN_QUOTE = "quotes that do not pair, and no number of cells as the header has"
HEADER_AGAIN = "the header again"
FEWER_CELLS = "fewer cells than the header has: the rest is missing"
EMPTY_CELLS = "empty cells beyond the header's, left out"
BLANK = "empty lines, no rows"
EMPTY_FILE = "empty files, without even a header: no rows"
LETTER_QUOTE = "quotes that do not pair, taken as letters"
INNER_QUOTE = "single quotes inside a quoted cell, taken as letters"
BACKSLASH = "quotes after a backslash, taken as quotes inside the cell"
SPACES = "spaces before a quoted cell, left out"
MAYBE_QUOTED = "cells that look quoted as a csv writer does, kept as they stand (input.format: csv unquotes them)"

log = logging.getLogger(__name__)

_DELIMITERS = ",;\t|"
_URL = re.compile(r'\s*"?[a-z][a-z0-9+.-]*://', re.IGNORECASE)
_SEP_LINE = re.compile(r"sep=(.)", re.IGNORECASE)


def read_delimited(
    stream: BinaryIO, list_url: str, list_format: str, config: InputConfig, *, name: str, tally: Tally
) -> Iterator[Block]:
    """Yield the rows of a csv or tsv list. Raises ValueError where its header lacks a column that the config names."""
    yield from _Reader(stream, list_url, list_format == "csv", config, name=name, tally=tally).blocks()


class _Reader:
    """One list; `_number` is that of the line read last, from 1."""

    def __init__(
        self, stream: BinaryIO, list_url: str, quoting: bool, config: InputConfig, *, name: str, tally: Tally
    ) -> None:
        self._list_url, self._quoting, self._config = list_url, quoting, config
        self._name, self._tally = name, tally
        self._lines = read_lines(stream, lambda reason, number: tally.repair(reason, f"{name} line {number}"))
        self._pushed: deque[str | None] = deque()
        self._number = 0
        self._use("," if quoting else "\t")

    def _use(self, delimiter: str) -> None:
        self._delimiter, self._strict = delimiter, StrictRows(delimiter)

    def blocks(self) -> Iterator[Block]:
        """Read the header, then yield the rows; there are none without a header."""
        header, self._header_text = self._read_header()
        if not header:
            self._tally.repair(EMPTY_FILE, self._name)
            return
        self._width = len(header)
        self._first = self._number + 1
        exact, names = header, trimmed(header)
        known = exact if set(wanted_columns(self._config).values()) <= set(exact) else names
        check_columns(self._list_url, known, self._config, hint=self._hint(exact))
        self._url = known.index(self._config.url_column)
        rows: list[list[str]] = []
        numbers: list[int] = []
        problems: dict[int, str] = {}
        for cells, number, problem in self._rows():
            if problem is not None:
                problems[len(rows)] = problem
            rows.append(cells)
            numbers.append(number - self._first)
            if len(rows) == BLOCK_ROWS:
                yield self._block(rows, numbers, problems, known)
                rows, numbers, problems = [], [], {}
        yield self._block(rows, numbers, problems, known)

    def _block(self, rows: list[list[str]], numbers: list[int], problems: dict[int, str], known: list[str]) -> Block:
        def column(name: str | None) -> list[str | None]:
            if name is None:
                return [None] * len(rows)
            at = known.index(name)
            return [cells[at] or None if at < len(cells) else None for cells in rows]

        config = self._config
        return Block(
            place="line",
            first=self._first,
            numbers=numbers,
            urls=column(config.url_column),
            captions=column(config.caption_column),
            listed={own: column(name) for own, name in config.listed_columns.items()},
            carried=[column(name) for name in config.columns],
            problems=problems,
            known=known,
        )

    def _next(self) -> str | None:
        """Return the next line with its end, None for one that is too long. Raises StopIteration."""
        line = self._pushed.popleft() if self._pushed else next(self._lines)
        self._number += 1
        return line

    def _push(self, lines: Sequence[str | None]) -> None:
        self._pushed.extendleft(reversed(lines))

    def _read_header(self) -> tuple[list[str], str]:
        """Return the cells of the first line that is not empty, and that line; no cells where there is none."""
        while True:
            try:
                line = self._next()
            except StopIteration:
                return [], ""
            text = "" if line is None else line.rstrip(LINE_ENDS)
            if line is None:
                raise ValueError(f"{self._list_url}: the first line, with the names of the columns: {TOO_LONG}")
            if self._quoting and (told := _SEP_LINE.fullmatch(text)):  # Excel says so
                self._use(told[1])
            elif text:
                break
        if "\r" in text and '"' not in text:  # a lone CR ends a line here and there
            text, _, later = text.partition("\r")
            self._push([later])
        if not self._quoting:
            return text.split("\t"), text
        return self._quoted_header(line, text), text

    def _quoted_header(self, line: str, text: str) -> list[str]:
        """Return the header's cells; the delimiter is the one that gives the columns that are wanted."""
        wanted = set(wanted_columns(self._config).values())
        first = self._delimiter
        for delimiter in dict.fromkeys((first, *_DELIMITERS)):
            cells = StrictRows(delimiter).cells(text) or []
            if wanted <= set(cells) or wanted <= set(trimmed(cells)):
                if delimiter != first:
                    log.info("%s: cells are separated by %r", self._list_url, delimiter)
                self._use(delimiter)
                return cells
        return self._strict.cells(text) or self._over_lines(line, first, width=None) or text.split(first)

    def _hint(self, header: list[str]) -> str:
        if self._quoting:
            return ""
        cells = [cell.strip('"') for cell in header]
        if set(wanted_columns(self._config).values()) <= set(cells):
            return " (the header is quoted; a tsv has no quotes: set input.format to csv, which finds tabs too)"
        if len(header) == 1 and any(letter in header[0] for letter in ",;|"):
            return " (the header has no tab: set input.format to csv, which finds the delimiter)"
        return ""

    def _rows(self) -> Iterator[tuple[list[str], int, str | None]]:
        """Yield (cells, number of the line, problem) of every row."""
        delimiter, width, quoting = self._delimiter, self._width, self._quoting
        while True:
            try:
                line = self._next()
            except StopIteration:
                return
            number = self._number
            if line is None:
                yield [], number, TOO_LONG
                continue
            text = line.rstrip(LINE_ENDS)
            if not text:
                self._tally.repair(BLANK, self._where(number))
                continue
            if "\r" in text and self._cut_at_returns(line):
                continue
            if '"' not in text:
                cells, problem = text.split(delimiter), None
            elif quoting:
                cells, problem = self._quoted(line, text, number)
            else:
                cells, problem = text.split(delimiter), None
                self._look_for_quoting(cells, number)
            if problem is None and (len(cells) != width or len(text) > MAX_CELL_CHARS or text == self._header_text):
                problem = self._fit(cells, number, text)
            yield cells if problem is None else self._url_alone(cells), number, problem

    def _where(self, number: int) -> str:
        return f"{self._name} line {number}"

    def _cut_at_returns(self, line: str) -> bool:
        """Read a line again as several if lone CRs in it end rows; else they are letters of a cell.

        They end rows if every piece is one; or if the line is none, and two or more pieces are, URL and all.
        """
        pieces = re.findall(r"[^\r]*\r\n?|[^\r]+\Z", line)
        texts = [piece.rstrip(LINE_ENDS) for piece in pieces]
        if len(pieces) < 2 or not (
            all(not text or self._is_row(text) for text in texts)
            or (not self._is_row(line.rstrip(LINE_ENDS)) and sum(map(self._is_whole, texts)) > 1)
        ):
            return False
        self._push(pieces)
        self._number -= 1
        return True

    def _is_row(self, text: str) -> bool:
        """True if a line has as many cells as the header, by RFC 4180 where cells may be quoted."""
        cells = self._strict.cells(text) if self._quoting else text.split(self._delimiter)
        return cells is not None and len(cells) == self._width

    def _fit(self, cells: list[str], number: int, text: str) -> str | None:
        """Make `cells` as many as the header has, if nothing is lost by that; else return what is wrong."""
        if text == self._header_text:
            return HEADER_AGAIN
        if any(len(cell) > MAX_CELL_CHARS for cell in cells):
            return LONG_CELL
        if len(cells) > self._width:
            if any(cells[self._width :]):
                return MORE_CELLS
            del cells[self._width :]
            self._tally.repair(EMPTY_CELLS, self._where(number))
        elif len(cells) < self._width:
            self._tally.repair(FEWER_CELLS, self._where(number))
        return None

    def _url_alone(self, cells: list[str]) -> list[str]:
        """Return the cells of a row that cannot be fetched: its URL, so that a person knows it, and nothing else."""
        url = cells[self._url] if self._url < len(cells) else ""
        return [url if at == self._url else "" for at in range(self._width)] if len(url) <= MAX_CELL_CHARS else []

    def _look_for_quoting(self, cells: list[str], number: int) -> None:
        if any(len(cell) > 2 and cell[0] == cell[-1] == '"' and '""' in cell[1:-1] for cell in cells):
            self._tally.repair(MAYBE_QUOTED, self._where(number))

    def _quoted(self, line: str, text: str, number: int) -> tuple[list[str], str | None]:
        """Return the cells of a csv line that holds quotes, and what is wrong; may read on over line ends."""
        delimiter, width = self._delimiter, self._width
        strict = self._strict.cells(text)
        if strict is not None and len(strict) == width:
            return strict, None
        repairs: list[tuple[str, Callable[[], list[str] | None]]] = [
            (BACKSLASH, lambda: loose_cells(text, delimiter, backslash=True) if '\\"' in text else None),
            (SPACES, lambda: loose_cells(text, delimiter, skip_spaces=True)),
            (INNER_QUOTE, lambda: loose_cells(text, delimiter, lenient=True, all_quoted=True)),
        ]
        if strict is None:
            repairs += [
                ("", lambda: self._over_lines(line, delimiter, width=width)),
                (LETTER_QUOTE, lambda: loose_cells(text, delimiter, letters=True)),
                (INNER_QUOTE, lambda: loose_cells(text, delimiter, lenient=True)),
            ]
        for reason, read in repairs:
            cells = read()
            if cells is not None and len(cells) == width:
                if reason:
                    self._tally.repair(reason, self._where(number))
                return cells, None
        if strict is not None:
            return strict, None  # `_fit` judges the number of cells
        return loose_cells(text, delimiter, letters=True) or [], OPEN_QUOTE

    def _over_lines(self, line: str, delimiter: str, *, width: int | None) -> list[str] | None:
        """Return the cells of a row whose quoted cell runs over line ends; further lines are read only if one does.

        With a `width`, None if two or more of its lines are rows by themselves, or if it has another width.
        """
        row, later, size = OpenRow(delimiter), list[str | None](), 0
        done, whole = row.feed(line), int(width is not None and self._is_whole(line.rstrip(LINE_ENDS)))
        while not (done or row.malformed or whole > 1 or len(later) == MAX_CELL_LINES or size > MAX_CELL_CHARS):
            try:
                further = self._next()
            except StopIteration:
                break
            later.append(further)
            if further is None:
                break
            size += len(further)
            whole += int(width is not None and self._is_whole(further.rstrip(LINE_ENDS)))
            done = row.feed(further)
        if done and whole < 2 and width in (None, len(row.cells)):
            return row.cells
        self._push(later)
        self._number -= len(later)
        return None

    def _is_whole(self, text: str) -> bool:
        """True if a line is a row by itself: cells as many as the header's, and a URL where one belongs."""
        readings = (text.split(self._delimiter), self._strict.cells(text) if '"' in text else None)
        return any(cells and len(cells) == self._width and _URL.match(cells[self._url]) for cells in readings)
