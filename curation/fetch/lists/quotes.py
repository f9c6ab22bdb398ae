"""One line of csv to its cells: by RFC 4180, and by the looser rules of writers that do not keep it."""

import csv
import re

MAX_CELL_CHARS = 1 << 17
LINE_ENDS = "\r\n"

_SPACES = re.compile(" *")


class OpenRow:
    """A row by RFC 4180 that is fed line by line, as a quoted cell may run over line ends."""

    def __init__(self, delimiter: str) -> None:
        self.cells: list[str] = []
        self.malformed = False
        """True once a quoted cell is followed by a letter."""
        self._delimiter = delimiter
        self._open: list[str] | None = None

    def feed(self, line: str) -> bool:
        """Take a line with its end; True if the row ends with it."""
        body, at = line.rstrip(LINE_ENDS), 0
        while True:
            if self._open is not None:
                end = _closing(body, at)
                if end < 0:
                    self._open.append(line[at:])
                    return False
                self._open.append(body[at:end])
                self.cells.append("".join(self._open).replace('""', '"'))
                self._open, at = None, end + 1
                self.malformed = at < len(body) and body[at] != self._delimiter
                if self.malformed:
                    return False
            elif body.startswith('"', at):
                self._open, at = [], at + 1
                continue
            else:
                end = body.find(self._delimiter, at)
                self.cells.append(body[at:] if end < 0 else body[at:end])
                at = len(body) if end < 0 else end
            if at >= len(body):
                return True
            at += 1


def _closing(text: str, at: int) -> int:
    """Return the place of the next quote that is not doubled; -1 if there is none."""
    while (at := text.find('"', at)) >= 0 and text[at + 1 : at + 2] == '"':
        at += 2
    return at


class StrictRows:
    """Lines to cells by RFC 4180, one line at a time."""

    def __init__(self, delimiter: str) -> None:
        self._delimiter = delimiter
        # One reader for all lines: making one costs as much as a line. An empty list raises where the next line of an
        # open cell would be asked for.
        self._line: list[str] = []
        self._reader = csv.reader(iter(self._line.pop, None), delimiter=delimiter, strict=True)

    def cells(self, text: str) -> list[str] | None:
        """Return the cells of a line without its end, or None if it is no whole row."""
        if len(text) > MAX_CELL_CHARS or "\r" in text:  # a limit of the csv module, and a line end to it
            row = OpenRow(self._delimiter)
            return row.cells if row.feed(text) else None
        self._line.append(text)
        try:
            return next(self._reader)
        except (csv.Error, IndexError):
            return None


def loose_cells(
    text: str,
    delimiter: str,
    *,
    backslash: bool = False,
    skip_spaces: bool = False,
    lenient: bool = False,
    letters: bool = False,
    all_quoted: bool = False,
) -> list[str] | None:
    """Return the cells of one line by rules that are looser than RFC 4180, or None if it is no row by them.

    `backslash`: a quote after one is a letter. `skip_spaces`: spaces around quoted cells do not count. `lenient`: only
    a quote before a delimiter closes. `letters`: quotes that close no cell are letters. `all_quoted`: no other cells.
    """
    cells: list[str] = []
    at = 0
    while True:
        start = _after_spaces(text, at) if skip_spaces else at
        close = (
            _loose_closing(text, start + 1, delimiter, backslash=backslash, skip_spaces=skip_spaces, lenient=lenient)
            if text.startswith('"', start)
            else None
        )
        if close is not None:
            inner = text[start + 1 : close[0]].replace('""', '"')
            cells.append(inner.replace('\\"', '"') if backslash else inner)
            at = close[1]
        elif all_quoted or (text.startswith('"', start) and not letters):
            return None
        else:
            end = text.find(delimiter, at)
            end = len(text) if end < 0 else end
            cells.append(text[at:end])
            at = end
        if at >= len(text):
            return cells
        at += 1


def _loose_closing(
    text: str, at: int, delimiter: str, *, backslash: bool, skip_spaces: bool, lenient: bool
) -> tuple[int, int] | None:
    """Return the place of the quote that closes a cell and that of the delimiter after it, or None."""
    while (at := text.find('"', at)) >= 0:
        after = _after_spaces(text, at + 1) if skip_spaces else at + 1
        if backslash and text[at - 1] == "\\":
            at += 1
        elif text[at + 1 : at + 2] == '"':
            at += 2
        elif after == len(text) or text[after] == delimiter:
            return at, after
        elif lenient:
            at += 1
        else:
            return None
    return None


def _after_spaces(text: str, at: int) -> int:
    found = _SPACES.match(text, at)
    assert found is not None  # no space is a match too
    return found.end()
