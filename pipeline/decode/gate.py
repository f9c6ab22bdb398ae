"""What every picture passes before a decoder sees it, whichever decoder that is.

The header, the cap on pixels, and the end: a decoder that is handed a file of 20,000 scans computes for half a minute,
and one that is handed half a progressive file delivers a blurred picture without a word.
"""

import dataclasses

from headrace.pipeline.errors import SampleError
from headrace.shards.images import jpeg
from headrace.shards.images.header import ImageHeader, check_complete, read_header


def admit(data: bytes, *, orientation: int, max_pixels: int) -> ImageHeader:
    """Return the header of a picture that may be decoded. Raises SampleError.

    The `orientation` of the index stands in it, as curation cuts it out of the image; where that is 0 (not known: an
    index made without reading images), the image's own.
    """
    try:
        header = read_header(data)
        if header.height * header.width > max_pixels:
            raise ValueError(f"{header.width} x {header.height} pixels are over the cap of {max_pixels}")
        # The walk to the end takes 4 % of decoding a photograph; of a plain JPEG the decoder itself sees what is cut.
        if header.format != "jpeg" or not jpeg.is_one_plain_scan(data):
            check_complete(data, header)
    except ValueError as error:
        raise SampleError("decode", str(error)) from error
    return dataclasses.replace(header, orientation=orientation or header.orientation)
