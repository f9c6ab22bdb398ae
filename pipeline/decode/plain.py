"""Which JPEGs every decoder of a GPU reads as libjpeg-turbo does; the others are left to the CPU.

One sequential scan, Huffman-coded, 8 bits, grey or YCbCr in a common sampling. Progressive files, CMYK, RGB kept as it
is, arithmetic coding and odd samplings are what hardware decoders refuse, or silently read otherwise.
"""

import struct

MAX_SEGMENTS = 1 << 12
LEAST_SIDE = 48
"""Smaller pictures are the CPU's: there is little to gain."""

_HUFFMAN_SEQUENTIAL = (0xC0, 0xC1)
_OTHER_FRAMES = frozenset(range(0xC2, 0xD0)) - {0xC4, 0xC8, 0xCC}
_SOS, _EOI, _APP0, _APP14 = 0xDA, 0xD9, 0xE0, 0xEE
_SAMPLINGS = ((0x11, 0x11, 0x11), (0x21, 0x11, 0x11), (0x12, 0x11, 0x11), (0x22, 0x11, 0x11))
"""Horizontal and vertical factors of Y, Cb and Cr: 4:4:4, 4:2:2, 4:4:0 and 4:2:0."""


def is_plain_jpeg(data: bytes) -> bool:
    """True if a GPU reads it as libjpeg-turbo does. Reads the header only; anything odd in it answers False."""
    position, num_components, known_as_ycc, jfif = 2, 0, False, False
    adobe: int | None = None
    for _ in range(MAX_SEGMENTS):
        if position + 4 > len(data) or data[position] != 0xFF:
            return False
        marker = data[position + 1]
        length = (data[position + 2] << 8) + data[position + 3]
        body, position = position + 4, position + 2 + length
        if length < 2 or marker == _EOI or 0xD0 <= marker <= 0xD8 or marker in _OTHER_FRAMES:
            return False
        if marker == _APP0 and data[body : body + 5] == b"JFIF\0":
            jfif = True
        elif marker == _APP14 and data[body : body + 5] == b"Adobe" and length >= 14:
            adobe = data[body + 11]
        elif marker in _HUFFMAN_SEQUENTIAL:
            num_components, known_as_ycc = _frame(data[body:position])
        elif marker == _SOS:
            if num_components == 1:
                return data[body] == 1
            # Without JFIF or Adobe, components that are called R, G and B are not YCbCr.
            colours = adobe == 1 if adobe is not None else jfif or known_as_ycc
            return num_components == 3 == data[body] and colours
    return False


def _frame(segment: bytes) -> tuple[int, bool]:
    """Return the number of components, 0 for a frame that is not plain; and whether they are named as YCbCr is."""
    if len(segment) < 6 or segment[0] != 8 or len(segment) != 6 + 3 * segment[5]:
        return 0, False
    height, width = struct.unpack_from(">HH", segment, 1)
    factors = tuple(segment[7::3])
    if min(height, width) < LEAST_SIDE or not (len(factors) == 1 or factors in _SAMPLINGS):
        return 0, False
    return len(factors), tuple(segment[6::3]) == (1, 2, 3)
