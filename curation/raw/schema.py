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
    "input_file",
    "input_row",
)
"""The columns of every raw parquet, in order; carried columns come after them.

`sha256` is of the bytes as fetched, `stored_sha256` of those in the tar where fetch encoded them again; null where it
did not, and in the tables of others.
"""

STORED_COLUMNS = ("sha256", "stored_sha256", "width", "height", "original_width", "original_height")
"""What `stored_sha256` needs of a row."""

LATER_COLUMNS = ("stored_sha256",)
"""What tables of older jobs lack."""

RESERVED_COLUMNS = (*RAW_COLUMNS, "expected_sha256", "place", "problem")
"""Names that a list's carried columns cannot have."""

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
    "resize",
    "refused-scheme",
    "refused-address",
    "opted-out",
    "bad-url",
    "protocol",
)

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
    return "failed_to_resize" if error_class == "resize" else "failed_to_download"
