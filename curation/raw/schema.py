"""What a raw parquet holds: its columns, the words for what became of a row, and the name of a row.

Error classes are part of the format: they stand in the column `error_class` of every raw parquet, whoever fetched.
"""

import hashlib
from collections.abc import Mapping
from typing import Any

import pyarrow as pa

RAW_COLUMNS = (
    "key",
    "uid",
    "url",
    "caption",
    "status",
    "error_class",
    "error_message",
    "width",
    "height",
    "original_width",
    "original_height",
    "format",
    "sha256",
    "stored_sha256",
    "reused_from",
    "input_file",
    "input_row",
)
"""The columns of every raw parquet, in order; carried columns come after them.

`sha256` is of the bytes as fetched, `stored_sha256` of those in the tar where fetch encoded them again; null where it
did not, and in the tables of others. `reused_from` is SOURCE#KEY of an image that was there already, null of one that
was fetched.
"""

STORED_COLUMNS = ("sha256", "stored_sha256", "width", "height", "original_width", "original_height")
"""What `stored_sha256` needs of a row."""

LATER_COLUMNS = ("stored_sha256", "reused_from")
"""What tables of older jobs lack."""

LISTED_COLUMNS = ("expected_sha256", "expected_md5", "expected_sha512", "boxes")
"""What a list says of an image, where the recipe names its columns: checked or used when it is fetched, and carried, as
a retry needs it too. `boxes` is the JSON of [[x0, y0, x1, y1], ...]."""

REUSE_COLUMN = "__reuse"
"""Of the rows of a list while they are fetched: what of an earlier job they take."""

MADE_COLUMNS = ("md5", "sha512", "exif")
"""Further columns of a raw parquet, where the recipe asks for them (`fetch.hashes`, `fetch.exif`)."""

INTERNAL_COLUMNS = ("place", "problem", REUSE_COLUMN)
"""Of the rows of a list while they are fetched; not in a raw parquet."""

RESERVED_COLUMNS = (*RAW_COLUMNS, LISTED_COLUMNS[0], *INTERNAL_COLUMNS)
"""Names that a list's carried columns cannot have; where the others are made, those neither."""

_INT32 = ("width", "height", "original_width", "original_height")

OWN_SCHEMA = pa.schema(
    [
        (name, pa.int32() if name in _INT32 else pa.int64() if name == "input_row" else pa.string())
        for name in RAW_COLUMNS
    ]
)

ERROR_CLASSES = (
    "dns",
    "connect",
    "tls",
    "timeout",
    "http-4xx",
    "http-429",
    "http-5xx",
    "redirects",
    "too-large",
    "empty",
    "not-image",
    "truncated",
    "bomb",
    "sha256-mismatch",
    "md5-mismatch",
    "sha512-mismatch",
    "image-too-small",
    "image-too-large",
    "image-too-long",
    "image-format",
    "bad-boxes",
    "resize",
    "refused-scheme",
    "refused-address",
    "opted-out",
    "bad-url",
    "protocol",
    "blocklisted",
    "forgotten",
)

BLOCKED = "blocklisted"
"""Class of a row that nothing may name: its table has neither its URL nor its caption."""

UNNAMED = (BLOCKED, "forgotten")
"""Classes of rows that nothing may name; the second is that of what was taken down."""

RESIZE_CLASSES = ("image-too-small", "image-too-large", "image-too-long", "image-format", "bad-boxes", "resize")
"""What img2dataset finds while it resizes, and calls so."""

TRANSIENT_CLASSES = ("dns", "connect", "timeout", "http-429", "http-5xx", "truncated")
"""What may be gone another day; the default of `FetchConfig.retry_classes`."""


def uid_of(caption: str | None, url: str | None) -> str:
    """Return hex md5 of caption + url, as DataComp defines it."""
    return hashlib.md5(((caption or "") + (url or "")).encode(), usedforsecurity=False).hexdigest()


def stored_sha256(row: Mapping[str, Any]) -> str | None:
    """Return the sum that the image in the tar must have, by one row of our own tables; None if it is not known."""
    if row["stored_sha256"] is not None:
        return str(row["stored_sha256"])
    # Jobs of before this column: what was resized has another size, everything else is as fetched.
    same = row["width"] == row["original_width"] and row["height"] == row["original_height"]
    return row["sha256"] if same else None


def status_of(error_class: str | None) -> str:
    """Return img2dataset's word for what became of a row."""
    if error_class is None:
        return "success"
    return "failed_to_resize" if error_class in RESIZE_CLASSES else "failed_to_download"
