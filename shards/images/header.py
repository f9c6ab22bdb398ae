"""Format, stored size and EXIF orientation of an image, read from its first bytes without decoding.

Every byte is hostile: the work is bounded (segments, chunks, entries), and the answer is an `ImageHeader` or a
ValueError, nothing else. Width and height are as stored; orientations 5 to 8 swap them in the upright image.
"""

import re
import struct
from dataclasses import dataclass

from headrace.shards.images import complete as image_complete
from headrace.shards.images import exif as image_exif
from headrace.shards.images.orientation import png_orientation
from headrace.shards.images.pillow import PILLOW_ERRORS, open_image

MAX_SEGMENTS = 4096
MAX_CHUNKS = 1 << 17

PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"

# Bytes that are no marker between two segments are skipped, as libjpeg, Pillow, OpenCV and browsers do.
# Of a run of fill bytes the last one is matched: a pattern of the whole run takes the square of its length.
_JPEG_MARKER = re.compile(rb"\xff([^\x00\xff])")

_MAX_BRANDS_BYTES = 512


@dataclass(frozen=True, slots=True)
class ImageHeader:
    """What the first bytes of an image say; width and height as stored, in pixels."""

    format: str
    width: int
    height: int
    orientation: int = 1

    @property
    def upright_size(self) -> tuple[int, int]:
        """(width, height) after the orientation is applied."""
        return (self.height, self.width) if self.orientation >= 5 else (self.width, self.height)


def read_header(data: bytes) -> ImageHeader:
    """Read the header of an image. Raises ValueError if it is none of the known formats, or damaged."""
    image_format = sniff_format(data)
    if image_format is None:
        raise ValueError(f"not an image of a known format: starts with {bytes(data[:12]).hex(' ') or 'nothing'}")
    try:
        header = _READERS[image_format](data)
    except (struct.error, IndexError) as error:
        raise ValueError(f"{image_format}: the header ends after {len(data)} bytes") from error
    if header.width < 1 or header.height < 1:
        raise ValueError(f"{image_format}: the header says {header.width} x {header.height} pixels")
    return header


def check_complete(data: bytes, header: ImageHeader) -> None:
    """Check that the image's end is there; bytes after it are fine. Raises ValueError if it is cut.

    JPEG EOI, PNG IEND, WebP RIFF size, a GIF's first frame, BMP rows, AVIF boxes; a TIFF has no end to look for.
    Of a JPEG of too many scans, raises BombError (a ValueError).
    """
    check = image_complete.CHECKS.get(header.format)
    if check is not None and not check(data):
        raise ValueError(f"{header.format}: truncated, the end is missing after {len(data)} bytes")


def sniff_format(data: bytes) -> str | None:
    """Return the format that the first bytes name, or None."""
    head = bytes(data[:32])
    if head.startswith(b"\xff\xd8") and b"\xff" in head[2:]:
        return "jpeg"
    if head.startswith(PNG_SIGNATURE):
        return "png"
    if head[:4] == b"RIFF" and head[8:12] == b"WEBP":
        return "webp"
    if head[:6] in (b"GIF87a", b"GIF89a"):
        return "gif"
    if head[:4] in (b"II*\0", b"MM\0*"):
        return "tiff"
    if head[4:8] == b"ftyp" and _is_avif(data):
        return "avif"
    if head[:2] == b"BM":
        return "bmp"
    return None


def _is_avif(data: bytes) -> bool:
    size = min(int.from_bytes(data[:4], "big"), _MAX_BRANDS_BYTES)
    brands = {bytes(data[place : place + 4]) for place in (8, *range(16, size - 3, 4))}
    return not brands.isdisjoint((b"avif", b"avis"))


def _jpeg(data: bytes) -> ImageHeader:
    size, orientation = None, None
    position = 2
    for _ in range(MAX_SEGMENTS):
        found = _JPEG_MARKER.search(data, position)
        if found is None:
            raise ValueError(f"jpeg: no marker after byte {position} of {len(data)}")
        marker, position = found[1][0], found.end()
        if marker == 0x01 or 0xD0 <= marker <= 0xD7:
            continue
        if marker in (0xDA, 0xD9):
            break
        (length,) = struct.unpack_from(">H", data, position)
        if length < 2 or position + length > len(data):
            raise ValueError(f"jpeg: segment {marker:#x} at byte {position} runs past the end ({len(data)} bytes)")
        if 0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC) and size is None:
            height, width = struct.unpack_from(">HH", data, position + 3)
            size = (width, height)
        elif marker == 0xE1 and orientation is None and data[position + 2 : position + 8] == b"Exif\0\0":
            orientation = image_exif.orientation(data[position + 8 : position + length])
        position += length
    else:
        raise ValueError(f"jpeg: over {MAX_SEGMENTS} segments before the image")
    if size is None or data[position - 1] != 0xDA:
        raise ValueError("jpeg: no frame header before the end")
    return ImageHeader("jpeg", *size, orientation or 1)


def _png(data: bytes) -> ImageHeader:
    if data[8:16] != b"\0\0\0\rIHDR":
        raise ValueError("png: the first chunk is not IHDR")
    width, height = struct.unpack_from(">II", data, 16)
    if width >= 1 << 31 or height >= 1 << 31:
        raise ValueError(f"png: the header says {width} x {height} pixels")
    return ImageHeader("png", width, height, png_orientation(data))


def _webp(data: bytes) -> ImageHeader:
    kind = data[12:16]
    if kind == b"VP8 ":
        if data[23:26] != b"\x9d\x01\x2a":
            raise ValueError("webp: no VP8 key frame")
        width, height = struct.unpack_from("<HH", data, 26)
        return ImageHeader("webp", width & 0x3FFF, height & 0x3FFF)
    if kind == b"VP8L":
        if data[20] != 0x2F:
            raise ValueError("webp: no VP8L signature")
        (bits,) = struct.unpack_from("<I", data, 21)
        return ImageHeader("webp", (bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1)
    if kind != b"VP8X":
        raise ValueError(f"webp: unknown first chunk {bytes(kind)!r}")
    if len(data) < 30:
        raise ValueError("webp: the header is cut")
    width = int.from_bytes(data[24:27], "little") + 1
    height = int.from_bytes(data[27:30], "little") + 1
    orientation, position = 1, 12
    for _ in range(MAX_CHUNKS):
        if position + 8 > len(data):
            break
        (length,) = struct.unpack_from("<I", data, position + 4)
        if data[position : position + 4] == b"EXIF":
            exif = data[position + 8 : position + 8 + length]
            orientation = image_exif.orientation(exif.removeprefix(b"Exif\0\0"))
            break
        position += 8 + length + (length & 1)
    return ImageHeader("webp", width, height, orientation)


def _gif(data: bytes) -> ImageHeader:
    width, height = struct.unpack_from("<HH", data, 6)
    frame = image_complete.gif_first_frame(data)
    # A first frame that reaches over the screen makes it larger, for decoders and browsers alike.
    if frame is not None:
        left, top, across, down = frame
        width, height = max(width, left + across), max(height, top + down)
    return ImageHeader("gif", width, height)


def _bmp(data: bytes) -> ImageHeader:
    (header_size,) = struct.unpack_from("<I", data, 14)
    if header_size == 12:
        return ImageHeader("bmp", *struct.unpack_from("<HH", data, 18))
    if header_size not in (16, 40, 52, 56, 64, 108, 124):
        raise ValueError(f"bmp: unknown header of {header_size} bytes")
    width, height = struct.unpack_from("<ii", data, 18)
    return ImageHeader("bmp", width, abs(height))  # a negative height means rows from the top


def _by_pillow(image_format: str, data: bytes) -> ImageHeader:
    try:
        with open_image(image_format, data) as image:
            width, height = image.size
            tag = image.getexif().get(image_exif.ORIENTATION_TAG)
    except PILLOW_ERRORS as error:
        raise ValueError(f"{image_format}: {error}") from error
    return ImageHeader(image_format, width, height, tag if isinstance(tag, int) and 1 <= tag <= 8 else 1)


def _tiff(data: bytes) -> ImageHeader:
    header = _by_pillow("tiff", data)
    if header.orientation >= 5:  # of a TIFF, and of no other format, Pillow names the upright size
        return ImageHeader("tiff", header.height, header.width, header.orientation)
    return header


def _avif(data: bytes) -> ImageHeader:
    return _by_pillow("avif", data)


_READERS = {"jpeg": _jpeg, "png": _png, "webp": _webp, "gif": _gif, "bmp": _bmp, "tiff": _tiff, "avif": _avif}
