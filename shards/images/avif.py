"""Is an AVIF whole? Its boxes say where its bytes lie. Sources: ISO/IEC 14496-12 (boxes), 23008-12 (items).

The pixels of an item lie in `mdat`, anywhere in the file, or inside `meta` in the item data box `idat`.
"""

import struct
from collections.abc import Iterator

MAX_BOXES = 1 << 16
MAX_EXTENTS = 1 << 16

_IN_FILE, _IN_IDAT = 0, 1


def is_whole(data: bytes) -> bool:
    """True if everything that the item locations name is there; without locations, if a media data box is whole."""
    has_media, located = False, True
    for kind, start, end in _boxes(data, 0, len(data)):
        if kind == b"mdat":
            has_media = True
        elif kind == b"meta":
            found = _items_are_there(data, start + 4, end)
            located, has_media = located and found is not False, has_media or found is True
    return has_media and located


def _boxes(data: bytes, position: int, stop: int) -> Iterator[tuple[bytes, int, int]]:
    """Yield (kind, start and end of its content) of each whole box."""
    for _ in range(MAX_BOXES):
        if position + 8 > stop:
            return
        size, kind = int.from_bytes(data[position : position + 4], "big"), data[position + 4 : position + 8]
        start = position + 8
        if size == 1:
            size, start = int.from_bytes(data[start : start + 8], "big"), start + 8
        end = stop if size == 0 else position + size  # 0: to the end of the file
        if end < start or end > stop:
            return
        yield kind, start, end
        position = end


def _items_are_there(data: bytes, start: int, end: int) -> bool | None:
    """True or False as the extents of a `meta` box lie inside the file or not; None if it locates nothing."""
    inside = {kind: (first, last) for kind, first, last in _boxes(data, start, end)}
    if b"iloc" not in inside:
        return None
    idat = inside.get(b"idat", (0, 0))
    limits = {_IN_FILE: len(data), _IN_IDAT: idat[1] - idat[0]}
    num_located = 0
    try:
        for method, offset, size in _extents(data[slice(*inside[b"iloc"])]):
            if method in limits and (offset > limits[method] or offset + size > limits[method]):
                return False
            num_located += method in limits
    except (struct.error, IndexError):
        return False
    return True if num_located else None


def _extents(box: bytes) -> Iterator[tuple[int, int, int]]:
    """Yield (construction method, offset, size) of each extent of an `iloc` box (14496-12, 8.11.3)."""
    version = box[0]
    offset_size, length_size, base_size = box[4] >> 4, box[4] & 15, box[5] >> 4
    index_size = box[5] & 15 if version else 0
    position, wide = 6, version == 2
    num_items, position = _number(box, position, 4 if wide else 2)
    extents_left = MAX_EXTENTS
    for _ in range(num_items):
        position += 4 if wide else 2  # the item's number
        method, position = _number(box, position, 2) if version else (_IN_FILE, position)
        position += 2  # the data reference
        base, position = _number(box, position, base_size)
        num_extents, position = _number(box, position, 2)
        for _ in range(num_extents):
            extents_left -= 1
            if extents_left < 0:
                raise struct.error("too many extents")
            offset, position = _number(box, position + index_size, offset_size)
            size, position = _number(box, position, length_size)
            yield method & 15, base + offset, size


def _number(box: bytes, position: int, size: int) -> tuple[int, int]:
    """Return the number of `size` bytes at `position` and the place behind it."""
    if position + size > len(box):
        raise IndexError("the box ends inside a number")
    return int.from_bytes(box[position : position + size], "big"), position + size
