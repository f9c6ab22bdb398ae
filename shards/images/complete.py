"""Is the end of an image there? One walk per format over its blocks, without decoding.

Bytes after the end are tolerated, as many writers append some. Searching for the last end marker is not enough: an
EXIF thumbnail holds a whole JPEG with its own.
"""

import struct
from collections.abc import Callable, Iterator

from headrace.shards.images import avif, jpeg

MAX_STEPS = 1 << 20


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
    # The first frame is all that is ever used; many writers leave out the trailer.
    return any(whole for _, whole in gif_blocks(data))


def gif_first_frame(data: bytes) -> tuple[int, int, int, int] | None:
    """Return (left, top, width, height) of the first frame on the screen; None if there is none before the end."""
    for position, _ in gif_blocks(data):
        if position is not None:
            left, top, width, height = struct.unpack_from("<HHHH", data, position + 1)
            return left, top, width, height
    return None


def gif_blocks(data: bytes, *, stop_after_first: bool = True) -> Iterator[tuple[int | None, bool]]:
    """Walk to the end of the first frame; yield (its place, False), then (None, True) where it or the file is whole.

    Without `stop_after_first` the walk goes on to the next frame.
    """
    if len(data) < 13:
        return
    position, in_blocks, in_frame = 13 + _colour_table_bytes(data[10]), False, False
    for _ in range(MAX_STEPS):
        if position >= len(data):
            return
        kind = data[position : position + 1]
        if in_blocks:  # sub-blocks, each with its length before it, up to one of length 0
            in_blocks = kind != b"\0"
            position += data[position] + 1
            if in_frame and not in_blocks:
                yield None, True
                if stop_after_first:
                    return
                in_frame = False
        elif kind == b";":
            yield None, True
            return
        elif kind == b"!":
            position, in_blocks = position + 2, True
        elif kind == b"," and position + 10 <= len(data):
            yield position, False
            position, in_blocks = position + 11 + _colour_table_bytes(data[position + 9]), True
            in_frame = True
        elif kind == b"\0":
            position += 1
        else:
            return


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


CHECKS: dict[str, Callable[[bytes], bool]] = {
    "jpeg": jpeg.is_whole,
    "png": _png,
    "webp": _webp,
    "gif": _gif,
    "bmp": _bmp,
    "avif": avif.is_whole,
}
