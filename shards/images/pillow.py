"""Pillow as a closed list: one format, its own plugin class, nothing guessed.

`PIL.Image.open` tries every plugin and warns about size; a plugin class opens one format only, quietly, and callers
check the size themselves. The one thing a reader would get wrong: opening is lazy, so errors also come from `load()`.
"""

import io
import struct
import zlib

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

# What Pillow's plugins raise on damaged input, as seen by fuzzing (tests/shards/test_image.py).
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
    elif image_format == "avif":
        check_all_directories(data)
    return PLUGINS[image_format](io.BytesIO(data))


def without_metadata(jpeg: bytes) -> bytes:
    """Return a JPEG without its APPn and comment segments, but APP14, which names the colours.

    Raises ValueError or IndexError if the segments before the scan are damaged.
    """
    kept, position = [jpeg[:2]], 2
    while jpeg[position + 1] != 0xDA:
        if jpeg[position] != 0xFF:
            raise ValueError(f"jpeg: no marker at byte {position} of {len(jpeg)}")
        marker = jpeg[position + 1]
        if marker == 0xFF:
            position += 1
            continue
        standalone = marker == 0x01 or 0xD0 <= marker <= 0xD7
        size = 2 if standalone else 2 + max(2, int.from_bytes(jpeg[position + 2 : position + 4], "big"))
        if not (0xE0 <= marker <= 0xEF or marker == 0xFE) or marker == 0xEE:
            kept.append(jpeg[position : position + size])
        position += size
    kept.append(jpeg[position:])
    return b"".join(kept)
