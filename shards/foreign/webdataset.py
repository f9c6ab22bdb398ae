"""Tars of others without an index, through webdataset's own iterator, behind our truncation check.

webdataset stops silently at the first odd block, so a damaged tar looks like a short one. Here the headers are
checked to the end before the first sample leaves. Samples are webdataset's dictionaries (`__key__`, `jpg`, `json`, ...)
of raw bytes, nothing is decoded.
"""

from collections.abc import Iterator
from typing import Any

from headrace import files
from headrace.shards.tar import scan_tar, webdataset_module


def iterate_webdataset(url: str, *, allow_missing_end: bool = False) -> Iterator[dict[str, Any]]:
    """Yield the samples of one tar as webdataset groups them. Raises ShardError if the tar is damaged."""
    scan_tar(url, allow_missing_end=allow_missing_end)
    tariterators = webdataset_module("tariterators")
    with files.opened(url) as stream:
        members = tariterators.tar_file_expander([{"url": url, "stream": stream}])
        yield from tariterators.group_by_keys(members)
