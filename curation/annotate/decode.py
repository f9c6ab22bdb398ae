"""Bytes -> pixels, or the class of what is wrong with them.

The pixel cap is checked before anything is decoded. The message is part of the output, so it must be the same in every
run: no addresses of objects, no more than a line.
"""

import re
from dataclasses import dataclass

from headrace.curation.annotate.annotator import Pixels
from headrace.shards.images.decode import MAX_PIXELS, decode_rgb
from headrace.shards.images.header import ImageHeader, check_complete, read_header
from headrace.shards.images.jpeg import BombError

MAX_MESSAGE_CHARS = 160

_ADDRESS = re.compile(r"(?: object)? at 0x[0-9a-fA-F]+|0x[0-9a-fA-F]{6,}")


@dataclass(frozen=True, slots=True)
class Decoded:
    """Either header and pixels, or an error."""

    header: ImageHeader | None = None
    pixels: Pixels | None = None
    error: str | None = None


def decode(data: bytes, max_pixels: int = MAX_PIXELS) -> Decoded:
    """Decode one image; nothing is raised. Classes of error: `not-image`, `bomb`, `truncated`, `damaged`."""
    try:
        header = read_header(data)
    except ValueError as error:
        return Decoded(error=failure("not-image", error))
    if header.width * header.height > max_pixels:
        return Decoded(error=f"bomb: {header.width} x {header.height} pixels, over {max_pixels}")
    try:
        check_complete(data, header)
    except BombError as error:
        return Decoded(error=failure("bomb", error))
    except ValueError as error:
        return Decoded(error=failure("truncated", error))
    try:
        return Decoded(header, decode_rgb(data, max_pixels=max_pixels, header=header))
    except ValueError as error:
        return Decoded(error=failure("damaged", error))


def failure(kind: str, error: Exception | str) -> str:
    """Return `class: message`, one line, the same in every run."""
    message = _ADDRESS.sub("", " ".join(str(error).split()))
    message = message.encode("ascii", "backslashreplace").decode()[:MAX_MESSAGE_CHARS]
    return f"{kind}: {message}" if message else kind


def error_class(error: str) -> str:
    """Return the class of a `decode_error`."""
    return error.partition(":")[0]
