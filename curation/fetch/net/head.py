"""The head of an HTTP/1.1 answer, read as curl and browsers read it.

Real servers send bare line feeds, lines without a colon, folded lines, control characters in cookies, one length twice.
What has one meaning only is taken. `odd` marks it, and the connection of an odd answer is never used again: there the
next answer could begin elsewhere than we think. What could mean two things is a FetchError of class `protocol`.
"""

import re
from dataclasses import dataclass

from headrace.curation.fetch.errors import FetchError
from headrace.text import shown

MAX_LINE_BYTES = 32 * 1024  # of one line; policies of 10 kB are sent with images too
MAX_HEAD_BYTES = 256 * 1024
MAX_LINES = 1000
MAX_LENGTH_DIGITS = 18

_STATUS_LINE = re.compile(rb"HTTP/([0-9])(?:\.([0-9]))?[ \t]+([1-9][0-9]{2})(?:[ \t\r].*)?", re.IGNORECASE | re.DOTALL)
_LENGTH = re.compile(r"\+?([0-9]+)")
_ODD = re.compile(rb"[\x00-\x08\x0a-\x1f\x7f]")


@dataclass(frozen=True, slots=True)
class Head:
    """Status and header lines of one answer."""

    status: int
    is_http_1_1: bool
    fields: tuple[tuple[str, str], ...]
    """(lower-case name, value), in the order of the lines."""
    odd: bool

    @property
    def keeps_open(self) -> bool:
        """True if the server means to answer further requests on this connection."""
        return self.is_http_1_1 and "close" not in self.words("connection")

    def values(self, name: str) -> list[str]:
        """Return the values of every header line of a lower-case name."""
        return [value for known, value in self.fields if known == name]

    def words(self, name: str) -> list[str]:
        """Return the comma-separated words of a header, lower case, without empty ones."""
        found = (word.strip().lower() for value in self.values(name) for word in value.split(","))
        return [word for word in found if word]


@dataclass(frozen=True, slots=True)
class Framing:
    """Where a body ends: after `length` bytes, after its last chunk, or where the connection does (neither)."""

    length: int | None = None
    chunked: bool = False
    codings: tuple[str, ...] = ()
    """Transfer codings besides chunked, in the order in which they were applied."""
    odd: bool = False


def parse_head(lines: list[bytes]) -> Head:
    """Read a status line and what follows up to the empty line, without line feeds. Raises FetchError `protocol`."""
    version, status = parse_status(lines[0])
    odd = not lines[0].startswith(b"HTTP/1.") or not all(line.endswith(b"\r") for line in lines)
    fields: list[tuple[str, str]] = []
    for line in lines[1:-1]:
        text = line.rstrip(b"\r")
        name, colon, value = text.partition(b":")
        if text[:1] in (b" ", b"\t"):
            odd = True
            if fields:
                fields[-1] = (fields[-1][0], f"{fields[-1][1]} {_text(text)}".strip())
            continue
        odd = odd or name != name.strip() or _ODD.search(text) is not None
        if not colon or not name.strip():
            odd = True
            continue
        fields.append((_text(name).lower(), _text(value)))
    return Head(status, version == (1, 1), tuple(fields), odd)


def parse_status(line: bytes) -> tuple[tuple[int, int], int]:
    """Return ((major, minor), status) of a status line. Raises FetchError `protocol`."""
    found = _STATUS_LINE.fullmatch(line)
    if found is None:
        raise FetchError("protocol", f"the answer is not HTTP: it starts with {shown(line[:40])}")
    return (int(found[1]), int(found[2] or 0)), int(found[3])


def framing(head: Head) -> Framing:
    """Say where the body ends (RFC 9112, section 6.3). Raises FetchError `protocol` where that is not one place."""
    codings = [word.partition(";")[0].strip() for word in head.words("transfer-encoding")]
    named = [word for word in codings if word not in ("identity", "")]
    if not named:
        length = _length(head)
        odd = bool(codings) or len(head.values("content-length")) > 1
        return Framing(length=length, odd=odd)
    if named.count("chunked") > 1 or (("chunked" in named) and named[-1] != "chunked"):
        raise FetchError("protocol", f"Transfer-Encoding {shown(', '.join(codings))} has no one end")
    inner = tuple(word for word in named if word != "chunked")
    # With both, chunks decide; a proxy that thought otherwise would see the next answer elsewhere: no reuse.
    odd = bool(head.values("content-length")) or len(codings) > 1
    return Framing(chunked="chunked" in named, codings=inner, odd=odd)


def _length(head: Head) -> int | None:
    lengths = set()
    for value in head.values("content-length"):
        for word in value.split(","):
            if not word.strip():
                continue
            found = _LENGTH.fullmatch(word.strip())
            if found is None:
                raise FetchError("protocol", f"Content-Length {shown(value)} is not a number")
            digits = found[1].lstrip("0") or "0"
            if len(digits) > MAX_LENGTH_DIGITS:
                raise FetchError("too-large", f"Content-Length has {len(digits)} digits")
            lengths.add(int(digits))
    if len(lengths) > 1:
        some = ", ".join(str(length) for length in sorted(lengths)[:4])
        raise FetchError("protocol", f"conflicting Content-Lengths: {some}; the body could end at any of them")
    return lengths.pop() if lengths else None


def _text(value: bytes) -> str:
    return value.decode("utf-8", "surrogateescape").strip(" \t\r\n")
