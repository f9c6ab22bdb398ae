"""Is the end of an image there? One walk per format over its blocks, without decoding.

Bytes after the end are tolerated, as many writers append some. The one thing a reader would get wrong: searching for
the last end marker is not enough, because an EXIF thumbnail holds a whole JPEG with its own.
"""

import re
import struct
from collections.abc import Callable

MAX_STEPS = 1 << 20
MAX_JPEG_SCANS = 100  # as many as cjpeg writes; each of a million empty ones would cost a pass over all pixels


class BombError(ValueError):
    """Decoding would cost out of all proportion to the image."""


# A marker inside or after entropy-coded data: not a stuffed zero, a restart or a fill byte (ITU T.81, B.1.1.5).
_SCAN_MARKER = re.compile(rb"\xff[^\x00\xd0-\xd7\xff]")


def _jpeg(data: bytes) -> bool:
    position, scans = 2, 0
    for _ in range(MAX_STEPS):
        found = _SCAN_MARKER.search(data, position)
        if found is None:
            return False
        marker, position = data[found.end() - 1], found.end()
        if marker == 0xD9:
            return True
        if marker == 0xDA:
            scans += 1
            if scans > MAX_JPEG_SCANS:
                raise BombError(f"jpeg: over {MAX_JPEG_SCANS} scans")
        if marker != 0x01 and position + 2 <= len(data):
            position += int.from_bytes(data[position : position + 2], "big")
    return False


def _png(data: bytes) -> bool:
    position = 8
    for _ in range(MAX_STEPS):
        if position + 12 > len(data):
            return False
        if data[position + 4 : position + 8] == b"IEND":
            return True
        position += int.from_bytes(data[position : position + 4], "big") + 12
    return False


def _webp(data: bytes) -> bool:
    return len(data) >= 12 and int.from_bytes(data[4:8], "little") + 8 <= len(data)


def _gif(data: bytes) -> bool:
    if len(data) < 13:
        return False
    position, in_blocks, in_frame = 13 + _colour_table_bytes(data[10]), False, False
    for _ in range(MAX_STEPS):
        if position >= len(data):
            return False
        kind = data[position : position + 1]
        if in_blocks:  # sub-blocks, each with its length before it, up to one of length 0
            in_blocks = kind != b"\0"
            position += data[position] + 1
            if in_frame and not in_blocks:
                return True  # the first frame is all that is ever used; many writers leave out the trailer
        elif kind == b";":
            return True
        elif kind == b"!":
            position, in_blocks = position + 2, True
        elif kind == b"," and position + 10 <= len(data):
            position, in_blocks = position + 11 + _colour_table_bytes(data[position + 9]), True
            in_frame = True
        elif kind == b"\0":
            position += 1
        else:
            return False
    return False


def _colour_table_bytes(flags: int) -> int:
    return 3 << ((flags & 7) + 1) if flags & 0x80 else 0


def _bmp(data: bytes) -> bool:
    try:
        pixels_offset, header_size = struct.unpack_from("<II", data, 10)
        if header_size < 40:
            return len(data) > int(pixels_offset)
        width, height, _, bits, compression, image_bytes = struct.unpack_from("<iiHHII", data, 18)
    except struct.error:
        return False
    if compression not in (0, 3):
        return len(data) >= int(pixels_offset + image_bytes)
    return len(data) >= int(pixels_offset + (width * bits + 31) // 32 * 4 * abs(height))


def _avif(data: bytes) -> bool:
    position, has_data = 0, False
    for _ in range(MAX_STEPS):
        if position + 8 > len(data):
            return has_data
        size, kind = int.from_bytes(data[position : position + 4], "big"), data[position + 4 : position + 8]
        if size == 1:
            size = int.from_bytes(data[position + 8 : position + 16], "big")
        if size == 0:  # to the end of the file
            return True
        if size < 8 or position + size > len(data):
            return has_data
        has_data = has_data or kind == b"mdat"
        position += size
    return False


CHECKS: dict[str, Callable[[bytes], bool]] = {
    "jpeg": _jpeg,
    "png": _png,
    "webp": _webp,
    "gif": _gif,
    "bmp": _bmp,
    "avif": _avif,
}
