"""One fetched image -> the bytes that are published: metadata cut, faces blurred.

An image without faces keeps its compressed data (format permitting); one with faces is decoded upright, blurred and
encoded again. The Exif orientation leaves with the metadata, so `orientation` of the result belongs into the index;
what was encoded again is upright, its orientation is 1.
"""

import io
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from headrace.curation.build.blur import blur_boxes
from headrace.curation.build.strip import strip_metadata
from headrace.curation.build.strip_jpeg import add_icc
from headrace.shards.images.decode import decode_rgb
from headrace.shards.images.formats import EXTENSIONS
from headrace.shards.images.header import ImageHeader, check_complete, read_header
from headrace.shards.images.pillow import PILLOW_ERRORS, open_image

# What an image that must be encoded again becomes: without loss where the source has none.
_ENCODED_AS = {"jpeg": "jpeg", "webp": "webp", "png": "png", "gif": "png", "bmp": "png", "tiff": "png", "avif": "jpeg"}


@dataclass(frozen=True, kw_only=True, slots=True)
class CleanImage:
    """The published bytes of one image and what the index says of them."""

    data: bytes
    header: ImageHeader
    """Of `data`, but with the orientation that a decoder must apply (the file itself no longer says it)."""
    reencoded: bool
    """False if the compressed pixels are those that were fetched."""

    @property
    def extension(self) -> str:
        """The name of the member in the shard."""
        return EXTENSIONS[self.header.format]


def clean_image(data: bytes, *, face_boxes: Sequence[Sequence[float]] = (), quality: int = 95) -> CleanImage:
    """Cut the metadata of `data`, blur `face_boxes` (fractions of the upright image).

    Raises ValueError if the image cannot be read to its end, or cannot be cleaned.
    """
    header = read_header(data)
    if not face_boxes:
        check_complete(data, header)
        stripped = strip_metadata(data, header.format)
        if stripped is not None:
            return CleanImage(data=stripped, header=header, reencoded=False)
    pixels = blur_boxes(decode_rgb(data, header=header), face_boxes)
    image_format = _ENCODED_AS[header.format]
    encoded = encode_image(pixels, image_format, quality=quality, icc=_rgb_profile(data, header.format))
    height, width = pixels.shape[:2]
    return CleanImage(data=encoded, header=ImageHeader(image_format, width, height, 1), reencoded=True)


def encode_image(pixels: NDArray[np.uint8], image_format: str, *, quality: int, icc: bytes = b"") -> bytes:
    """Encode uint8 RGB [H, W, 3] as jpeg (4:4:4), webp or png, with the ICC profile `icc` if there is one."""
    if image_format == "jpeg":
        import simplejpeg

        # 4:4:4: most sources lost half of their colour resolution once; a second time would show.
        jpeg = bytes(simplejpeg.encode_jpeg(pixels, quality=quality, colorspace="RGB", colorsubsampling="444"))
        return add_icc(jpeg, icc)
    output = io.BytesIO()
    profile = {"icc_profile": icc} if icc else {}
    image = Image.fromarray(pixels)
    if image_format == "webp":
        image.save(output, "WEBP", quality=quality, method=4, **profile)
    else:
        image.save(output, "PNG", **profile)
    return output.getvalue()


def _rgb_profile(data: bytes, image_format: str) -> bytes:
    """Return the ICC profile if it describes RGB; one of gray or CMYK does not fit the decoded pixels."""
    try:
        with open_image(image_format, data) as image:
            profile = image.info.get("icc_profile")
    except PILLOW_ERRORS:
        return b""
    return profile if isinstance(profile, bytes) and profile[16:20] == b"RGB " else b""
