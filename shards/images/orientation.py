"""Where a PNG keeps its orientation: an eXIf chunk, a raw profile that ImageMagick wrote, or XMP; in this order.

Sources: PNG 3rd edition (W3C), sections 11.3.3 and 11.3.4; XMP specification part 3, 1.1.5; ImageMagick's coders/png.c.
"""

import re
import zlib
from collections.abc import Iterator

from headrace.shards.images import exif

MAX_CHUNKS = 1 << 17
MAX_TEXT_BYTES = 1 << 18
"""Of one text once it is inflated: no profile that holds an orientation is larger."""
MAX_TEXTS = 8
"""Profiles and packets that are looked at; a writer leaves one or two, and each may inflate a thousandfold."""

_PROFILES = (b"Raw profile type exif", b"Raw profile type APP1")
_XMP = b"XML:com.adobe.xmp"
_XMP_ORIENTATION = re.compile(rb"tiff:Orientation\s*(?:=\s*[\"']|>)\s*([1-8])\b")


def png_orientation(png: bytes) -> int:
    """Return the orientation 1..8 that a PNG asks for; 1 if it asks for none, or what it says is damaged."""
    from_profile, from_xmp, num_texts = 1, 1, 0
    for kind, data in _chunks(png):
        if kind == b"eXIf":
            return exif.orientation(data)
        keyword, text = _text(kind, data) if num_texts < MAX_TEXTS else (b"", b"")
        num_texts += bool(keyword)
        if keyword in _PROFILES and from_profile == 1:
            from_profile = exif.orientation(_raw_profile(text))
        elif keyword == _XMP and from_xmp == 1:
            from_xmp = xmp_orientation(text)
    return from_profile if from_profile != 1 else from_xmp


def xmp_orientation(packet: bytes) -> int:
    """Return the orientation 1..8 that an XMP packet names; 1 if it names none."""
    found = _XMP_ORIENTATION.search(packet)
    return int(found[1]) if found is not None else 1


def _chunks(png: bytes) -> Iterator[tuple[bytes, bytes]]:
    position = 8
    for _ in range(MAX_CHUNKS):
        if position + 12 > len(png):
            return
        length = int.from_bytes(png[position : position + 4], "big")
        yield png[position + 4 : position + 8], png[position + 8 : position + 8 + length]
        position += length + 12


def _text(kind: bytes, data: bytes) -> tuple[bytes, bytes]:
    """Return keyword and text of a text chunk; of any other two empty ones."""
    keyword, _, rest = data.partition(b"\0") if kind in (b"tEXt", b"zTXt", b"iTXt") else (b"", b"", b"")
    if keyword not in _PROFILES and keyword != _XMP:
        return b"", b""
    if kind == b"tEXt":
        return keyword, rest[:MAX_TEXT_BYTES]
    if kind == b"zTXt":
        return keyword, _inflated(rest[1:])
    compressed, text = rest[:1] == b"\1", rest[2:].split(b"\0", 2)[-1]
    return keyword, _inflated(text) if compressed else text[:MAX_TEXT_BYTES]


def _inflated(data: bytes) -> bytes:
    try:
        return zlib.decompressobj().decompress(data, MAX_TEXT_BYTES)
    except zlib.error:
        return b""


def _raw_profile(text: bytes) -> bytes:
    """Return what a raw profile holds: a name, a length and hexadecimal digits, each on lines of their own."""
    lines = text.strip().split(b"\n", 2)
    try:
        held = bytes.fromhex(lines[2].decode("ascii")) if len(lines) == 3 else b""
    except ValueError:
        return b""
    return held.removeprefix(b"Exif\0\0")
