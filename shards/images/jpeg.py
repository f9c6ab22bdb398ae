"""Is a JPEG whole? One walk over its markers, without decoding.

A file that was cut and then given an end marker decodes without an error where restart markers or progressive scans
let a decoder go on: what is missing is gray, or coarse. So every scan must hold its restarts, and the scans together
every bit of every coefficient. Source: ITU-T T.81, annexes B, F.2 and G.1.
"""

import re
import struct
from dataclasses import dataclass, field

MAX_STEPS = 1 << 20
MAX_SCANS = 100  # as many as cjpeg writes; each of a million empty ones would cost a pass over all pixels

_SOF = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
_SEQUENTIAL, _PROGRESSIVE = frozenset({0xC0, 0xC1, 0xC9}), frozenset({0xC2, 0xCA})  # not lossless or hierarchical
_EOI, _SOS, _DRI, _TEM, _DNL = 0xD9, 0xDA, 0xDD, 0x01, 0xDC

# A marker inside or after entropy-coded data: not a stuffed zero, a restart or a fill byte (B.1.1.5). Bytes that are
# no marker between two segments are skipped, as every decoder of the field does.
_MARKER = re.compile(rb"\xff[^\x00\xd0-\xd7\xff]")
_RESTART = re.compile(rb"\xff[\xd0-\xd7]")


class BombError(ValueError):
    """Decoding would cost out of all proportion to the image."""


@dataclass(slots=True)
class _Component:
    """One colour of the frame."""

    across: int
    """Horizontal sampling factor."""
    down: int
    missing: list[int] = field(default_factory=lambda: [32] * 64)
    """For each coefficient the bits that no scan has given yet; 32: nothing of it."""


@dataclass(slots=True)
class _Frame:
    """What the frame header says."""

    height: int
    width: int
    progressive: bool
    components: dict[int, _Component]

    def num_units(self, chosen: list[_Component]) -> int:
        """Return the number of MCUs of a scan over these components (A.2)."""
        across = max(component.across for component in self.components.values())
        down = max(component.down for component in self.components.values())
        if len(chosen) > 1:
            return -(-self.width // (8 * across)) * -(-self.height // (8 * down))
        width, height = -(-self.width * chosen[0].across // across), -(-self.height * chosen[0].down // down)
        return -(-width // 8) * -(-height // 8)


def is_whole(data: bytes) -> bool:
    """True if the end is there and nothing before it is missing. Raises BombError for too many scans."""
    position, scans, interval = 2, 0, 0
    frame: _Frame | None = None
    for _ in range(MAX_STEPS):
        found = _MARKER.search(data, position)
        if found is None:
            return False
        marker, position = data[found.end() - 1], found.end()
        if marker == _EOI:
            return frame is None or not any(any(one.missing) for one in frame.components.values())
        if marker == _TEM or position + 2 > len(data):
            continue
        segment = data[position + 2 : position + int.from_bytes(data[position : position + 2], "big")]
        position += 2 + len(segment)
        if marker == _DRI and len(segment) >= 2:
            interval = int.from_bytes(segment[:2], "big")
        elif marker in _SOF:
            known = marker in _SEQUENTIAL or marker in _PROGRESSIVE
            frame = _read_frame(segment, progressive=marker in _PROGRESSIVE) if known else None
        elif marker == _SOS:
            scans += 1
            if scans > MAX_SCANS:
                raise BombError(f"jpeg: over {MAX_SCANS} scans")
            chosen = _note_scan(frame, segment) if frame is not None else []
            if frame is not None and chosen and interval:
                end = _MARKER.search(data, position)
                stop = end.start() if end is not None else len(data)
                if not _has_restarts(data, position, stop, expected=(frame.num_units(chosen) - 1) // interval):
                    return False
    return False


def is_one_plain_scan(data: bytes) -> bool:
    """True if all there can be is one sequential scan without restarts: a strict decoder itself sees where it is cut.

    Reads the header only, so the cost does not grow with the picture.
    """
    position, num_components = 2, 0
    for _ in range(MAX_STEPS):
        found = _MARKER.search(data, position)
        if found is None:
            return False
        marker, position = data[found.end() - 1], found.end()
        segment_bytes = int.from_bytes(data[position : position + 2], "big")
        if marker == _TEM or segment_bytes < 2:
            continue
        if marker == _SOS:
            return 0 < num_components == int.from_bytes(data[position + 2 : position + 3], "big")
        if marker == _EOI or (marker in _SOF and marker not in _SEQUENTIAL):
            return False
        if marker == _DRI and any(data[position + 2 : position + 4]):
            return False
        if marker in _SOF:
            num_components = int.from_bytes(data[position + 7 : position + 8], "big")
        position += segment_bytes
    return False


def _read_frame(segment: bytes, *, progressive: bool) -> _Frame | None:
    """Return the frame, or None if it is damaged or its height comes later (DNL): then nothing is expected of scans."""
    if len(segment) < 6 or len(segment) < 6 + 3 * segment[5]:
        return None
    height, width = struct.unpack_from(">HH", segment, 1)
    components = {}
    for place in range(6, 6 + 3 * segment[5], 3):
        components[segment[place]] = _Component(segment[place + 1] >> 4, segment[place + 1] & 15)
    sampled = all(1 <= one.across <= 4 and 1 <= one.down <= 4 for one in components.values())
    usable = height and width and components and sampled and len(components) == segment[5]
    return _Frame(height, width, progressive, components) if usable else None


def _note_scan(frame: _Frame, segment: bytes) -> list[_Component]:
    """Note the bits that a scan gives; return its components, none if its header is damaged."""
    if not segment or len(segment) < 4 + 2 * segment[0]:
        return []
    ids = segment[1 : 1 + 2 * segment[0] : 2]
    # Some writers of sequential files leave these three bytes at zero; decoders do not look at them there.
    first, last, low = (segment[-3], segment[-2], segment[-1] & 15) if frame.progressive else (0, 63, 0)
    chosen = [frame.components[one] for one in ids if one in frame.components]
    for component in chosen:
        for coefficient in range(first, min(last, 63) + 1):
            component.missing[coefficient] = min(component.missing[coefficient], low)
    return chosen


def _has_restarts(data: bytes, start: int, stop: int, *, expected: int) -> bool:
    """True unless a scan ends before its last restart.

    A restart lost in the middle is damage that decoders bridge; then the last one still has the right number.
    """
    found, last = 0, -1
    for match in _RESTART.finditer(data, start, stop):
        found, last = found + 1, data[match.end() - 1] - 0xD0
    return found >= expected or (found > expected - 8 and last == (expected - 1) % 8)
