"""Ranged reads over http: the same bytes as from disk, through every fault of the way."""

import os
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from headrace.patience import Patience
from headrace.shards.ranges import RangeReader, ReadError

OpenServer = Callable[[str], Any]


@pytest.fixture
def reader() -> Iterator[RangeReader]:
    """A reader that tries three times more."""
    reader = RangeReader(Patience(timeout_seconds=30, retries=3))
    yield reader
    reader.close()


@pytest.fixture
def blob(tmp_path: Path) -> Path:
    """A file of 3 MB of noise."""
    path = tmp_path / "blob.tar"
    path.write_bytes(os.urandom(3_000_000))
    return path


def test_a_range_over_http_equals_the_file(range_server: OpenServer, reader: RangeReader, blob: Path) -> None:
    server, data = range_server(str(blob.parent)), blob.read_bytes()
    for offset, size in ((0, 10), (2_999_990, 10), (500_000, 2_000_000), (7, 1)):
        assert reader.read(f"{server.url}/blob.tar", offset, size) == data[offset : offset + size]
        assert reader.read(str(blob), offset, size) == data[offset : offset + size]
    assert reader.num_retries == 0


def test_only_the_end_of_the_file_makes_an_answer_short(
    range_server: OpenServer, reader: RangeReader, blob: Path
) -> None:
    server, data = range_server(str(blob.parent)), blob.read_bytes()
    for url in (str(blob), f"{server.url}/blob.tar"):
        assert reader.read(url, 2_999_990, 100) == data[-10:]
        assert reader.read(url, 3_000_000, 100) == b""
        assert reader.read(url, 4_000_000, 100) == b""


@pytest.mark.parametrize("fault", ["503", "short", "reset"])
def test_a_fault_of_the_way_is_tried_again(
    range_server: OpenServer, reader: RangeReader, blob: Path, fault: str
) -> None:
    server = range_server(str(blob.parent))
    server.faults[:] = [fault, fault]
    assert reader.read(f"{server.url}/blob.tar", 1000, 200_000) == blob.read_bytes()[1000:201_000]
    assert reader.num_retries == 2


def test_a_stall_is_tried_again(range_server: OpenServer, blob: Path) -> None:
    server = range_server(str(blob.parent))
    server.faults[:] = ["stall", "stall"]
    # A busy machine may be slower than the time-out more often than the server is.
    reader = RangeReader(Patience(timeout_seconds=0.5, retries=20))
    assert reader.read(f"{server.url}/blob.tar", 1000, 200_000) == blob.read_bytes()[1000:201_000]
    assert reader.num_retries >= 2
    reader.close()


@pytest.mark.parametrize("fault", ["503", "short", "reset"])
def test_a_fault_that_stays_stops_and_names_shard_and_offset(
    range_server: OpenServer, reader: RangeReader, blob: Path, fault: str
) -> None:
    server = range_server(str(blob.parent))
    server.faults[:] = [fault] * 10
    with pytest.raises(ReadError, match=r"blob.tar: at byte 1000: .*; tried 4 times in "):
        reader.read(f"{server.url}/blob.tar", 1000, 50)
    assert len(server.faults) == 6


def test_a_lying_server_is_not_believed(range_server: OpenServer, reader: RangeReader, blob: Path) -> None:
    server = range_server(str(blob.parent))
    server.faults[:] = ["lie"]
    with pytest.raises(ReadError, match=r"at byte 1000: asked for bytes from 1000, the server sent 'bytes 0-9/10'"):
        reader.read(f"{server.url}/blob.tar", 1000, 50)


def test_redirects_are_followed_within_http(range_server: OpenServer, reader: RangeReader, blob: Path) -> None:
    server = range_server(str(blob.parent))
    server.faults[:] = ["redirect", "redirect"]
    assert reader.read(f"{server.url}/blob.tar", 5, 5) == blob.read_bytes()[5:10]
    server.faults[:] = ["elsewhere"]
    with pytest.raises(ReadError, match="which is not http"):
        reader.read(f"{server.url}/blob.tar", 5, 5)
    server.faults[:] = ["redirect"] * 6
    with pytest.raises(ReadError, match="redirected more than 5 times"):
        reader.read(f"{server.url}/blob.tar", 5, 5)


def test_a_missing_file_stops_at_once(range_server: OpenServer, reader: RangeReader, blob: Path) -> None:
    server = range_server(str(blob.parent))
    with pytest.raises(ReadError, match=r"none.tar: at byte 0: the server answered 404"):
        reader.read(f"{server.url}/none.tar", 0, 5)
    assert reader.num_retries == 0


def test_closing_wakes_a_reader_that_waits(range_server: OpenServer, blob: Path) -> None:
    server = range_server(str(blob.parent))
    server.faults[:] = ["stall"] * 10
    reader = RangeReader(Patience(timeout_seconds=200, retries=5))
    errors = []

    def read() -> None:
        try:
            reader.read(f"{server.url}/blob.tar", 0, 5000)
        except OSError as error:
            errors.append(error)

    thread = threading.Thread(target=read, daemon=True)
    thread.start()
    while len(server.faults) == 10:
        time.sleep(0.01)
    reader.interrupt()
    thread.join(30)  # the server would have stalled for sixty seconds, and so would the reader
    assert not thread.is_alive()
    reader.close()
    assert errors
