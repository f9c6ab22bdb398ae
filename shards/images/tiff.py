"""How much a TIFF directory makes Pillow hold, counted before Pillow opens it.

Pillow copies the data of each of up to 65535 tags when it reads a directory, so 20 MB whose tags all claim the same
bytes become a terabyte (EXIF blocks are such directories too). Claims are counted, not distinct bytes, as overlapping
tags are the attack.
"""

import re
import struct

MAX_ENTRIES = 4096
MAX_TAG_BYTES = 1 << 20
MAX_BLOB_BYTES = 32 << 20
MAX_CLAIMED_BYTES = 64 << 20
MAX_DIRECTORIES = 16

# XMP, Photoshop, ICC profile, MakerNote, ImageSourceData: opaque bytes that may be large.
_BLOB_TAGS = (700, 34377, 34675, 37500, 37724)
_TYPE_BYTES = {1: 1, 2: 1, 3: 2, 4: 4, 5: 8, 6: 1, 7: 1, 8: 2, 9: 4, 10: 8, 11: 4, 12: 8, 13: 4, 16: 8}
_HEADER = re.compile(rb"II\*\0|MM\0\*")


def check_directory(data: bytes, start: int = 0) -> None:
    """Check the first directory of the TIFF header at `start`. Raises ValueError if its tags claim too much."""
    order = "<" if data[start : start + 2] == b"II" else ">"
    if start + 8 > len(data):
        return
    (offset,) = struct.unpack_from(f"{order}I", data, start + 4)
    first = start + offset
    if first + 2 > len(data):
        return
    (count,) = struct.unpack_from(f"{order}H", data, first)
    if count > MAX_ENTRIES:
        raise ValueError(f"directory of {count} tags, over {MAX_ENTRIES}")
    claimed = 0
    end = min(first + 2 + 12 * count, len(data) - 11)
    for entry in range(first + 2, end, 12):
        tag, kind, values = struct.unpack_from(f"{order}HHI", data, entry)
        size = min(values * _TYPE_BYTES.get(kind, 0), len(data))
        claimed += size
        if size > (MAX_BLOB_BYTES if tag in _BLOB_TAGS else MAX_TAG_BYTES) or claimed > MAX_CLAIMED_BYTES:
            raise ValueError(f"tag {tag} holds {size} bytes, {claimed} with those before it: over the cap")


def check_all_directories(data: bytes) -> None:
    """Check every directory that may be hidden in a container, such as the EXIF item of an AVIF. Raises ValueError."""
    for number, found in enumerate(_HEADER.finditer(data)):
        if number >= MAX_DIRECTORIES:
            raise ValueError(f"over {MAX_DIRECTORIES} TIFF headers inside")
        check_directory(data, found.start())
