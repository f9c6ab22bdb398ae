"""Pixels of other depths than eight bits, and the transparent colours that belong to them.

Pillow leaves both to its callers: it compares a tRNS colour of 2 or 4 bits with pixels that it has scaled to eight,
one of 16 bits with the high bytes alone, and gives 12-bit and white-is-zero TIFFs as they are stored.
Sources: PNG 3rd edition (W3C), section 11.3.1.1 (tRNS); TIFF 6.0, tags 258 and 262.
"""

import numpy as np
from numpy.typing import NDArray
from PIL import Image

Pixels = NDArray[np.uint8]

BITS_PER_SAMPLE, PHOTOMETRIC = 258, 262
WHITE_IS_ZERO = 0

_PNG_DEPTH, _PNG_COLOUR = 24, 25  # places of the two bytes in IHDR, which comes first
_PNG_GRAY, _PNG_RGB = 0, 2


def gray16_to_rgb(image: Image.Image) -> Pixels:
    """Return uint8 [H, W, 3] from a gray image of 9 to 16 bits (mode I;16): the high eight bits, alpha on white."""
    # Pillow's own conversion clips at 255.
    samples = np.asarray(image).astype(np.uint16)
    tags = getattr(image, "tag_v2", {})
    bits = int(tags.get(BITS_PER_SAMPLE, (16,))[0])
    gray = (samples >> max(0, bits - 8)).astype(np.uint8)
    if tags.get(PHOTOMETRIC) == WHITE_IS_ZERO:
        gray = 255 - gray
    transparent = image.info.get("transparency")
    if isinstance(transparent, int):
        gray[samples == transparent] = 255
    return np.repeat(gray[:, :, None], 3, axis=2)


def png_with_transparent_colour(data: bytes, image: Image.Image) -> Pixels | None:
    """Return uint8 [H, W, 3], alpha on white, of a PNG whose transparent colour Pillow would compare wrongly.

    None for every other PNG.
    """
    depth, colour, transparent = data[_PNG_DEPTH], data[_PNG_COLOUR], image.info.get("transparency")
    if colour == _PNG_GRAY and depth in (2, 4) and isinstance(transparent, int):
        gray = np.array(image)
        gray[gray == transparent * 255 // ((1 << depth) - 1)] = 255
        return np.repeat(gray[:, :, None], 3, axis=2)
    if colour == _PNG_RGB and depth == 16 and transparent is not None:
        return _rgb16_on_white(data)
    return None


def _rgb16_on_white(data: bytes) -> Pixels:
    import cv2

    found = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)  # libpng makes tRNS an alpha of 16 bits
    if found is None or found.dtype != np.uint16 or found.shape[2:] != (4,):
        raise ValueError("16-bit colours with a transparent one cannot be read")
    pixels = np.ascontiguousarray((found[:, :, 2::-1] >> 8).astype(np.uint8))
    pixels[found[:, :, 3] == 0] = 255
    return pixels
