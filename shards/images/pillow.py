"""Pillow as a closed list: one format, its own plugin class, nothing guessed.

`PIL.Image.open` tries every plugin and warns about size; a plugin class opens one format only, quietly, and callers
check the size themselves. Opening is lazy, so errors also come from `load()`.
"""

import ctypes
import io
import struct
import warnings
import zlib
from functools import cache

from PIL import (
    AvifImagePlugin,
    BmpImagePlugin,
    GifImagePlugin,
    Image,
    ImageFile,
    JpegImagePlugin,
    PngImagePlugin,
    TiffImagePlugin,
    WebPImagePlugin,
)

from headrace.shards.images.tiff import check_all_directories, check_directory

PLUGINS: dict[str, type[ImageFile.ImageFile]] = {
    "jpeg": JpegImagePlugin.JpegImageFile,
    "png": PngImagePlugin.PngImageFile,
    "webp": WebPImagePlugin.WebPImageFile,
    "gif": GifImagePlugin.GifImageFile,
    "bmp": BmpImagePlugin.BmpImageFile,
    "tiff": TiffImagePlugin.TiffImageFile,
    "avif": AvifImagePlugin.AvifImageFile,
}

# What Pillow's plugins raise on damaged input, as seen by fuzzing (tests/shards/images/test_decode.py).
PILLOW_ERRORS = (
    OSError,
    SyntaxError,
    ValueError,
    TypeError,
    KeyError,
    IndexError,
    AttributeError,
    ArithmeticError,
    EOFError,
    AssertionError,
    RuntimeError,
    NotImplementedError,
    MemoryError,
    struct.error,
    zlib.error,
    Image.DecompressionBombError,
    Warning,  # where warnings are errors
)


def open_image(image_format: str, data: bytes) -> ImageFile.ImageFile:
    """Open `data` as `image_format` without decoding it. Raises one of PILLOW_ERRORS.

    Of a JPEG, give it what `without_metadata` leaves: Pillow reads EXIF as it opens.
    """
    if image_format == "tiff":
        check_directory(data)
        _silence_libtiff()
    elif image_format == "avif":
        check_all_directories(data)
    return PLUGINS[image_format](io.BytesIO(data))


@cache
def _silence_libtiff() -> None:
    """Take from libtiff the right to write on the terminal; what it finds still comes as Pillow's error."""
    try:
        with open("/proc/self/maps", encoding="utf-8", errors="replace") as maps:
            found = [line.split()[-1] for line in maps if "libtiff" in line]
    except OSError:
        return
    if found:
        library = ctypes.CDLL(found[0])
        for name in ("TIFFSetErrorHandler", "TIFFSetWarningHandler"):
            set_handler = getattr(library, name)
            set_handler.argtypes, set_handler.restype = [ctypes.c_void_p], ctypes.c_void_p
            set_handler(None)
    # Python's warnings of damaged tags say no more than the error that follows, if one does.
    warnings.filterwarnings("ignore", module=r"PIL\.TiffImagePlugin")


def without_metadata(jpeg: bytes) -> bytes:
    """Return a JPEG without its APPn and comment segments, but APP14, which names the colours.

    Raises ValueError or IndexError if the segments before the scan are damaged.
    """
    kept, position = [jpeg[:2]], 2
    while jpeg[position : position + 2] != b"\xff\xda":
        marker = jpeg[position + 1]
        if jpeg[position] != 0xFF or marker in (0x00, 0xFF):  # fill, or bytes that belong to no segment
            position += 1
            continue
        standalone = marker == 0x01 or 0xD0 <= marker <= 0xD7
        size = 2 if standalone else 2 + max(2, int.from_bytes(jpeg[position + 2 : position + 4], "big"))
        if not (0xE0 <= marker <= 0xEF or marker == 0xFE) or marker == 0xEE:
            kept.append(jpeg[position : position + size])
        position += size
    kept.append(jpeg[position:])
    return b"".join(kept)
