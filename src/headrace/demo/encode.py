"""Bytes of image files: clean ones, copies that a person would call the same picture, and files made to hurt a reader.

Every function is deterministic. The one thing a reader would get wrong: the bombs are a few hundred bytes; only their
headers are large.
"""

import io
import struct
import zlib
from typing import Any

import numpy as np
from PIL import Image, ImageCms, PngImagePlugin

from headrace.demo.scenes import Pixels

EXTENSIONS = {"jpeg": "jpg", "png": "png", "webp": "webp"}
# (Exif orientation) -> quarter turns, counter-clockwise, from the upright picture to the stored one.
QUARTER_TURNS = {1: 0, 3: 2, 6: 1, 8: 3}


def encode(pixels: Pixels, image_format: str = "jpeg", *, quality: int = 90, **extra: Any) -> bytes:
    """Return `pixels` as a JPEG, PNG or WebP file; `extra` goes to Pillow's encoder."""
    buffer = io.BytesIO()
    options = {"quality": quality} if image_format != "png" else {}
    Image.fromarray(pixels).save(buffer, format=image_format, **options, **extra)
    return buffer.getvalue()


def resized(pixels: Pixels, factor: float) -> Pixels:
    """Return the picture at another size."""
    height, width = pixels.shape[:2]
    size = (max(1, round(width * factor)), max(1, round(height * factor)))
    return np.asarray(Image.fromarray(pixels).resize(size, Image.Resampling.BICUBIC))


def padded(pixels: Pixels, colour: int) -> Pixels:
    """Return the picture on a square of one grey level, a little larger than its longer side."""
    height, width = pixels.shape[:2]
    side = round(max(height, width) * 1.15)
    canvas = np.full((side, side, 3), colour, np.uint8)
    top, left = (side - height) // 2, (side - width) // 2
    canvas[top : top + height, left : left + width] = pixels
    return canvas


def with_metadata(pixels: Pixels, image_format: str, *, orientation: int = 1, secret: str = "") -> bytes:
    """Return a file whose Exif holds an orientation, a place on earth and a thumbnail, and whose comment and XMP hold
    `secret`. The pixels are stored turned, so that a reader who applies the orientation sees `pixels`.
    """
    stored = np.ascontiguousarray(np.rot90(pixels, QUARTER_TURNS[orientation]))
    exif = b"Exif\0\0" + exif_block(orientation, thumbnail=encode(resized(stored, 0.3), quality=60), note=secret)
    xmp = f'<x:xmpmeta xmlns:x="adobe:ns:meta/"><note>{secret}</note></x:xmpmeta>'.encode()
    if image_format == "jpeg":
        return encode(stored, "jpeg", exif=exif, xmp=xmp, comment=secret.encode())
    if image_format == "webp":
        return encode(stored, "webp", exif=exif[6:], xmp=xmp)
    text = PngImagePlugin.PngInfo()
    text.add_text("Comment", secret)
    return encode(stored, "png", exif=exif[6:], pnginfo=text)


def with_profile(pixels: Pixels) -> bytes:
    """Return a JPEG with an ICC profile, which is no secret: colours are wrong without it."""
    profile = bytearray(ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes())
    profile[24:36] = struct.pack(">6H", 2000, 1, 1, 0, 0, 0)  # littlecms writes the time it was made
    return encode(pixels, "jpeg", icc_profile=bytes(profile))


def exif_block(orientation: int, *, thumbnail: bytes, note: str) -> bytes:
    """Return a TIFF block: orientation, artist, a GPS position and a JPEG thumbnail in the second directory."""
    artist = note.encode() + b"\0"
    artist += b"\0" * (max(0, 5 - len(artist)) + len(artist) % 2)
    ifd0, gps, ifd1 = 8, 8 + 2 + 3 * 12 + 4, 8 + 42 + 2 + 4 * 12 + 4
    data = ifd1 + 2 + 2 * 12 + 4
    latitude, longitude = data + len(artist), data + len(artist) + 24
    image = longitude + 24
    degrees = struct.pack("<6I", 48, 1, 51, 1, 2966, 100), struct.pack("<6I", 2, 1, 17, 1, 4020, 100)

    def entry(tag: int, kind: int, count: int, value: bytes | int) -> bytes:
        packed = value.ljust(4, b"\0") if isinstance(value, bytes) else struct.pack("<I", value)
        return struct.pack("<HHI", tag, kind, count) + packed

    first = [entry(0x112, 3, 1, orientation), entry(0x13B, 2, len(artist), data), entry(0x8825, 4, 1, gps)]
    places = [entry(1, 2, 2, b"N\0"), entry(2, 5, 3, latitude), entry(3, 2, 2, b"E\0"), entry(4, 5, 3, longitude)]
    second = [entry(0x201, 4, 1, image), entry(0x202, 4, 1, len(thumbnail))]

    def directory(entries: list[bytes], following: int) -> bytes:
        return struct.pack("<H", len(entries)) + b"".join(entries) + struct.pack("<I", following)

    block = b"II*\0" + struct.pack("<I", ifd0) + directory(first, ifd1) + directory(places, 0) + directory(second, 0)
    return block + artist + degrees[0] + degrees[1] + thumbnail


def png_bomb(width: int, height: int) -> bytes:
    """Return a small, well-formed PNG whose header declares `width` x `height` pixels."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = struct.pack(">2I5B", width, height, 8, 2, 0, 0, 0)
    rows = zlib.compress(bytes(1 << 16), 9)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")


def jpeg_bomb(pixels: Pixels, width: int, height: int) -> bytes:
    """Return a JPEG of `pixels` whose frame header claims `width` x `height`."""
    data = bytearray(encode(pixels, "jpeg"))
    frame = data.index(b"\xff\xc0")
    data[frame + 5 : frame + 9] = struct.pack(">2H", height, width)
    return bytes(data)
