"""Promises of paths and URLs as strings."""

import pytest

from headrace import urlpath


def test_what_only_this_process_sees_is_told_from_what_all_see() -> None:
    urlpath.check_shared("/data", "file:///data", "s3://bucket/memory:x", "zip://a.csv::s3://bucket/x.zip")
    for url in ("memory://job", "memory:job", "simplecache::memory://job"):
        with pytest.raises(ValueError, match="seen by one process only"):
            urlpath.check_shared("/data", url)
