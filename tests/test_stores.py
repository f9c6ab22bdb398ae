"""Promises of the stores: one patience, the user's own settings, no server is asked."""

import fsspec
import pytest

from headrace import stores
from headrace.patience import Patience
from headrace.stores import open_store


def test_a_store_of_s3_tries_once_and_waits_as_long_as_the_patience_says() -> None:
    fs, path = open_store("s3://bucket/a/key.tar", Patience(timeout_seconds=7))
    assert path == "bucket/a/key.tar"
    assert fs.retries == 1
    assert fs.config_kwargs["read_timeout"] == 7
    assert fs.config_kwargs["retries"] == {"total_max_attempts": 1}
    assert open_store("s3://bucket/other", Patience(timeout_seconds=7))[0] is fs
    assert open_store("s3://bucket/other", Patience(timeout_seconds=8))[0] is not fs
    assert stores.open_fs("s3://bucket/key")[0].retries > 1  # of other users of s3fs in this process


def test_what_the_user_configured_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(
        fsspec.config.conf,
        "s3",
        {
            "endpoint_url": "http://127.0.0.1:1",
            "key": "k",
            "secret": "s",
            "config_kwargs": {"read_timeout": 3, "retries": {"max_attempts": 4}},
        },
    )
    stores._patient_s3.cache_clear()
    fs, _ = open_store("s3://bucket/key", Patience(timeout_seconds=7))
    assert (fs.endpoint_url, fs.key, fs.secret) == ("http://127.0.0.1:1", "k", "s")
    assert fs.config_kwargs["read_timeout"] == 3
    assert fs.config_kwargs["retries"] == {"max_attempts": 4}
    assert fs.retries > 1


def test_other_stores_are_as_fsspec_opens_them() -> None:
    assert open_store("memory://a/b", Patience())[0] is stores.open_fs("memory://a/b")[0]
