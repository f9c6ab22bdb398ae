"""One fetched image -> the bytes that are published: metadata cut, faces blurred.

An image without faces that stands upright, and is not to be smaller or of another format, keeps its compressed data
(format permitting); one with faces is decoded upright, blurred and encoded again, and one that Exif turns is encoded
again upright, as the Exif leaves with the metadata. With `upright` off it stays as it lies, and `orientation` of the
result belongs into the index. Faces are blurred before the image is made smaller.
"""

import io
from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from headrace.curation.blur import blur_boxes
from headrace.curation.build.config import BuildConfig
from headrace.curation.build.encode import encode_like, is_lossless_webp, jpeg_source, turned_without_loss
from headrace.curation.build.strip import strip_metadata
from headrace.curation.build.strip_jpeg import add_icc
from headrace.shards.images.decode import decode_rgb
from headrace.shards.images.formats import EXTENSIONS
from headrace.shards.images.header import ImageHeader, check_complete, read_header
from headrace.shards.images.pillow import PILLOW_ERRORS, open_image

# What an image that must be encoded again becomes: without loss where the source has none.
_ENCODED_AS = {"jpeg": "jpeg", "webp": "webp", "png": "png", "gif": "png", "bmp": "png", "tiff": "png", "avif": "jpeg"}

PLAIN = BuildConfig()


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


def clean_image(data: bytes, *, face_boxes: Sequence[Sequence[float]] = (), config: BuildConfig = PLAIN) -> CleanImage:
    """Cut the metadata of `data`, blur `face_boxes` (fractions of the upright image).

    `config` says the format, the size and how to encode. Raises ValueError if the image cannot be read to its end, or
    cannot be cleaned.
    """
    header = read_header(data)
    size = smaller_size(header.upright_size, config)
    if not face_boxes and size is None and config.format in ("source", header.format):
        check_complete(data, header)
        lies_as_shown = header.orientation == 1 or not config.upright
        cut = strip_metadata(data, header.format) if lies_as_shown else _turned(data, header)
        if cut is not None:
            kept = header if lies_as_shown else ImageHeader(header.format, *header.upright_size, 1)
            return CleanImage(data=cut, header=kept, reencoded=not lies_as_shown)
    pixels = blur_boxes(decode_rgb(data, header=header), face_boxes)
    if size is not None:
        pixels = np.asarray(cv2.resize(pixels, size, interpolation=cv2.INTER_AREA), np.uint8)
    image_format = _ENCODED_AS[header.format] if config.format == "source" else config.format
    encoded = _encoded_again(pixels, data, header, image_format, config)
    height, width = pixels.shape[:2]
    return CleanImage(data=encoded, header=ImageHeader(image_format, width, height, 1), reencoded=True)


def smaller_size(size: tuple[int, int], config: BuildConfig) -> tuple[int, int] | None:
    """Return the width and height that an upright image of `size` gets; None if it stays as large as it is."""
    side, target = (min(size), config.shortest_side) if config.shortest_side else (max(size), config.longest_side)
    if not target or side <= target:
        return None
    width, height = (max(1, (length * target + side // 2) // side) for length in size)
    return width, height


def _encoded_again(
    pixels: NDArray[np.uint8], data: bytes, header: ImageHeader, image_format: str, config: BuildConfig
) -> bytes:
    """Encode the pixels of an image whose file was `data`: like it, where it stays a JPEG."""
    quality, icc = config.jpeg_quality, _rgb_profile(data, header.format)
    by_source = config.encoding == "source" and image_format == header.format
    source = jpeg_source(data, header) if by_source and image_format == "jpeg" else None
    if source is not None:
        # In another grid of blocks the old steps would cost as much again as the first time.
        scaled = pixels.shape[1::-1] != header.upright_size
        return encode_like(pixels, source.without_steps() if scaled else source, quality=quality, icc=icc)
    if image_format == "webp":
        quality = config.webp_quality or quality
    lossless = by_source and image_format == "webp" and is_lossless_webp(data)
    return encode_image(pixels, image_format, quality=quality, icc=icc, lossless=lossless)


def _turned(data: bytes, header: ImageHeader) -> bytes | None:
    turned = turned_without_loss(data, header.format, header.orientation)
    return None if turned is None else strip_metadata(turned, header.format)


def encode_image(
    pixels: NDArray[np.uint8], image_format: str, *, quality: int, icc: bytes = b"", lossless: bool = False
) -> bytes:
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
        image.save(output, "WEBP", quality=quality, lossless=lossless, method=4, **profile)
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
