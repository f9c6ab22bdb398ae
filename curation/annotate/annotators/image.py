"""Facts of an image that decodes, and why another does not."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any, ClassVar

import cv2
import numpy as np
import pyarrow as pa

from headrace import files
from headrace.curation.annotate.annotator import AnnotationBatch, Annotator, Columns, Pixels
from headrace.shards.images.facts import chroma_sampling, has_alpha, num_frames
from headrace.shards.images.header import ImageHeader

MAX_PLACEHOLDERS_BYTES = 64 * 1024 * 1024
# sha256 of the bytes -> name. Further ones come with a new version, as they change values.
KNOWN_PLACEHOLDERS = {
    # "The image you are requesting does not exist or is no longer available": served with status 200. Source: the sum
    # is in the ignore lists of many downloaders.
    "9b5936f4006146e4e1e9025b474c02863c0b5614132ad40db4b925a10e8bfbb9": "imgur-removed",
}
# Colour is looked at on an image of at most this side: JPEG's chroma noise averages out.
THUMBNAIL_PIXELS = 64
# One colour: 99 % of the luminance within 8 levels of the middle, and no colour of the small image further apart.
SINGLE_LEVELS, SINGLE_SHARE, SINGLE_RANGE = 8, 0.99, 16
# Gray: 99 % of the small image has its colours within this.
GRAY_LEVELS, GRAY_SHARE = 8, 0.99

_SHA256 = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True, kw_only=True, slots=True)
class ImageConfig:
    """Size, aspect, format, orientation, decode error, light and colour, placeholders."""

    placeholders: str = ""
    """File (any fsspec URL) of further placeholder pictures: sha256 (hex) and a name a line, `#` for comments."""


class ImageFacts(Annotator):
    """Size, aspect, format, whether it decodes, light and colour.

    Width and height are of the upright image. `entropy`: bits of the histogram of luminance, 0 to 8.
    `mean_brightness`: of luminance, 0 to 255. `greyscale`, `single_colour`: of the pixels, whatever the file says.
    `has_alpha`, `num_frames` (pages of a TIFF), `chroma_sampling` (of a JPEG) and `bytes_per_pixel`: of the file.
    `known_placeholder`: the name of a picture that servers give in place of one that is gone.
    """

    name: ClassVar[str] = "image"
    version: ClassVar[int] = 2
    config_type: ClassVar[type[Any]] = ImageConfig
    by_default: ClassVar[bool] = True
    needs_pixels: ClassVar[bool] = True
    not_carried: ClassVar[frozenset[str]] = frozenset(
        (
            *("image_width", "image_height", "aspect", "image_format", "orientation", "decode_error"),
            *("has_alpha", "num_frames", "chroma_sampling", "bytes_per_pixel", "single_colour", "known_placeholder"),
        )
    )
    no_amounts: ClassVar[frozenset[str]] = frozenset(("orientation",))
    columns: ClassVar[pa.Schema] = pa.schema(
        [
            ("image_width", pa.int32()),
            ("image_height", pa.int32()),
            ("aspect", pa.float32()),
            ("image_format", pa.string()),
            ("orientation", pa.int8()),
            ("decode_error", pa.string()),
            ("entropy", pa.float32()),
            ("mean_brightness", pa.float32()),
            ("greyscale", pa.bool_()),
            ("single_colour", pa.bool_()),
            ("has_alpha", pa.bool_()),
            ("num_frames", pa.int32()),
            ("chroma_sampling", pa.string()),
            ("bytes_per_pixel", pa.float32()),
            ("known_placeholder", pa.string()),
        ]
    )
    earlier: ClassVar[Mapping[int, tuple[str, ...]]] = {
        1: ("image_width", "image_height", "aspect", "image_format", "orientation", "decode_error")
    }

    config: ImageConfig

    def files(self) -> dict[str, str]:
        named = self.made_as > 1 and self.config.placeholders
        return {"placeholders": self.config.placeholders} if named else {}

    def annotate(self, batch: AnnotationBatch) -> Columns:
        result: Columns = {name: [None] * len(batch.keys) for name in self.columns.names}
        result["decode_error"] = list(batch.errors)
        for row, (data, header, pixels) in enumerate(zip(batch.data, batch.headers, batch.images, strict=True)):
            if header is None or pixels is None:
                continue
            facts = size_facts(header, pixels)
            if self.made_as > 1:
                facts |= light_facts(pixels)
                facts |= {} if data is None else file_facts(data, header)
                facts["known_placeholder"] = known_placeholders(self.config.placeholders).get(batch.sha256[row] or "")
            for name, value in facts.items():
                result[name][row] = value
        return result


def size_facts(header: ImageHeader, pixels: Pixels) -> dict[str, Any]:
    """Return the columns of version 1 of an upright RGB image, uint8 [H, W, 3]."""
    height, width = pixels.shape[:2]
    return {
        "image_width": width,
        "image_height": height,
        "aspect": max(width, height) / min(width, height),
        "image_format": header.format,
        "orientation": header.orientation,
    }


def light_facts(pixels: Pixels) -> dict[str, Any]:
    """Return entropy, brightness, and whether there is colour, of an RGB image."""
    luminance = cv2.cvtColor(np.ascontiguousarray(pixels), cv2.COLOR_RGB2GRAY)
    counts = cv2.calcHist([luminance], [0], None, [256], [0, 256]).ravel().astype(np.float64)
    shares = counts / counts.sum()
    present = shares[shares > 0]
    middle = int(np.searchsorted(np.cumsum(shares), 0.5))
    near = shares[max(0, middle - SINGLE_LEVELS) : middle + SINGLE_LEVELS + 1].sum()
    size = min(pixels.shape[1], THUMBNAIL_PIXELS), min(pixels.shape[0], THUMBNAIL_PIXELS)
    small = cv2.resize(pixels, size, interpolation=cv2.INTER_AREA).reshape(-1, 3).astype(np.int16)
    apart = small.max(axis=1) - small.min(axis=1)
    return {
        "entropy": abs(round(float(-(present * np.log2(present)).sum()), 4)),
        "mean_brightness": round(float((shares * np.arange(256)).sum()), 3),
        "greyscale": bool((apart <= GRAY_LEVELS).mean() >= GRAY_SHARE),
        "single_colour": bool(near >= SINGLE_SHARE and (np.ptp(small, axis=0) <= SINGLE_RANGE).all()),
    }


def file_facts(data: bytes, header: ImageHeader) -> dict[str, Any]:
    """Return what the bytes of a file say beside the pixels."""
    return {
        "has_alpha": has_alpha(data, header.format),
        "num_frames": num_frames(data, header.format),
        "chroma_sampling": chroma_sampling(data) if header.format == "jpeg" else None,
        "bytes_per_pixel": len(data) / (header.width * header.height),
    }


@cache
def known_placeholders(url: str) -> Mapping[str, str]:
    """Return sha256 -> name of the known placeholders and those of a file. Raises ValueError naming the line."""
    if not url:
        return KNOWN_PLACEHOLDERS
    try:
        if files.size_of(url) > MAX_PLACEHOLDERS_BYTES:
            raise ValueError(f"placeholders {url}: over {MAX_PLACEHOLDERS_BYTES} bytes")
        lines = files.read_bytes(url).decode("utf-8-sig").splitlines()
    except UnicodeDecodeError as error:
        raise ValueError(f"placeholders {url} is not UTF-8 text (byte {error.start})") from error
    except OSError as error:
        raise ValueError(
            f"placeholders {url} cannot be read ({type(error).__name__}); check annotate.image.placeholders"
        ) from error
    known = dict(KNOWN_PLACEHOLDERS)
    for number, line in enumerate(lines, start=1):
        sha256, _, name = line.partition("#")[0].strip().partition(" ")
        if not sha256:
            continue
        if not _SHA256.fullmatch(sha256.lower()):
            raise ValueError(f"placeholders {url}, line {number}: expected 64 hex digits, got {sha256[:80]!r}")
        known[sha256.lower()] = name.strip() or "listed"
    return known
