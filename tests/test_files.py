"""Promises of reading files at any URL, on the local disk and on a remote file system."""

from pathlib import Path

import pytest

from headrace import atomic, files, urlpath


@pytest.fixture(params=["local", "memory"])
def folder(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    return str(tmp_path) if request.param == "local" else f"memory://{tmp_path}"


def test_what_is_written_is_read(folder: str) -> None:
    url = urlpath.join(folder, "a", "b.bin")
    atomic.write_atomic(url, b"0123456789")
    assert files.read_bytes(url) == b"0123456789"
    assert files.read_range(url, 3, 4) == b"3456"
    assert files.read_range(url, 8, 10) == b"89"
    assert files.size_of(url) == 10
    assert files.list_names(urlpath.join(folder, "a")) == ["b.bin"]
    atomic.remove(url)
    atomic.remove(url)
    assert not files.exists(url)
