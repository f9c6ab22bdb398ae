"""The lines of a text list, whatever its encoding and its line ends.

A mark of UTF-8, UTF-16 or UTF-32 at the beginning decides; without one, zero bytes tell the wide encodings, and all
else is UTF-8. Bytes that are none become lone surrogates, which no valid text holds, so that whoever takes a cell can
tell. Lines end at LF or CRLF; in a file whose beginning holds no LF, at CR. `read_lines` keeps the ends: in a quoted
cell they belong to the text.
"""

import codecs
import re
from collections.abc import Callable, Iterator
from typing import BinaryIO

from headrace.curation.fetch.lists.compression import mark_of

MAX_LINE_CHARS = 1 << 20
"""A longer line is no row of a list; it is passed over without being held."""

READ_BYTES = 1 << 18

TOO_LONG = f"the line is over {MAX_LINE_CHARS} letters"
INNER_MARK = "a byte order mark at the start of a line, dropped"

_MARKS = (
    (codecs.BOM_UTF8, "utf-8"),
    (codecs.BOM_UTF32_LE, "utf-32-le"),  # before UTF-16, whose mark it begins with
    (codecs.BOM_UTF32_BE, "utf-32-be"),
    (codecs.BOM_UTF16_LE, "utf-16-le"),
    (codecs.BOM_UTF16_BE, "utf-16-be"),
)
_BROKEN_END = "\udcff"
SURROGATES = re.compile("[\ud800-\udfff]")


class NotTextError(ValueError):
    """The bytes are no text at all."""


def encoding_of(head: bytes) -> tuple[str, int]:
    """Return the encoding of a text by its first bytes, and the length of its mark."""
    for mark, name in _MARKS:
        if head.startswith(mark):
            return name, len(mark)
    zeros = tuple(byte == 0 for byte in head[:4])
    wide: dict[tuple[bool, ...], str] = {
        (True, True, True, False): "utf-32-be",
        (False, True, True, True): "utf-32-le",
        (True, False, True, False): "utf-16-be",
        (False, True, False, True): "utf-16-le",
    }
    return wide.get(zeros, "utf-8"), 0


def read_text(stream: BinaryIO) -> Iterator[str]:
    """Yield the text of a stream in pieces of some size, without its byte order mark."""
    chunk = _read_full(stream)
    if kind := mark_of(chunk):
        raise NotTextError(f"it begins as a {kind} file does; give it the suffix of its format, or unpack it")
    encoding, skipped = encoding_of(chunk[:4])
    narrow = encoding == "utf-8"
    decoder = codecs.getincrementaldecoder(encoding)("surrogateescape" if narrow else "surrogatepass")
    chunk = chunk[skipped:]
    while chunk:
        if text := decoder.decode(chunk):
            yield text
        chunk = _read_full(stream)
    if decoder.getstate()[0]:
        yield decoder.decode(b"", final=True) if narrow else _BROKEN_END


def read_lines(stream: BinaryIO, on_repair: Callable[[str, int], object]) -> Iterator[str | None]:
    """Yield the lines with their ends; None for one that is too long to hold.

    `on_repair` gets a reason and the number of the line, from 1.
    """
    rest, skipping, end, number = "", False, "", 0
    for piece in read_text(stream):
        end = end or _end_of(piece)
        *lines, rest = (rest + piece).split(end)
        for line in lines:
            number += 1
            if line.startswith("\ufeff"):
                on_repair(INNER_MARK, number)
                line = line.removeprefix("\ufeff")
            yield None if skipping or len(line) > MAX_LINE_CHARS else line + end
            skipping = False
        if len(rest) > MAX_LINE_CHARS:
            rest, skipping = "", True
    if rest or skipping:
        if rest.startswith("\ufeff"):
            on_repair(INNER_MARK, number + 1)
        yield None if skipping else rest.removeprefix("\ufeff")


def _read_full(stream: BinaryIO) -> bytes:
    """Read on where a stream gives less than asked for, so that nothing depends on how bytes arrive."""
    parts, missing = [], READ_BYTES
    while missing and (part := stream.read(missing)):
        parts.append(part)
        missing -= len(part)
    return b"".join(parts)


def _end_of(piece: str) -> str:
    """Return what ends lines, by the first piece of a text: CR only where no LF is."""
    return "\r" if "\r" in piece and "\n" not in piece else "\n"


def valid_text(text: str) -> str:
    """Return a text as UTF-8 can hold it: U+FFFD for bytes that were none, and for half a surrogate pair."""
    if not SURROGATES.search(text):
        return text
    try:
        return text.encode("utf-8", "surrogateescape").decode("utf-8", "replace")
    except UnicodeEncodeError:
        return SURROGATES.sub("\ufffd", text)
