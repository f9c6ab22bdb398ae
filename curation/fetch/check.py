"""Is a body an image that the next stages may decode? Judged from headers and ends, without decoding.

The pixel cap comes first of all, before any decoder sees the bytes. Size and shape are not judged here; that is
for the rules of select, which say so in the ledger.
"""

import hashlib

from headrace.curation.fetch.errors import FetchError
from headrace.curation.forgotten import FORGOTTEN, TAKEN_DOWN
from headrace.curation.raw.schema import BLOCKED
from headrace.shards.images.complete import CHECKS
from headrace.shards.images.header import ImageHeader, check_complete, read_header, sniff_format
from headrace.shards.images.jpeg import BombError
from headrace.text import MAX_SHOWN, one_line

SNIFF_BYTES = 32


def check_image(data: bytes, *, max_pixels: int) -> ImageHeader:
    """Return the image's header. Raises FetchError: `empty`, `not-image`, `bomb` or `truncated`."""
    check_start(data)
    try:
        header = read_header(data)
    except ValueError as error:
        raise FetchError("truncated" if _is_cut(data) else "not-image", _said(error)) from error
    if header.width * header.height > max_pixels:
        raise FetchError("bomb", f"{header.width} x {header.height} pixels, over the cap of {max_pixels}")
    try:
        check_complete(data, header)
    except BombError as error:
        raise FetchError("bomb", _said(error)) from error
    except ValueError as error:
        raise FetchError("truncated", _said(error)) from error
    return header


def _is_cut(data: bytes) -> bool:
    check = CHECKS.get(sniff_format(data) or "")
    try:
        return check is not None and not check(data)
    except BombError:
        return False


def check_start(data: bytes) -> None:
    """Refuse what cannot be an image by its first bytes, so that the rest need not be read."""
    if not data:
        raise FetchError("empty", "the body is empty")
    if sniff_format(data) is None:
        raise FetchError("not-image", f"no known image format: starts with {data[:12].hex(' ')}")


def check_sums(data: bytes, *, sha256: str | None = None, md5: str | None = None, sha512: str | None = None) -> str:
    """Return the sha256 of `data` (hex). Raises FetchError such as `md5-mismatch` for a sum that is not as expected."""
    found = hashlib.sha256(data).hexdigest()
    _compare("sha256", found, sha256)
    if md5:
        _compare("md5", hashlib.md5(data, usedforsecurity=False).hexdigest(), md5)
    if sha512:
        _compare("sha512", hashlib.sha512(data).hexdigest(), sha512)
    return found


def _compare(name: str, found: str, expected: str | None) -> None:
    if expected and found != expected.strip().lower():
        told = expected.strip().lower()[: len(found)]
        raise FetchError(f"{name}-mismatch", f"{name} is {found}, the list says {told}")


def check_not_listed(is_listed: bool, what: str) -> None:
    """Refuse what is on a blocklist, without a word of what it is."""
    if is_listed:
        raise FetchError(BLOCKED, f"{what} is on a blocklist")


def check_problem(problem: str | None) -> None:
    """Refuse a row for what the list, as it was spilled, has against it; None: nothing."""
    check_not_forgotten(problem == TAKEN_DOWN)
    if problem is not None:
        raise FetchError("bad-url", problem)


def check_not_forgotten(is_forgotten: bool) -> None:
    """Refuse what was taken down from the job, without a word of what it is."""
    if is_forgotten:
        raise FetchError(FORGOTTEN, "it was taken down from this job")


def _said(error: Exception) -> str:
    return one_line(str(error))[:MAX_SHOWN]
