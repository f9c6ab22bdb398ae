"""Taking one image that an earlier job has: it must be the one that was recorded there."""

import hashlib
import json
from dataclasses import dataclass

from headrace.curation.fetch.check import check_image
from headrace.curation.fetch.errors import FetchError
from headrace.shards.errors import ShardError
from headrace.shards.images.header import ImageHeader
from headrace.shards.payloads import read_payloads


@dataclass(frozen=True, kw_only=True, slots=True)
class Hit:
    """Where an image lies, and what its source recorded of it."""

    origin: str
    """SOURCE#KEY."""
    tar: str
    ours: bool
    offset: int
    size: int
    sha256: str | None
    """Of the bytes as they were fetched."""
    stored_sha256: str | None
    width: int
    height: int
    original_width: int
    original_height: int
    error_class: str | None
    """Of a failure that is taken over."""


@dataclass(frozen=True, slots=True)
class Taken:
    """An image of an earlier job."""

    data: bytes
    header: ImageHeader
    sha256: str | None
    """Of the bytes as they were fetched; None if nobody knows."""
    is_original: bool
    """These are the bytes as they were fetched."""


def hit_of(text: str | None) -> Hit | None:
    """Return the hit of a row, as `add_hits` wrote it."""
    return None if text is None else Hit(**json.loads(text))


def take_image(hit: Hit, *, max_pixels: int) -> Taken:
    """Read one image and compare it with its record. Raises ShardError that names a damaged source.

    Of img2dataset's images, which are encoded again without a sum, format and size are compared.
    """
    data = read_payloads(hit.tar, [(hit.offset, hit.size)])[0]
    found = hashlib.sha256(data).hexdigest()
    try:
        header = check_image(data, max_pixels=max_pixels)
    except FetchError as error:
        if error.error_class == "bomb":
            raise
        raise _damage(hit, str(error)) from error
    same_size = (hit.width, hit.height) == (hit.original_width, hit.original_height)
    # Jobs of before `stored_sha256`: what was resized has another size, everything else is as fetched.
    expected = hit.stored_sha256 or (hit.sha256 if same_size else None)
    if hit.ours and expected is not None:
        if found != expected:
            raise _damage(hit, f"sha256 is {found}, its table says {expected}")
    elif found != hit.sha256 and -1 not in (hit.width, hit.height) and (hit.width, hit.height) != _size(header):
        raise _damage(hit, f"{header.width} x {header.height} pixels, its table says {hit.width} x {hit.height}")
    return Taken(data, header, hit.sha256, found == hit.sha256)


def _size(header: ImageHeader) -> tuple[int, int]:
    return header.width, header.height


def _damage(hit: Hit, why: str) -> ShardError:
    return ShardError(
        f"{hit.origin} at byte {hit.offset}: {why}; restore it, or leave it out of input.reuse", shard=hit.tar
    )
