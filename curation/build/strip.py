"""Cut metadata from an image file without touching its compressed pixels.

Exif holds places and thumbnails, comments hold names, what follows the end of the picture can be a second picture: all
of it goes, always. The ICC profile stays. The Exif orientation goes too, so it must be read first and kept in the
index. Of an animation only the first frame stays, as the other frames may show unblurred faces. Sources: PNG 3rd
edition (W3C), WebP container specification, GIF89a.
"""

import zlib
from collections.abc import Callable

import numpy as np

from headrace.curation.build.strip_jpeg import strip_jpeg
from headrace.shards.images.decode import decode_rgb

_PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_PNG_CRITICAL = frozenset({b"IHDR", b"PLTE", b"IDAT", b"IEND"})
# What changes how pixels look; iCCP carries only a profile and its name.
_PNG_KEPT = frozenset(
    {b"tRNS", b"gAMA", b"cHRM", b"sRGB", b"iCCP", b"cICP", b"sBIT", b"bKGD", b"pHYs", b"mDCV", b"cLLI"}
)

_WEBP_KEPT = frozenset({b"VP8 ", b"VP8L", b"VP8X", b"ALPH", b"ICCP"})
_WEBP_EXIF_AND_XMP, _WEBP_ANIMATION = 0x0C, 0x02


def strip_metadata(data: bytes, image_format: str) -> bytes | None:
    """Return `data` without metadata, or None if that needs a new encoding (bmp, tiff, avif, an animated WebP).

    Raises ValueError for a damaged file.
    """
    strip = STRIPPERS.get(image_format)
    return strip(data) if strip is not None else None


def strip_png(data: bytes) -> bytes:
    """Return the PNG with only the chunks that make its pixels and colours. Raises ValueError if it is damaged."""
    if data[:8] != _PNG_SIGNATURE:
        raise ValueError("not a PNG: wrong signature")
    parts, position, kinds = [_PNG_SIGNATURE], 8, set()
    while b"IEND" not in kinds:
        kind, size = data[position + 4 : position + 8], int.from_bytes(data[position : position + 4], "big")
        end = position + 12 + size
        if end > len(data):
            raise ValueError(
                f"PNG chunk at byte {position} needs {end - position} bytes, {len(data) - position} follow"
            )
        if kind in _PNG_CRITICAL or kind in _PNG_KEPT:
            if int.from_bytes(data[end - 4 : end], "big") != zlib.crc32(data[position + 4 : end - 4]):
                raise ValueError(f"PNG chunk {kind.decode('ascii')} at byte {position} fails its checksum")
            parts.append(data[position:end])
        elif not kind[0] & 0x20:
            raise ValueError(f"PNG chunk {kind!r} at byte {position} is critical and unknown")
        kinds.add(kind)
        position = end
    if b"IDAT" not in kinds:
        raise ValueError("PNG holds no IDAT")
    return b"".join(parts)


def strip_webp(data: bytes) -> bytes | None:
    """Return the WebP without Exif and XMP, or None if it is animated. Raises ValueError if it is damaged."""
    if data[:4] != b"RIFF" or data[8:12] != b"WEBP":
        raise ValueError("not a WebP: wrong signature")
    riff_end = 8 + int.from_bytes(data[4:8], "little")
    if riff_end > len(data):
        raise ValueError(f"WebP claims {riff_end} bytes, {len(data)} are there")
    parts, position, kinds = [], 12, set()
    while position + 8 <= riff_end:
        kind, size = data[position : position + 4], int.from_bytes(data[position + 4 : position + 8], "little")
        payload = data[position + 8 : position + 8 + size]
        if position + 8 + size > riff_end:
            raise ValueError(f"WebP chunk at byte {position} claims {size} bytes, {riff_end - position - 8} follow")
        if kind == b"VP8X" and size >= 1:
            if payload[0] & _WEBP_ANIMATION:
                return None
            payload = bytes([payload[0] & ~_WEBP_EXIF_AND_XMP]) + payload[1:]
        if kind in _WEBP_KEPT and (kind not in kinds):
            parts.append(kind + size.to_bytes(4, "little") + payload + b"\0" * (size & 1))
        kinds.add(kind)
        position += 8 + size + (size & 1)
    if not kinds & {b"VP8 ", b"VP8L"}:
        raise ValueError("WebP holds no image")
    body = b"WEBP" + b"".join(parts)
    return b"RIFF" + len(body).to_bytes(4, "little") + body


def strip_gif(data: bytes) -> bytes:
    """Return the GIF's first frame without extensions but its graphic control. Raises ValueError if it is damaged."""
    if data[:6] not in (b"GIF87a", b"GIF89a") or len(data) < 13:
        raise ValueError("not a GIF: wrong signature")
    position = 13 + _colour_table_bytes(data[10])
    parts = [data[:position]]
    while True:
        introducer = data[position : position + 1]
        if introducer == b"!":
            end = _sub_blocks_end(data, position + 2)
            if data[position + 1] == 0xF9:
                if end - position != 8:
                    raise ValueError(f"GIF graphic control at byte {position} has {end - position} bytes, not 8")
                parts.append(data[position:end])
        elif introducer == b"," and len(data) > position + 9:
            start = position + 10 + _colour_table_bytes(data[position + 9])
            end = _sub_blocks_end(data, start + 1)
            return _checked_gif(data, b"".join([*parts, data[position:end], b";"]))
        else:
            raise ValueError(f"GIF block at byte {position}: expected an extension or an image, got {introducer!r}")
        position = end


def _checked_gif(data: bytes, stripped: bytes) -> bytes:
    # Decoders read on behind an early end of the image's blocks, so only decoding tells whether the cut was right.
    if not np.array_equal(decode_rgb(stripped), decode_rgb(data)):
        raise ValueError("GIF's pixels reach past the end of its image block")
    return stripped


def _colour_table_bytes(packed: int) -> int:
    return 3 << ((packed & 7) + 1) if packed & 0x80 else 0


def _sub_blocks_end(data: bytes, position: int) -> int:
    """Return the byte behind the terminator of a chain of sub-blocks."""
    while True:
        if position >= len(data):
            raise ValueError(f"GIF ends inside a block after {len(data)} bytes")
        size = data[position]
        position += 1 + size
        if not size:
            return position


STRIPPERS: dict[str, Callable[[bytes], bytes | None]] = {
    "jpeg": strip_jpeg,
    "png": strip_png,
    "webp": strip_webp,
    "gif": strip_gif,
}
