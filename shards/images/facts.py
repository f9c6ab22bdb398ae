"""What a file holds beside one opaque picture: alpha, further frames, how finely a JPEG keeps its colours.

Read from headers and block structure; nothing is decoded, and the work is bounded.
"""

import re
import struct

from headrace.shards.images.complete import MAX_STEPS, gif_blocks
from headrace.shards.images.pillow import PILLOW_ERRORS, open_image

MAX_FRAMES = 1 << 15
"""Frames are counted up to here."""

_FRAME_HEADER = re.compile(rb"\xff[\xc0-\xc3\xc5-\xc7\xc9-\xcb\xcd-\xcf]")


def has_alpha(data: bytes, image_format: str) -> bool | None:
    """Return whether pixels may be transparent; None if the file does not say."""
    if image_format in ("jpeg", "bmp"):
        return False
    try:
        with open_image(image_format, data) as image:
            return bool(image.has_transparency_data)
    except PILLOW_ERRORS:
        return None


def num_frames(data: bytes, image_format: str) -> int | None:
    """Return the number of frames (of a TIFF: of pages), up to MAX_FRAMES; None if the file does not say.

    1 is a still picture.
    """
    if image_format in ("jpeg", "bmp"):
        return 1
    if image_format == "gif":
        return _gif_frames(data)
    if image_format == "png":
        return _apng_frames(data)
    if image_format == "webp":
        return _webp_frames(data)
    try:
        with open_image(image_format, data) as image:
            return min(int(getattr(image, "n_frames", 1)), MAX_FRAMES)
    except PILLOW_ERRORS:
        return None


def chroma_sampling(jpeg: bytes) -> str | None:
    """Return `4:4:4`, `4:2:2`, `4:2:0`, `4:4:0`, `4:1:1`, `4:1:0`, `gray`, or `other`; None without a frame header.

    Source: ITU-T T.81, B.2.2.
    """
    position = 2
    for _ in range(MAX_STEPS):
        start = jpeg.find(b"\xff", position)
        if start < 0 or start + 4 > len(jpeg) or jpeg[start + 1] == 0xDA:
            return None
        position = start + 1
        marker = jpeg[position]
        if marker in (0x00, 0xFF, 0x01) or 0xD0 <= marker <= 0xD9:
            continue
        if _FRAME_HEADER.match(jpeg, start):
            return _sampling(jpeg[start + 4 : start + 2 + int.from_bytes(jpeg[start + 2 : start + 4], "big")])
        position = start + 2 + int.from_bytes(jpeg[start + 2 : start + 4], "big")
    return None


_SAMPLINGS = {
    (1, 1): "4:4:4",
    (2, 1): "4:2:2",
    (2, 2): "4:2:0",
    (1, 2): "4:4:0",
    (4, 1): "4:1:1",
    (4, 2): "4:1:0",
}


def _sampling(frame: bytes) -> str | None:
    if len(frame) < 6 or len(frame) < 6 + 3 * frame[5]:
        return None
    factors = [(frame[at] >> 4, frame[at] & 15) for at in range(7, 6 + 3 * frame[5], 3)]
    if len(factors) == 1:
        return "gray"
    (across, down), *others = factors
    if len(factors) not in (3, 4) or 0 in (across, down) or factors[1] != factors[2]:
        return "other"
    wide, high = others[0]
    if not wide or not high or across % wide or down % high:
        return "other"
    return _SAMPLINGS.get((across // wide, down // high), "other")


def _gif_frames(data: bytes) -> int:
    frames = 0
    for position, _ in gif_blocks(data, stop_after_first=False):
        frames += position is not None
        if frames == MAX_FRAMES:
            break
    return max(frames, 1)


def _apng_frames(data: bytes) -> int:
    """Return what `acTL` says, which comes before the pixels. Source: PNG, third edition, 11.3.6.1."""
    position = 8
    for _ in range(MAX_STEPS):
        kind = data[position + 4 : position + 8]
        if len(kind) < 4 or kind in (b"IDAT", b"IEND"):
            return 1
        length = int.from_bytes(data[position : position + 4], "big")
        if kind == b"acTL" and length >= 4 and position + 12 <= len(data):
            return min(max(int.from_bytes(data[position + 8 : position + 12], "big"), 1), MAX_FRAMES)
        position += length + 12
    return 1


def _webp_frames(data: bytes) -> int:
    if data[12:16] != b"VP8X" or not data[20] & 0x02:
        return 1
    frames, position = 0, 12
    while position + 8 <= len(data) and frames < MAX_FRAMES:
        (length,) = struct.unpack_from("<I", data, position + 4)
        frames += data[position : position + 4] == b"ANMF"
        position += 8 + length + (length & 1)
    return max(frames, 1)
