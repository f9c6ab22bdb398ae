"""The EXIF orientation of an image (CIPA DC-008, tag 0x0112 of IFD 0).

Damaged EXIF is common and harmless: every fault reads as orientation 1, upright as stored.
"""

import struct

ORIENTATION_TAG = 0x0112
MAX_ENTRIES = 512

# EXIF types that hold an unsigned integer: BYTE, SHORT, LONG.
_INTEGER_FORMATS = {1: "B", 3: "H", 4: "I"}


def orientation(exif: bytes) -> int:
    """Return the orientation 1..8 that a TIFF-shaped EXIF block holds; 1 if it holds none."""
    order = {b"II": "<", b"MM": ">"}.get(bytes(exif[:2]))
    if order is None or len(exif) < 8:
        return 1
    (offset,) = struct.unpack_from(f"{order}I", exif, 4)
    if offset + 2 > len(exif):
        return 1
    (count,) = struct.unpack_from(f"{order}H", exif, offset)
    for entry in range(offset + 2, min(offset + 2 + 12 * min(count, MAX_ENTRIES), len(exif) - 11), 12):
        tag, kind, values = struct.unpack_from(f"{order}HHI", exif, entry)
        if tag == ORIENTATION_TAG:
            if kind not in _INTEGER_FORMATS or values != 1:
                return 1
            (value,) = struct.unpack_from(order + _INTEGER_FORMATS[kind], exif, entry + 8)
            return int(value) if 1 <= value <= 8 else 1
    return 1
