"""From the bytes of an image to what is stored of it, whether they were fetched or there already.

A pure function of the bytes, of what the list says of the image, and of the config: rows that share them share the
result.
"""

import asyncio
import hashlib
from dataclasses import dataclass, replace

from headrace.curation.fetch.boxes import parse_boxes
from headrace.curation.fetch.check import check_sums
from headrace.curation.fetch.config import RESIZING, FetchConfig
from headrace.curation.fetch.errors import FetchError
from headrace.curation.fetch.exif import exif_json
from headrace.curation.fetch.limits import check_limits
from headrace.curation.fetch.reuse.take import Taken, hit_of, take_image
from headrace.curation.raw.write import Outcome
from headrace.shards.images.header import ImageHeader


@dataclass(frozen=True, kw_only=True, slots=True)
class Listed:
    """What the list says of an image besides its URL."""

    sha256: str | None = None
    """Expected, as md5 and sha512."""
    md5: str | None = None
    sha512: str | None = None
    boxes: str | None = None
    """JSON."""


@dataclass(frozen=True, slots=True)
class Body:
    """The bytes of an image, and what is known of them."""

    data: bytes
    header: ImageHeader
    sha256: str | None
    """Of the bytes as they were fetched; None if nobody knows."""
    is_original: bool = True
    """These are the bytes as they were fetched."""
    original: ImageHeader | None = None
    """Of the image as it was fetched, where that is another."""
    reused_from: str | None = None


def fetched_body(data: bytes, header: ImageHeader, listed: Listed) -> Body:
    """Return a body as its server sent it. Raises FetchError if its sum is not the expected one."""
    return Body(data, header, check_sums(data, sha256=listed.sha256, md5=listed.md5, sha512=listed.sha512))


async def reused_body(reuse: str | None, listed: Listed, config: FetchConfig) -> Body | None:
    """Return what an earlier job has for a row; None if the row must be fetched.

    It must if the list expects a sum that the image there does not have, or nobody knows, and if boxes are given of an
    image that was encoded again since, as it may have been cut. Raises FetchError for a failure that is taken over,
    ShardError for a damaged source.
    """
    hit = hit_of(reuse)
    if hit is None:
        return None
    if hit.error_class is not None:
        raise FetchError(hit.error_class, f"as in {hit.origin}")
    if listed.sha256 and hit.sha256 != listed.sha256.strip().lower():
        return None
    if hit.size > config.max_bytes:
        raise FetchError("too-large", f"{hit.size} bytes in {hit.origin}, over the cap of {config.max_bytes} bytes")
    taken: Taken = await asyncio.to_thread(take_image, hit, max_pixels=config.max_pixels)
    if taken.is_original:
        return replace(fetched_body(taken.data, taken.header, listed), reused_from=hit.origin)
    if listed.md5 or listed.sha512 or parse_boxes(listed.boxes):
        return None
    original = None
    if hit.original_width > 0 and hit.original_height > 0:
        original = replace(taken.header, width=hit.original_width, height=hit.original_height)
    return Body(taken.data, taken.header, taken.sha256, False, original, hit.origin)


async def finish(body: Body, listed: Listed, config: FetchConfig, resizing: int = RESIZING) -> tuple[Outcome, bytes]:
    """Return what becomes of an image, and its bytes as they are stored. Raises FetchError."""
    data, header, boxes = body.data, body.header, parse_boxes(listed.boxes)
    check_limits(body.original or body.header, config)
    if config.resize != "none" or boxes:
        from headrace.curation.fetch.resize import change_image  # OpenCV, which few fetches need

        data, header = await asyncio.to_thread(change_image, data, header, config, boxes, resizing=resizing)
    stored_is_original = body.is_original and data is body.data
    outcome = Outcome(
        header=header,
        original=body.original or body.header,
        sha256=body.sha256,
        stored_sha256=None if stored_is_original else hashlib.sha256(data).hexdigest(),
        reused_from=body.reused_from,
    )
    return (_with_made_columns(outcome, body, config) if body.is_original else outcome), data


def _with_made_columns(outcome: Outcome, body: Body, config: FetchConfig) -> Outcome:
    return replace(
        outcome,
        md5=hashlib.md5(body.data, usedforsecurity=False).hexdigest() if "md5" in config.hashes else None,
        sha512=hashlib.sha512(body.data).hexdigest() if "sha512" in config.hashes else None,
        exif=exif_json(body.data, body.header.format) if config.exif else None,
    )
