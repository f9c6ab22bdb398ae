"""Cut everything from a JPEG but what its pixels need: no Exif, XMP, IPTC, comments, thumbnails, second pictures.

Invariant: tables, frame and scan headers and all entropy-coded data leave as they came, so every decoder gives the
same pixels. Kept beside them: JFIF without its thumbnail, Adobe (it names the colour transform) and ICC profiles. The
one thing a reader would get wrong: metadata segments may stand between the scans of a progressive file too.
Source: ITU-T T.81 annex B; JFIF 1.02; ICC.1:2022 annex B.4.
"""

import re

# Frames, Huffman and arithmetic tables, quantisation, restart interval, number of lines. C8 (JPG) is reserved.
_KEPT = frozenset(range(0xC0, 0xD0)) - {0xC8} | {0xDB, 0xDC, 0xDD}
_APP0, _APP2, _APP14, _APP15, _COM = 0xE0, 0xE2, 0xEE, 0xEF, 0xFE
_SOI, _EOI, _SOS, _TEM = 0xD8, 0xD9, 0xDA, 0x01

_MARKER = re.compile(rb"\xff+([^\x00\xff])")
# Inside a scan FF 00 is a data byte and FF D0..D7 a restart; anything else ends the scan.
_SCAN_END = re.compile(rb"\xff+[^\x00\xff\xd0-\xd7]")


def strip_jpeg(data: bytes) -> bytes:
    """Return the JPEG without metadata and without what follows its end. Raises ValueError if it is damaged."""
    if data[:2] != b"\xff\xd8":
        raise ValueError("not a JPEG: it does not start with SOI")
    parts, position, scans = [data[:2]], 2, 0
    while True:
        found = _MARKER.search(data, position)
        if found is None:
            raise ValueError(f"JPEG ends without EOI after {len(data)} bytes")
        marker, position = found[1][0], found.end()
        if marker == _EOI:
            break
        if marker == _TEM or 0xD0 <= marker <= 0xD7:
            continue
        if marker not in _KEPT and marker != _SOS and marker != _COM and not _APP0 <= marker <= _APP15:
            raise ValueError(f"JPEG marker FF{marker:02X} at byte {position - 2} is not one of a plain image")
        payload = _payload(data, position)
        position += 2 + len(payload)
        kept = _kept(marker, payload)
        if kept is not None:
            parts.append(_segment(marker, kept))
        if marker == _SOS:
            end = _SCAN_END.search(data, position)
            if end is None:
                raise ValueError(f"JPEG ends inside a scan after {len(data)} bytes")
            parts.append(data[position : end.start()])
            position, scans = end.start(), scans + 1
    if not scans:
        raise ValueError("JPEG holds no scan")
    return b"".join([*parts, b"\xff\xd9"])


def add_icc(jpeg: bytes, profile: bytes) -> bytes:
    """Return the JPEG with an ICC profile put behind SOI, in as many segments as it needs."""
    pieces = [profile[start : start + 65_519] for start in range(0, len(profile), 65_519)]
    if not 1 <= len(pieces) <= 255:
        return jpeg
    segments = [
        _segment(_APP2, b"ICC_PROFILE\0" + bytes([number + 1, len(pieces)]) + piece)
        for number, piece in enumerate(pieces)
    ]
    # JFIF must come first where there is one.
    at = 4 + int.from_bytes(jpeg[4:6], "big") if jpeg[2:4] == b"\xff\xe0" else 2
    return b"".join([jpeg[:at], *segments, jpeg[at:]])


def _payload(data: bytes, position: int) -> bytes:
    size = int.from_bytes(data[position : position + 2], "big")
    payload = data[position + 2 : position + size]
    if size < 2 or len(payload) != size - 2:
        raise ValueError(f"JPEG segment at byte {position - 2} claims {size} bytes, {len(data) - position} follow")
    return payload


def _kept(marker: int, payload: bytes) -> bytes | None:
    """Return what stays of a segment, or None."""
    if marker in _KEPT or marker == _SOS:
        return payload
    if marker == _APP0 and payload[:5] == b"JFIF\0" and len(payload) >= 14:
        return payload[:12] + b"\0\0"
    if marker == _APP14 and payload[:5] == b"Adobe" and len(payload) >= 12:
        return payload[:12]
    if marker == _APP2 and payload[:12] == b"ICC_PROFILE\0":
        return payload
    return None


def _segment(marker: int, payload: bytes) -> bytes:
    return bytes([0xFF, marker]) + (len(payload) + 2).to_bytes(2, "big") + payload
